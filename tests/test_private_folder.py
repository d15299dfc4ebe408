"""The folder through which a worker reads its model, on a file system that cannot link folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import MODEL, Coe

from coe_cli.runtime.worker import private_folder as module


def test_files_are_linked_one_by_one_where_folders_cannot_be(
    bare_coe: Coe, copied_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COE_CACHE_DIR", bare_coe.environment["COE_CACHE_DIR"])
    monkeypatch.setattr(module, "_linked", lambda link, target: False)
    path = copied_model / "genai_config.json"
    content = json.loads(path.read_text()) | {"unknown": 1}
    path.unlink()
    path.write_text(json.dumps(content))
    own, _ = module.private_folder(copied_model)
    assert own != copied_model and "unknown" not in json.loads((own / "genai_config.json").read_text())
    named = json.loads((own / "genai_config.json").read_text())["model"]["decoder"]["filename"]
    assert (own / named).samefile(copied_model / "model.onnx"), MODEL
