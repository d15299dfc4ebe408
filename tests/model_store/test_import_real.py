"""`coe models import` with the real converter, on a Llama of random weights that transformers writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import eventually, is_gone

from coe_cli.runtime.store.integrity import check_files
from model_store.conftest import Coe


def start_import(source: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "coe_cli", "models", "import", str(source), "--name", "mine", "--provider", "cpu"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["Converting: tokenizer", "Converting: weights"])
def test_import_killed_in_a_stage_of_the_real_converter(coe: Coe, llama: Path, stage: str) -> None:
    """The converter is a process of its own: it ends too, leaves nothing under the name, and a second run succeeds."""
    first = start_import(llama)
    assert first.stderr is not None
    while stage not in (line := first.stderr.readline()):
        assert line, "it ended before that stage"
    converters = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    eventually(lambda: all(map(is_gone, converters)))
    first.stderr.close()
    assert not (coe.models / "mine").exists()
    second = start_import(llama)
    assert second.wait(timeout=200) == 0
    check_files("mine", coe.models / "mine")
    assert coe.left_over == []
    assert coe("models", "verify", "mine").code == 0


@pytest.mark.slow
def test_a_hugging_face_folder_becomes_a_model_that_answers(coe: Coe, llama: Path) -> None:
    result = coe("models", "import", str(llama), "--name", "mine", "--provider", "cpu", "--precision", "int8")
    assert result.code == 0, result.stderr
    assert "LlamaForCausalLM" in result.stderr
    card = coe("models", "show", "mine", "--format", "json").json
    assert (card["attention"], card["head_positions"], card["shape"]["num_hidden_layers"]) == ("GQA", "last", 2)
    assert coe("models", "verify", "mine").code == 0
    origin = json.loads((coe.models / "mine" / "coe_manifest.json").read_text())["origin"]
    assert (origin["provider"], origin["precision"]) == ("cpu", "int8")
    assert coe.left_over == []
