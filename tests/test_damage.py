"""Damaged models, folders that cannot be written, full disks: one line with what fixes it, and nothing half-made."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MODEL, Coe, Result, one_line

from coe_cli.runtime.store.integrity import write_manifest

PULL_AGAIN = f"coe models pull {MODEL} --force"


def _replace(path: Path, data: bytes) -> None:
    """Write a new file: the old one may be a hard link to the model that all tests share."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _truncate(path: Path, size: int) -> None:
    with path.open("rb") as file:
        head = file.read(size)
    _replace(path, head)


def _config(folder: Path, change: str) -> None:
    """Replace one value in genai_config.json."""
    text = (folder / "genai_config.json").read_text()
    key, value = change.split("=")
    config = json.loads(text)
    config["model"]["decoder"][key] = json.loads(value)
    _replace(folder / "genai_config.json", json.dumps(config).encode())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no weights": lambda f: (f / "model.onnx.data").unlink(),
    "half the weights": lambda f: _truncate(f / "model.onnx.data", 50_000_000),
    "one byte too few": lambda f: _truncate(f / "model.onnx.data", (f / "model.onnx.data").stat().st_size - 1),
    "empty weights": lambda f: _replace(f / "model.onnx.data", b""),
    "no graph": lambda f: (f / "model.onnx").unlink(),
    "empty graph": lambda f: _replace(f / "model.onnx", b""),
    "graph of noise": lambda f: _replace(f / "model.onnx", b"\xff" * 262_221),
    "weights are a folder": lambda f: _make_folder(f / "model.onnx.data"),
    "configuration is not JSON": lambda f: _replace(f / "genai_config.json", b'{"model": '),
    "configuration is empty": lambda f: _replace(f / "genai_config.json", b""),
    "configuration is binary": lambda f: _replace(f / "genai_config.json", b"\xff\xfe\x00"),
    "configuration is a list": lambda f: _replace(f / "genai_config.json", b"[]"),
    "configuration is nested too deep": lambda f: _replace(f / "genai_config.json", b"[" * 100_000),
    "configuration without a shape": lambda f: _replace(f / "genai_config.json", b'{"model": {"decoder": {}}}'),
    "no layers": lambda f: _config(f, "num_hidden_layers=0"),
    "heads are words": lambda f: _config(f, 'num_attention_heads="nine"'),
    "graph of another name": lambda f: _config(f, 'filename="other.onnx"'),
    "graph is a number": lambda f: _config(f, "filename=7"),
    "empty tokenizer": lambda f: _replace(f / "tokenizer.json", b""),
    "tokenizer of noise": lambda f: _replace(f / "tokenizer.json", b"{}"),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
}


@pytest.mark.long
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model(bare_coe: Coe, copied_model: Path, damage: str) -> None:
    DAMAGES[damage](copied_model)
    _check_damaged(bare_coe.run("ask", "-m", MODEL, "The capital of France is"))


@pytest.mark.parametrize("damage", ["half the weights", "empty tokenizer"])
def test_a_damaged_model_with_a_manifest_and_a_long_prompt(bare_coe: Coe, copied_model: Path, damage: str) -> None:
    write_manifest(copied_model, {})
    DAMAGES[damage](copied_model)
    _check_damaged(bare_coe.run("ask", "-m", MODEL, stdin="word " * 4000))


def test_a_tokenizer_that_only_a_long_prompt_needs_early(bare_coe: Coe, copied_model: Path) -> None:
    _replace(copied_model / "tokenizer.json", b"{}")
    _check_damaged(bare_coe.run("ask", "-m", MODEL, stdin="word " * 4000))


def _check_damaged(result: Result) -> None:
    assert (result.code, result.stdout) == (4, ""), result.stderr
    line = one_line(result.stderr)
    assert MODEL in line
    assert line.endswith(PULL_AGAIN) or "Nothing of it was run. " in line


def test_the_list_shows_the_damage_and_goes_on(bare_coe: Coe, copied_model: Path) -> None:
    _truncate(copied_model / "model.onnx.data", 1000)
    (bare_coe.models / "odd").mkdir()
    (bare_coe.models / "odd" / "genai_config.json").write_text("{")
    result = bare_coe.run("models", "list", "--format", "json").check()
    rows = {row["name"]: row for row in json.loads(result.stdout)["models"]}
    assert "1000 bytes instead of" in rows[MODEL]["problem"]
    assert rows["odd"]["on_disk"] and rows["odd"]["size_mb"] is None
    assert "cannot be read" in rows["odd"]["problem"]
    assert rows["law-LLM-DML"]["problem"] is None


def _can_mount() -> bool:
    probe = ["unshare", "-m", "true"]
    return sys.platform == "linux" and bool(shutil.which("unshare")) and subprocess.run(probe).returncode == 0


needs_mounts = pytest.mark.skipif(not _can_mount(), reason="needs the right to mount in a namespace of its own")


def _mounted(options: str, folder: Path) -> list[str]:
    """A prefix that runs a command with a tmpfs over ``folder``, and then shows what was left in it."""
    script = f'mount -t tmpfs -o {options} tmpfs "{folder}" && "$@"; code=$?; echo "left: $(ls -A {folder} | xargs)"; exit $code'
    return ["unshare", "-m", "bash", "-c", script, "bash"]


@needs_mounts
@pytest.mark.parametrize("arguments", [("ask", "Hi"), ("models", "pull", MODEL)])
def test_a_folder_that_cannot_be_written(bare_coe: Coe, arguments: tuple[str, ...]) -> None:
    result = bare_coe.run(
        *arguments, prefix=_mounted("ro,size=1m", bare_coe.models), command=bare_coe.command(*arguments)
    )
    assert (result.code, result.stdout) == (4, "left: \n"), result.stderr
    last = result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert "cannot be written" in last and "COE_MODELS_DIR" in last


@needs_mounts
def test_a_batch_whose_output_cannot_be_written_fetches_no_model_first(bare_coe: Coe) -> None:
    sealed, source = bare_coe.folder / "sealed", bare_coe.folder / "in.jsonl"
    sealed.mkdir()
    source.write_text('{"prompt": "Hi"}\n')
    result = bare_coe.run("batch", str(source), "-o", str(sealed / "out"), prefix=_mounted("ro,size=1m", sealed))
    assert (result.code, result.stdout) == (2, "left: \n")
    assert result.stderr == f"coe: the folder {sealed} cannot be written. Choose an output elsewhere.\n"


@needs_mounts
def test_too_little_room_is_said_before_anything_is_fetched(bare_coe: Coe) -> None:
    result = bare_coe.run("models", "pull", MODEL, prefix=_mounted("size=20m", bare_coe.models))
    assert result.code == 5, result.stderr
    last = result.stderr.splitlines()[-1]
    assert "20 MB free" in last and "COE_MODELS_DIR" in last
    assert result.stdout.strip() in ("left:", f"left: .{MODEL}.lock")


@pytest.mark.long
@needs_mounts
def test_a_model_on_a_full_read_only_disk_answers(bare_coe: Coe, copied_model: Path) -> None:
    """Answering needs no room beside the model."""
    script = f'mount --bind -o ro "{bare_coe.models}" "{bare_coe.models}" && mount -o remount,bind,ro "{bare_coe.models}" && exec "$@"'
    prefix = ["unshare", "-m", "bash", "-c", script, "bash"]
    result = bare_coe.run("ask", "-m", MODEL, "The capital of France is", prefix=prefix).check()
    assert "Paris" in result.stdout and result.stderr == ""
