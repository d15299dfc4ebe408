"""A model folder is data: whatever it asks for beside being read, it is refused by name before anything of it is run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model

from coe_cli.core.models.genai_config import parse_config
from coe_cli.errors import ModelDamaged
from coe_cli.runtime.model_folder.model_files import read_config
from coe_cli.runtime.store.golden_answer import continue_prompts
from coe_cli.runtime.store.model_store import open_model
from coe_cli.runtime.store.verify import verify
from hostile.zoo import CONFIGURATIONS, FOLDERS, SESSION, compile_library, configured, edit_json, make_hostile

ZOO = CONFIGURATIONS | FOLDERS


@pytest.mark.parametrize("animal", ZOO)
def test_each_hostile_folder_is_refused_by_name(animal: str, tmp_path: Path) -> None:
    make, named = ZOO[animal]
    folder = make_hostile(tmp_path / "beast", make)
    with pytest.raises(ModelDamaged) as refused:
        open_model("beast", folder)
    assert named in refused.value.message and refused.value.exit_code == 4
    assert refused.value.message.isprintable()
    errors = [finding for finding in verify("beast", folder, tmp_path, run=False) if finding.level == "error"]
    assert any(named in finding.message for finding in errors), errors


@pytest.mark.parametrize("way", ["verify", "pull", "optimize", "import"])
@pytest.mark.parametrize("animal", ["custom ops", "custom ops, vision", "profiling", "weights above", "tokenizer FIFO"])
def test_every_command_that_reads_a_model_refuses_it(coe: Coe, animal: str, way: str) -> None:
    make, named = ZOO[animal]
    where = coe.models / "beast" if way in ("verify", "optimize") else coe.folder / "given"
    make_hostile(where, make)
    done = {
        "verify": lambda: coe("models", "verify", "beast"),
        "optimize": lambda: coe("models", "optimize", "beast"),
        "pull": lambda: coe("models", "pull", f"file:{where}"),
        "import": lambda: coe("models", "import", str(where), "--name", "mine"),
    }[way]()
    if way == "import":  # a folder in OGA's layout is not for import, which says so before it reads it
        assert done.code == 2
    else:
        assert done.code == 4, done.stderr + done.stdout
        assert "".join(named.split()) in "".join((done.stderr + done.stdout).split())  # a table breaks lines
    assert "Traceback" not in done.stderr
    assert not (coe.models / "given").exists() and not (coe.models / "mine").exists()


@pytest.fixture
def library(tmp_path: Path) -> tuple[Path, Path]:
    """A shared object that looks like weights, and the file that it makes when it is loaded."""
    marker, target = tmp_path / "loaded", tmp_path / "model.onnx.bin"
    if not compile_library(target, marker):
        pytest.skip("needs a C compiler")
    return target, marker


@pytest.mark.parametrize("way", ["worker", "ask"])
def test_a_library_that_comes_with_a_model_is_not_loaded(coe: Coe, library: tuple[Path, Path], way: str) -> None:
    target, marker = library
    folder = coe.models / "beast"
    write_tiny_model(folder)
    shutil.copyfile(target, folder / target.name)
    spec = open_model("beast", folder)
    make_use = configured(*SESSION, "custom_ops_library", value=(folder / target.name).as_posix())
    make_use(folder, coe.folder)  # after it was opened: the worker looks again
    if way == "ask":
        command = [sys.executable, "-m", "coe_cli", "ask", "--no-serve", "-m", "beast", "Hi"]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=200)
        assert done.returncode == 4 and b"custom_ops_library" in done.stderr
    else:
        with pytest.raises(ModelDamaged, match="custom_ops_library"):
            continue_prompts(spec, ["Hi"], max_tokens=1)
    assert not marker.exists()


def test_harmless_unknown_keys_are_dropped_with_a_note_and_the_model_answers(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    expected = continue_prompts(open_model("tiny", folder), ["def f(x):", "Once"], max_tokens=8)[1]

    def add(config: dict[str, dict[str, object]]) -> None:
        config["made_by"] = {"tool": "x"}
        config["model"]["of_next_year"] = 1
        config["search"]["top_k"] = None

    edit_json(folder / "genai_config.json", add)
    notes = read_config("tiny", folder).notes
    assert notes == ("model.of_next_year is not used", "search.top_k is not used", "made_by is not used")
    assert continue_prompts(open_model("tiny", folder), ["def f(x):", "Once"], max_tokens=8)[1] == expected
    warnings = [finding for finding in verify("tiny", folder, tmp_path, run=False) if finding.level == "warning"]
    assert any("of_next_year" in finding.message for finding in warnings)


def test_a_configuration_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    path = folder / "genai_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert continue_prompts(open_model("tiny", folder), [], max_tokens=1)[1] == []  # it was loaded


def test_a_graph_in_a_subfolder_and_non_ascii_names_are_fine(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "größe 1")
    (folder / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (folder / name).rename(folder / "onnx" / name)
    edit_json(
        folder / "genai_config.json", lambda config: config["model"]["decoder"].update(filename="onnx/model.onnx")
    )
    assert continue_prompts(open_model("größe 1", folder), [], max_tokens=1)[1] == []  # it was loaded


def test_what_oga_is_given_is_what_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coe_cli.runtime.worker.private_folder import private_folder

    monkeypatch.setenv("COE_CACHE_DIR", str(tmp_path / "cache"))
    folder = write_tiny_model(tmp_path / "tiny")
    (folder / "evil.so").write_bytes(b"")
    given, config = private_folder(folder)
    configured(*SESSION, "custom_ops_library", value="evil.so")(folder, tmp_path)
    assert "custom_ops_library" not in (given / "genai_config.json").read_text(encoding="utf-8")
    assert (given / config.content["model"]["decoder"]["filename"]).exists() is False
    assert json.loads((given / "genai_config.json").read_text())["model"]["decoder"]["filename"] == "files/model.onnx"
    assert (given / "files" / "model.onnx").samefile(folder / "model.onnx")


def test_folders_of_workers_that_have_ended_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("COE_CACHE_DIR", str(tmp_path / "cache"))
    spec = open_model("tiny", write_tiny_model(tmp_path / "tiny"))
    for _ in range(2):
        continue_prompts(spec, ["Hi"], max_tokens=1)
        (left,) = (tmp_path / "cache" / "loaded").iterdir()  # the worker was killed, and its folder is the only one
        age(left)


@pytest.fixture
def age() -> Callable[[Path], None]:
    """Make a folder older than those that are being made."""
    import os

    return lambda folder: os.utime(folder, (1, 1))


def test_no_model_that_coe_knows_how_to_build_is_refused() -> None:
    """The builder's own options, of every provider that coe runs."""
    every: tuple[dict[str, dict[str, str]], ...] = (
        {"cuda": {"enable_cuda_graph": "0"}},
        {"dml": {}},
        {"dml": {"enable_graph_capture": "1"}},
        {"webgpu": {"enableGraphCapture": "1", "validationMode": "disabled", "multiRotaryCacheConcatOffset": "4096"}},
    )
    for options in every:
        decoder = {"filename": "model.onnx", "session_options": {"log_id": "x", "provider_options": [options]}}
        config = {"model": {"type": "llama", "context_length": 4096, "decoder": decoder}, "search": {"top_k": 50}}
        assert parse_config("m", json.dumps(config).encode()).content == config
