"""The bytes that each token stands for, as the model's ``tokenizer.json`` has them, and log probabilities told by them."""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


class TokenLogprob(Struct, frozen=True):
    """A token of an answer with its natural log probability and its id, and the likeliest tokens in its place with theirs."""

    token: bytes
    logprob: float
    id: int
    top: list[tuple[bytes, float, int]] = []


def token_text(token: bytes) -> str:
    """The token as text; where it is a part of a character as OpenAI writes that."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


class _Added(Struct):
    id: int
    content: str


class _Model(Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class AddedTokens(Struct):
    """What a ``tokenizer.json`` says of tokens beside its vocabulary."""

    added_tokens: list[_Added] = []


class _Tokenizer(AddedTokens, kw_only=True):
    model: _Model
    decoder: msgspec.Raw = msgspec.Raw(b"")


class TokenBytes:
    """Token id → bytes, for tokens that are bytes in GPT-2's alphabet and for those of SentencePiece; b"" for an id without any.

    Raises:
        msgspec.MsgspecError: ``tokenizer_json`` is not what tokenizers writes.
    """

    def __init__(self, tokenizer_json: bytes) -> None:
        facts = msgspec.json.decode(tokenizer_json, type=_Tokenizer)
        vocab = facts.model.vocab
        self._texts = (
            {number: text for text, number in vocab.items()}
            if isinstance(vocab, dict)
            else {number: text for number, (text, _) in enumerate(vocab)}
        )
        self._added = {token.id: token.content.encode() for token in facts.added_tokens}
        self._alphabet = _gpt2_alphabet() if b'"ByteLevel"' in bytes(facts.decoder) else None

    def of(self, token: int) -> bytes:
        """The bytes of one token; a character may be spread over several."""
        if token in self._added:
            return self._added[token]
        text = self._texts.get(token, "")
        if self._alphabet is not None:
            return b"".join(self._alphabet.get(character, character.encode()) for character in text)
        if (byte := _BYTE.fullmatch(text)) is not None:
            return bytes([int(byte[1], 16)])
        return text.replace(_SPACE, " ").encode()


def _gpt2_alphabet() -> dict[str, bytes]:
    """Character → byte: visible ones of Latin-1 stand for themselves, the others for characters from 256 on (GPT-2)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(visible)]
    characters = {chr(byte): bytes([byte]) for byte in visible}
    return characters | {chr(256 + number): bytes([byte]) for number, byte in enumerate(others)}
