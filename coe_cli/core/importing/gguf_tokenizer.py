"""The tokenizer in a GGUF header, as the ``tokenizer.json`` and ``tokenizer_config.json`` of Hugging Face.

It makes the ids that llama.cpp makes, which normalises nothing. Two kinds: ``gpt2`` merges bytes by a list of merges; ``llama`` (SentencePiece)
merges characters by the score of what comes out, which is the same as a list of merges in the order of their scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from coe_cli.core.answers.end_of_turn import END_OF_TURN, token_ids
from coe_cli.core.importing.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer

_PREFIX = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_SPACE: Final = "▁"
_MAX_TOKEN_CHARS = 512
"""Characters of a token that merges make: the work grows with its square. Gemma's longest has 31."""
_NAMED = ("bos", "eos", "eot", "eom", "unknown", "padding")


class _Vocabulary(Struct, frozen=True):
    tokens: list[str]
    kinds: list[int]
    named: dict[str, int]
    """``bos``, ``eos`` and others of ``_NAMED`` → id, where the header names one."""

    @property
    def special(self) -> dict[int, bool]:
        """Id → whether it is a control token, of those that are found in a text before it is split.

        Where the file marks none, its named ones and those that end an answer by their text: in a file that marks some, ``</s>`` may be HTML.
        """
        found = {at: kind != _USER_DEFINED for at, kind in enumerate(self.kinds) if kind in _FOUND_FIRST}
        ends = [at for at, token in enumerate(self.tokens) if token in END_OF_TURN]
        return found or dict.fromkeys([*self.named.values(), *ends], True)


_FOUND_FIRST: Final = (_UNKNOWN, _CONTROL, _USER_DEFINED)


def problem(metadata: Mapping[str, Any], vocab_size: int) -> str:
    """Why the tokenizer of a model with ``vocab_size`` rows in its embedding cannot be written; empty where it can."""
    kind = metadata.get(f"{_PREFIX}model")
    tokens = metadata.get(f"{_PREFIX}tokens")
    if not isinstance(tokens, list) or not tokens:
        return "it has no tokenizer"
    if len(tokens) > vocab_size:
        return f"its tokenizer has {len(tokens)} tokens and its embedding {vocab_size} rows"
    if kind == "gpt2":
        name = str(metadata.get(f"{_PREFIX}pre"))[:40]
        return "" if name in PRE_TOKENIZERS else f"its tokenizer splits words in a way that is not known, {name!r}"
    return "" if kind == "llama" else f"its tokenizer is of the kind {str(kind)[:40]!r}; gpt2 and llama can be imported"


