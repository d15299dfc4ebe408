"""Inside the prompt process: text to token ids, as the model's own tokenizer has them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from coe_cli.core.answers.token_bytes import TokenBytes
from coe_cli.runtime.model_folder import tokenizer_files

_CONTROL_SHAPE = re.compile(r"<[|｜][^<>]*[|｜]>")
"""What some tokenizers leave unmarked although their models treat it as a control token."""
_SHRINKING = {"NFC": 3, "NFD": 1, "Prepend": 1, "Replace": 1}
"""Normalizer → how many times fewer bytes it may leave; another one leaves no bound."""
_PREFIX_BYTES_PER_TOKEN = (8, 32)
_PREFIX_SPARE = 1.25
"""A prefix may have more tokens than the same text has inside the whole: by its last word, which is nothing beside this."""


class TooMany(Exception):
    """More tokens than the context has: so many, or at least so many."""

    def __init__(self, tokens: int, *, exact: bool) -> None:
        super().__init__(tokens)
        self.tokens, self.exact = tokens, exact


class ControlTokenInText(Exception):
    """The tokenizer knows no other way to write this text than its control token."""


class ModelTokenizer:
    """The tokenizer of one folder, read once.

    Raises:
        Exception: whatever tokenizers raises for a file that it cannot use.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / tokenizer_files.TOKENIZER
        self._tokenizer: Any = Tokenizer.from_file(str(self._path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._added: dict[int, AddedToken] = {number: token for number, token in added.items() if token.content}
        self._control = {
            token.content: number
            for number, token in self._added.items()
            if token.special or _CONTROL_SHAPE.fullmatch(token.content)
        }
        self._prefix = self._begin_of_text(folder)
        self._guard: _Guard | None = None
        self._bytes: TokenBytes | None = None

    def knows(self, text: str) -> bool:
        """Whether the text is a token of its own that was added to the vocabulary."""
        return any(token.content == text for token in self._added.values())

    def control_token(self, text: str) -> int | None:
        """The control token that the text is; None where the text is none."""
        return self._control.get(text)

    def check_length(self, text_bytes: int, context_length: int) -> None:
        """
        Raises:
            TooMany: a text of so many bytes cannot fit, whatever it says.
        """
        if text_bytes > context_length * _PREFIX_BYTES_PER_TOKEN[0]:
            most = self._most_bytes_per_token
            if most is not None and text_bytes > context_length * most:
                raise TooMany(-(-text_bytes // most), exact=False)

    def encode(self, text: str, context_length: int, *, begins_text: bool = True) -> list[int]:
        """Ids of a text in which special tokens count; with ``begins_text`` one beginning of text where the tokenizer wants one.

        Raises:
            TooMany: they leave no room for an answer.
        """
        return self._fitting(self._tokenizer, text, context_length, begins_text=begins_text)

    def back(self, ids: list[int]) -> tuple[str, int, list[bytes]]:
        """The text that the ids stand for, how many tokens there are, and the bytes of each id, which are none for an unknown one."""
        self._bytes = self._bytes or TokenBytes(self._path.read_bytes())
        return self._tokenizer.decode(ids), self._tokenizer.get_vocab_size(), [self._bytes.of(each) for each in ids]

    def hide(self, texts: Iterable[str]) -> tuple[list[str], bool]:
        """The texts with a secret mark for each control token that they spell out, and whether there was any."""
        guard = self._guard
        hidden: list[str] = []
        found = False
        for text in texts:
            present = [content for content in self._control if content in text]
            if present:
                found = True
                guard = self._guard = guard or _Guard(self._path, self._added, self._control)
                text = guard.hide(text, present)
            hidden.append(text)
        return hidden, found

    def encode_hidden(self, text: str, context_length: int, *, begins_text: bool = True) -> list[int]:
        """Ids of a text in which what ``hide`` has marked is text, and every other special token counts.

        Raises:
            TooMany: they leave no room for an answer.
            ControlTokenInText: the tokenizer makes a control token of it all the same.
        """
        assert self._guard is not None
        revealed = self._guard.reveal(text)
        ids = self._fitting(self._guard.tokenizer, revealed, context_length, begins_text=begins_text)
        return self._guard.ids(ids)

    def _fitting(self, tokenizer: Any, text: str, context_length: int, *, begins_text: bool) -> list[int]:
        """A text far too long is found out by its beginning: the work is bounded by the context, not by the text."""
        size = len(text.encode())
        self.check_length(size, context_length)
        for bytes_per_token in _PREFIX_BYTES_PER_TOKEN:
            length = bytes_per_token * context_length
            if size > 2 * length:
                tokens = len(tokenizer.encode(text[:length], add_special_tokens=False).ids)
                if tokens > context_length * _PREFIX_SPARE:
                    raise TooMany(tokens, exact=False)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        if begins_text and self._prefix and ids[: len(self._prefix)] != self._prefix:
            ids = self._prefix + ids
        if len(ids) >= context_length:
            raise TooMany(len(ids), exact=True)
        return ids

    def _begin_of_text(self, folder: Path) -> list[int]:
        """What the tokenizer writes before a text. What it may write after one would end the prompt before its answer."""
        adds = tokenizer_files.adds_bos(folder)
        if adds is False:
            return []
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole: list[int] = self._tokenizer.encode("a", add_special_tokens=True).ids
        at = next((at for at in range(len(whole)) if bare and whole[at : at + len(bare)] == bare), 0)
        if at or not adds:
            return whole[:at]
        bos = self._tokenizer.token_to_id(str(tokenizer_files.special_tokens(folder)["bos_token"]))
        return [] if bos is None else [bos]

    @cached_property
    def _most_bytes_per_token(self) -> int | None:
        """Bytes of text that one token stands for at the most; None where the tokenizer's kind sets no such bound."""
        model = self._tokenizer.model
        byte_level = _mentions(self._tokenizer.pre_tokenizer, "ByteLevel")
        if not isinstance(model, BPE) or not (byte_level or model.byte_fallback or model.unk_token is None):
            return None
        shrinks = 1
        for kind in _kinds(self._tokenizer.normalizer):
            if kind not in _SHRINKING:
                return None
            shrinks *= _SHRINKING[kind]
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        return shrinks * max((len(token) if byte_level else len(token.encode()) for token in vocabulary), default=1)


class _Guard:
    """A second tokenizer in which control tokens have secret names, so that a text cannot spell them."""

    def __init__(self, path: Path, added: dict[int, AddedToken], control: dict[str, int]) -> None:
        self._secret = secrets.token_hex(8)
        self._control = control
        self._names = {number: f"\ue0f0{self._secret}.{number}\ue0f1" for number in added}
        self._by_content = {token.content: number for number, token in added.items()}
        self._contents = list(control)
        self._mark = re.compile(f"\ue0f2{self._secret}\\.(\\d+)\ue0f3")
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts["added_tokens"] = []
        self.tokenizer: Any = Tokenizer.from_str(json.dumps(facts))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        for number in sorted(added):
            token = added[number]
            self.tokenizer.add_tokens(
                [
                    AddedToken(
                        self._names[number],
                        single_word=token.single_word,
                        lstrip=token.lstrip,
                        rstrip=token.rstrip,
                        normalized=False,
                        special=token.special,
                    )
                ]
            )
        self._own = {self.tokenizer.token_to_id(name): number for number, name in self._names.items()}
        self._forbidden = set(control.values()) - self._own.keys()

    def hide(self, text: str, present: list[str]) -> str:
        return _any_of(present).sub(lambda found: f"\ue0f2{self._secret}.{self._contents.index(found[0])}\ue0f3", text)

    def reveal(self, text: str) -> str:
        """Give the tokens of the template their secret names, and the text what it had said."""
        present = [content for content in self._by_content if content in text]
        if present:
            text = _any_of(present).sub(lambda found: self._names[self._by_content[found[0]]], text)
        return self._mark.sub(lambda found: self._contents[int(found[1])], text)

    def ids(self, ids: list[int]) -> list[int]:
        if self._forbidden.intersection(ids):
            raise ControlTokenInText
        return [self._own.get(number, number) for number in ids]


def _any_of(contents: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(content) for content in sorted(contents, key=len, reverse=True)))


def _kinds(part: Any) -> list[str]:
    """The types of a normalizer and of those in it."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    found = state.get("normalizers", [state])
    return [str(each.get("type")) for each in found]


def _mentions(part: Any, kind: str) -> bool:
    return part is not None and f'"{kind}"' in part.__getstate__().decode()
