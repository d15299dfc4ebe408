"""Vectors that are kept by text: only new texts are embedded, and never another embedder's vectors are taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe_cli.core.notes import Note
from coe_cli.runtime.routing.vector_cache import VectorCache


class Embedding:
    """A vector of two for each text, and the texts that were embedded."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.notes: list[Note] = []

    def __call__(self, texts: Sequence[str]) -> Any:
        self.seen += texts
        return np.array([[len(text), sum(map(ord, text))] for text in texts], np.float32)

    def cache(self, path: Path, stamp: str = "one", *, anew: bool = False) -> VectorCache:
        self.seen.clear()
        return VectorCache(path, stamp, self, self.notes.append, anew=anew)


def test_only_what_is_new_is_embedded_and_rows_are_in_order(tmp_path: Path) -> None:
    path, embedding = tmp_path / "some" / "v.npz", Embedding()
    first = embedding.cache(path).embed(["b", "a", "b", "\ud800"])
    assert embedding.seen == ["b", "a", "\ud800"]
    again = embedding.cache(path).embed(["a", "c", "b", "b"])
    assert embedding.seen == ["c"]
    assert np.array_equal(again[[2, 0]], first[[0, 1]]) and np.array_equal(again[2], again[3])
    embedding.cache(path).embed(["a", "b", "c"])
    assert embedding.seen == []
    embedding.cache(path).embed(["\ud800"])
    assert embedding.seen == ["\ud800"], "what was not asked for the last time is gone"
    assert embedding.notes == []


def test_another_embedder_and_a_rebuild_embed_all(tmp_path: Path) -> None:
    path, embedding = tmp_path / "v.npz", Embedding()
    embedding.cache(path).embed(["a", "b"])
    embedding.cache(path, "two").embed(["a", "b"])
    assert embedding.seen == ["a", "b"]
    embedding.cache(path, "two", anew=True).embed(["a", "b"])
    assert embedding.seen == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_damaged_file_costs_a_warning(tmp_path: Path, content: bytes | None) -> None:
    path, embedding = tmp_path / "v.npz", Embedding()
    embedding.cache(path).embed(["a", "b"])
    if content is None:
        np.savez(path, stamp=np.array("one"), keys=np.zeros((1, 16), np.uint8), vectors=np.zeros(3, np.float32))
    else:
        path.write_bytes(content)
    assert embedding.cache(path).embed(["a"])[0, 0] == 1
    assert embedding.seen == ["a"]
    assert len(embedding.notes) == 1 and embedding.notes[0].kind == "warning"
    embedding.cache(path).embed(["a"])
    assert embedding.seen == []


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    embedding = Embedding()
    assert embedding.cache(tmp_path / "file" / "v.npz").embed(["a"]).shape == (1, 2)
    assert any("cannot be kept" in note.text for note in embedding.notes)
