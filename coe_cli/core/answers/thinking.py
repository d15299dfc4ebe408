"""Reasoning models write their thoughts between <think> tags before they answer: split a stream into thought and answer."""

from __future__ import annotations

from typing import NamedTuple

from coe_cli.core.answers.stop_strings import overlap

OPEN, CLOSE = "<think>", "</think>"


class TextDelta(NamedTuple):
    text: str
    is_thinking: bool


class ThinkingSplitter:
    """Feed text as it arrives; a tag may be cut anywhere. White space around a thought is not part of the answer.

    Only a block at the beginning is a thought. Tags after it, or after any other text, are part of the answer.

    Args:
        thinks: whether the model is one that thinks; if not, all text is the answer.
        in_thinking: the prompt's template has already opened a tag.
    """

    def __init__(self, *, thinks: bool = True, in_thinking: bool = False) -> None:
        self._in_thinking = in_thinking and thinks
        self._at_start = thinks and not in_thinking
        self._held = ""
        self._skip_space = self._in_thinking

    def feed(self, text: str) -> list[TextDelta]:
        """The deltas that are certain now."""
        self._held += text
        deltas: list[TextDelta] = []
        if self._at_start:
            begin = self._held.lstrip()
            if len(begin) < len(OPEN) and OPEN.startswith(begin):
                return deltas
            self._at_start = False
            if begin.startswith(OPEN):
                self._held = begin[len(OPEN) :]
                self._in_thinking = self._skip_space = True
        if self._in_thinking:
            thought, tag, rest = self._held.partition(CLOSE)
            if not tag:
                cut = len(thought) - overlap(thought, CLOSE)
                self._emit(deltas, thought[:cut])
                self._held = thought[cut:]
                return deltas
            self._emit(deltas, thought)
            self._held = rest
            self._in_thinking, self._skip_space = False, True
        return deltas + self.finish()

    def finish(self) -> list[TextDelta]:
        """What was held back because it might have become a tag."""
        deltas: list[TextDelta] = []
        self._emit(deltas, self._held)
        self._held = ""
        return deltas

    def _emit(self, deltas: list[TextDelta], text: str) -> None:
        if self._skip_space:
            text = text.lstrip()
        if text:
            self._skip_space = False
            deltas.append(TextDelta(text, self._in_thinking))
