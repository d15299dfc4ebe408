"""Reasoning models write their thoughts between <think> tags: split a stream of text into thought and answer."""

from __future__ import annotations

from typing import NamedTuple

from coe_cli.core.stop_strings import overlap

_OPEN, _CLOSE = "<think>", "</think>"


class Piece(NamedTuple):
    text: str
    is_thinking: bool


class Unsplit:
    """In the splitter's place where nothing is to be split: all text is the answer."""

    def feed(self, text: str) -> list[Piece]:
        return [Piece(text, False)]

    def finish(self) -> list[Piece]:
        return []


class ThinkingSplitter:
    """Feed text as it arrives; a tag may be cut anywhere. White space around a thought is not part of the answer.

    Args:
        in_thinking: the prompt's template has already opened a tag.
    """

    def __init__(self, *, in_thinking: bool = False) -> None:
        self._in_thinking = in_thinking
        self._held = ""
        self._skip_space = in_thinking

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            tag = _CLOSE if self._in_thinking else _OPEN
            at = self._held.find(tag)
            if at < 0:
                break
            self._emit(pieces, self._held[:at])
            self._held = self._held[at + len(tag) :]
            self._in_thinking = not self._in_thinking
            self._skip_space = True
        keep = overlap(self._held, _CLOSE if self._in_thinking else _OPEN)
        cut = len(self._held) - keep
        self._emit(pieces, self._held[:cut])
        self._held = self._held[cut:]
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back because it might have become a tag."""
        pieces: list[Piece] = []
        self._emit(pieces, self._held)
        self._held = ""
        return pieces

    def _emit(self, pieces: list[Piece], text: str) -> None:
        if self._skip_space:
            text = text.lstrip()
        if text:
            self._skip_space = False
            pieces.append(Piece(text, self._in_thinking))
