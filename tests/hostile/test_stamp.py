"""A model's stamp is another one when any of its files was changed or replaced, and the resolver then reads it anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from model_store.tiny_model import write_tiny_model
from operating_system import WINDOWS

from coe_cli.runtime.model_folder.model_files import model_stamp
from coe_cli.runtime.store.model_store import open_model


@pytest.mark.skipif(WINDOWS, reason="Windows tells no time of change but the one that may be set")
@pytest.mark.parametrize(
    "name", ["genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_changed_file_gives_another_stamp(tmp_path: Path, name: str) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    before, info = model_stamp(folder), (folder / name).stat()
    assert model_stamp(folder) == before
    (folder / name).write_bytes((folder / name).read_bytes())
    os.utime(folder / name, ns=(info.st_atime_ns, info.st_mtime_ns))  # same size and time: the system's own tells
    assert model_stamp(folder) != before


def test_a_replaced_folder_gives_another_spec(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    before = open_model("tiny", folder)
    write_tiny_model(tmp_path / "other", seed=1)
    folder.rename(tmp_path / "old")
    (tmp_path / "other").rename(folder)
    assert open_model("tiny", folder) != before


def test_a_folder_that_is_gone_has_no_stamp(tmp_path: Path) -> None:
    assert model_stamp(tmp_path / "nothing") == ""
