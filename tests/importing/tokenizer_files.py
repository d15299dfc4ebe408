"""Small tokenizers in GGUF headers: 256 bytes and the merges of ``tokenizer_merges.txt``, which run across the borders of words.

Where a tokenizer splits a text differently, other merges are possible, so that every mistake in a split is seen in the ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from importing.tokenizer_lines import lines

MERGES = Path(__file__).with_name("tokenizer_merges.txt")
"""One a line, trained on the lines without splitting them. Written anew by ``python -m importing.tokenizer_files`` in tests/."""
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPACE = "▁"


def byte_characters() -> list[str]:
    """The characters that stand for the bytes 0 to 255 in byte-level vocabularies (GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in plain]
    return [chr(value) if value in plain else chr(256 + others.index(value)) for value in range(256)]


def bpe_metadata(pre: str) -> dict[str, Any]:
    merges = MERGES.read_text(encoding="utf-8").splitlines()
    tokens = [*byte_characters(), *(merge.replace(" ", "") for merge in merges), *CONTROL, "<tool>"]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 4) + [3, 3, 3, 4],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 4,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }


def spm_metadata(*, prefix: bool) -> dict[str, Any]:
    """Characters instead of bytes: what a merge of valid UTF-8 makes is a piece, with a score that falls with its number.

    As in SentencePiece's own, spaces are at the beginning of pieces only.
    """
    back = {char: value for value, char in enumerate(byte_characters())}
    pieces = []
    for merge in MERGES.read_text(encoding="utf-8").splitlines():
        try:
            piece = bytes(back[char] for char in merge.replace(" ", "")).decode().replace(" ", _SPACE)
        except UnicodeDecodeError:
            continue
        if _SPACE not in piece.lstrip(_SPACE) and "\0" not in piece:
            pieces.append(piece)
    characters = sorted({char for piece in pieces for char in piece} - set(pieces))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *pieces, *characters, "<tool>"]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces) + len(characters))] + [-1000.0]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 260) + [4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


if __name__ == "__main__":
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=256 + 700, max_token_length=6, initial_alphabet=byte_characters())
    trained.train_from_iterator(lines(), trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    MERGES.write_text("".join(f"{left} {right}\n" for left, right in merges), encoding="utf-8")
