"""A real model of a few kilobytes that says one sentence: every token of it calls for the next one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer

from model_store.tiny_model import HIDDEN, VOCAB, write_graph, write_tiny_model

END = "</s>"
_FIRST_ID = 258


def write_saying_model(folder: Path, says: Sequence[str], *, again_from: int | None = None, end: str = END) -> Path:
    """A model that answers any prompt that ends in a space with the tokens ``says``.

    Then it ends, or goes on with token number ``again_from`` for ever.
    """
    assert len(says) < HIDDEN
    write_tiny_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in dict.fromkeys(says)])
    tokenizer.save(str(folder / "tokenizer.json"))
    known = tokenizer.get_vocab()
    ids = [known["Ġ"], *(known[text] for text in says)]
    assert len(set(ids)) == len(ids) and max(ids) < VOCAB
    after = tokenizer.token_to_id(end) if again_from is None else ids[1 + again_from]
    embedding = np.zeros((VOCAB, HIDDEN), np.float32)
    head = np.zeros((HIDDEN, VOCAB), np.float32)
    for state, (token, following) in enumerate(zip(ids, [*ids[1:], after], strict=True)):
        embedding[token, state] = 1
        head[state, following] = 40
    write_graph(folder / "model.onnx", embedding, np.ones(HIDDEN, np.float32), head)
    return folder


def edit_config(folder: Path, section: str, **values: object) -> None:
    """Change values of a section of the model's genai_config.json."""
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config[section] |= values
    path.write_text(json.dumps(config), encoding="utf-8")