def tokenizer_files(metadata: Mapping[str, Any], vocab_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of ``tokenizer.json`` and of ``tokenizer_config.json``.

    Raises:
        ValueError: the header's tokenizer contradicts itself, or cannot be written.
    """
    if why := problem(metadata, vocab_size):
        raise ValueError(why)
    vocabulary = _vocabulary(metadata)
    sentencepiece = metadata[f"{_PREFIX}model"] == "llama"
    split = PreTokenizer((), bos=True) if sentencepiece else PRE_TOKENIZERS[str(metadata[f"{_PREFIX}pre"])]
    bos = vocabulary.named.get("bos")
    adds_bos = bos is not None and metadata.get(f"{_PREFIX}add_bos_token", split.bos) is True
    name = str(metadata.get("general.name", "")).lower()
    parts = _sentencepiece(metadata, vocabulary) if sentencepiece else _bytes(metadata, vocabulary, split)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary, strips="phi-3" in name or "phi3" in name),
        "post_processor": _begin(vocabulary.tokens[bos], bos) if adds_bos and bos is not None else None,
        **parts,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "clean_up_tokenization_spaces": False,
        **{
            f"{key}_token": vocabulary.tokens[vocabulary.named[name]]
            for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
            if name in vocabulary.named
        },
    }
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    return tokenizer, config


def _vocabulary(metadata: Mapping[str, Any]) -> _Vocabulary:
    found = metadata[f"{_PREFIX}tokens"]
    if not all(isinstance(token, str) for token in found):
        raise ValueError("its tokenizer has a token that is no text")
    tokens = [token or f"[EMPTY_{at}]" for at, token in enumerate(found)]
    if len(set(tokens)) < len(tokens):
        raise ValueError("its tokenizer has a token twice")
    if any("\udc80" <= char <= "\udcff" for token in tokens for char in token):
        raise ValueError("its tokenizer has a token that is not UTF-8")
    kinds = metadata.get(f"{_PREFIX}token_type", [1] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) < len(tokens):
        raise ValueError("its tokenizer does not say of which kind its tokens are")
    named = {name: token_ids(metadata.get(f"{_PREFIX}{name}_token_id"), len(tokens)) for name in _NAMED}
    return _Vocabulary(tokens, kinds[: len(tokens)], {name: ids[0] for name, ids in named.items() if ids})


def _added_tokens(vocabulary: _Vocabulary, *, strips: bool) -> list[dict[str, Any]]:
    """``strips``: Phi 3's control tokens swallow the white space behind them."""
    return [
        {
            "id": at,
            "content": vocabulary.tokens[at],
            "single_word": False,
            "lstrip": False,
            "rstrip": strips and vocabulary.tokens[at] not in ("<unk>", "<s>", "<|endoftext|>"),
            "normalized": False,
            "special": control,
        }
        for at, control in sorted(vocabulary.special.items())
    ]


def _begin(bos: str, at: int) -> dict[str, Any]:
    begin, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, begin, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [at], "tokens": [bos]}},
    }


def _model(vocabulary: _Vocabulary, merges: Iterable[tuple[str, str]], **more: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: at for at, token in enumerate(vocabulary.tokens)},
        "merges": list(merges),
        **more,
    }


def _bytes(metadata: Mapping[str, Any], vocabulary: _Vocabulary, split: PreTokenizer) -> dict[str, Any]:
    lines = metadata.get(f"{_PREFIX}merges")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError("its tokenizer has no merges")
    known = set(vocabulary.tokens)
    pairs = [(line[:at], line[at + 1 :]) for line in lines if (at := line.find(" ", 1)) > 0]
    merges = [(left, right) for left, right in pairs if {left, right, left + right} <= known]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in split.patterns
    ]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": byte_level,
        "model": _model(vocabulary, merges, ignore_merges=split.whole_words),
    }


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> dict[str, Any]:
    prefix = metadata.get(f"{_PREFIX}add_space_prefix", True) is True
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, spaces] if prefix else [spaces]
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *(strip if prefix else []),
    ]
    unknown = vocabulary.tokens[vocabulary.named.get("unknown", 0)]
    merges = _merges_by_score(metadata, vocabulary)
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _merges_by_score(metadata: Mapping[str, Any], vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Each merge of two tokens into one, the merged token with the highest score first. Text makes no control tokens."""
    scores = metadata.get(f"{_PREFIX}scores")
    tokens = vocabulary.tokens
    if not isinstance(scores, list) or len(scores) < len(tokens) or not all(isinstance(item, float) for item in scores):
        raise ValueError("its tokenizer has no scores")
    mergeable = [at for at, kind in enumerate(vocabulary.kinds) if kind not in (_UNKNOWN, _CONTROL, _BYTE)]
    known = {tokens[at] for at in mergeable}
    if any(len(token) > _MAX_TOKEN_CHARS for token in known):
        raise ValueError(f"its tokenizer has a token of more than {_MAX_TOKEN_CHARS} characters")
    return [
        (left, right)
        for at in sorted(mergeable, key=lambda at: -scores[at])
        for cut in range(1, len(tokens[at]))
        if (left := tokens[at][:cut]) in known and (right := tokens[at][cut:]) in known
    ]
