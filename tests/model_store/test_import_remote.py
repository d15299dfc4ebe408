"""`coe models import` of repositories: which file is taken, what is refused before anything is fetched, and names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from importing.configurations import write_folder
from importing.gguf_files import write_gguf
from importing.tokenizer_files import bpe_metadata

from coe_cli.core.importing.encodings import Precision
from coe_cli.core.importing.gguf_tokenizer import tokenizer_files
from coe_cli.core.importing.hub_files import choose_gguf, guess_name, is_importable, quant_of
from coe_cli.errors import DoesNotFit, UsageError
from model_store.conftest import Coe
from model_store.hub_server import COMMIT, Hub

FILES = {"m-Q4_K_M.gguf": 4000, "m-Q8_0.gguf": 8000, "m-Q2_K.gguf": 2000, "m-F16-00001-of-00002.gguf": 9000}


@pytest.mark.parametrize(
    ("files", "quant", "room", "provider", "precision", "chosen"),
    [
        (FILES, None, 10**6, "cpu", "int4", "m-Q4_K_M.gguf"),
        (FILES, None, 5600, "cpu", "int4", "m-Q4_K_M.gguf"),
        (FILES, None, 5400, "cpu", "int4", "m-Q2_K.gguf"),
        (FILES, None, 5400, "cuda", "int4", "m-Q4_K_M.gguf"),
        (FILES, "q8_0", 0, "cpu", "int4", "m-Q8_0.gguf"),
        # 5 bits become 8, and 2 bits 4; F16 becomes 4 where the recipe has 4
        ({"m-Q5_K_M.gguf": 5600, "m-Q2_K.gguf": 2000}, None, 8000, "cpu", "int4", "m-Q2_K.gguf"),
        ({"m-Q5_K_M.gguf": 5600, "m-Q2_K.gguf": 2000}, None, 12000, "cpu", "int4", "m-Q5_K_M.gguf"),
        ({"m-Q8_0.gguf": 8000, "m-F16.gguf": 16000}, None, 7000, "cpu", "int4", "m-F16.gguf"),
        ({"m-Q4_0.gguf": 4000, "m-Q2_K.gguf": 2000}, None, 20000, "cuda", "fp16", "m-Q4_0.gguf"),
        ({"m-Q4_K_M.gguf": 4000, "m-Q8_0.gguf": 8000}, None, 11000, "cpu", "int8", "m-Q4_K_M.gguf"),
    ],
)
def test_which_file_is_taken(
    files: dict[str, int], quant: str | None, room: float, provider: str, precision: Precision, chosen: str
) -> None:
    assert choose_gguf(files, quant, room, provider, precision) == chosen


def test_where_none_can_be_taken() -> None:
    with pytest.raises(DoesNotFit, match="Q2_K"):
        choose_gguf(FILES, None, 3000, "cpu", "int4")  # larger than the file of 2000
    with pytest.raises(DoesNotFit, match="Q4_K_M"):
        choose_gguf({"m-Q4_K_M.gguf": 4000, "m-Q8_0.gguf": 8000}, None, 9000, "cuda", "fp16")
    with pytest.raises(UsageError, match="no Q3_K_M file"):
        choose_gguf(FILES, "Q3_K_M", 10**6, "cpu", "int4")
    with pytest.raises(UsageError, match="several parts"):
        choose_gguf({"m-F16-00001-of-00002.gguf": 1}, None, 10**6, "cpu", "int4")
    assert choose_gguf({"only.gguf": 1}, None, 0, "cpu", "int4") == "only.gguf"


@pytest.mark.parametrize(
    ("metadata", "file", "name"),
    [
        ({"general.name": "Qwen2.5 Coder 1.5B Instruct GGUF"}, "model.gguf", "Qwen2.5-Coder-1.5B-Instruct"),
        ({"general.name": "  "}, "SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ({"general.name": 7}, "a model (2)-IQ4_XS.gguf", "a-model-2"),
        ({}, "Llama-3.2-3B-Instruct-Q4_K_M.gguf", "Llama-3.2-3B-Instruct"),
        ({}, "phi-4.BF16.gguf", "phi-4"),
        ({}, "folder-name", "folder-name"),
        ({"general.name": "../../etc/passwd"}, "x", "etc-passwd"),
    ],
)
def test_names_are_guessed(metadata: dict[str, Any], file: str, name: str) -> None:
    assert guess_name(metadata, file) == name


def test_files_of_a_folder() -> None:
    taken = ("model-00001-of-00002.safetensors", "config.json", "tokenizer.json", "chat_template.jinja")
    left = ("pytorch_model.bin", "modeling.py", "onnx/config.json", "consolidated.00.safetensors", "README.md")
    assert all(map(is_importable, taken)) and not any(map(is_importable, left))
    assert quant_of("dir/Model-7B.i1-Q4_K_M.gguf") == "Q4_K_M" and quant_of("model.gguf") == ""


@pytest.fixture
def ggufs(hub: Hub, tmp_path: Path) -> dict[str, bytes]:
    """A repository with one model in two quantisations."""
    small = write_gguf(tmp_path / "small.gguf", kind="Q4_1").read_bytes()
    large = write_gguf(tmp_path / "large.gguf", kind="Q8_0").read_bytes()
    files = {"README.md": b"# A model\n", "tiny-Q4_1.gguf": small, "tiny-Q8_0.gguf": large}
    hub.repositories["someone/tiny-GGUF"] = files
    return files


def test_a_repository_becomes_a_model(coe: Coe, hub: Hub, ggufs: dict[str, bytes]) -> None:
    result = coe("models", "import", "https://huggingface.co/someone/tiny-GGUF", "--provider", "cpu")
    assert result.code == 0, result.stderr
    manifest = json.loads((coe.models / "tiny" / "coe_manifest.json").read_text())
    origin = manifest["origin"]
    assert (origin["uri"], origin["revision"]) == ("hf:someone/tiny-GGUF/tiny-Q4_1.gguf", COMMIT)
    assert (origin["provider"], origin["precision"]) == ("cpu", "int4")
    fetched = {path.rsplit("/", 1)[-1] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {"tiny-Q4_1.gguf"}
    assert coe("models", "verify", "tiny", "--no-run").code == 0
    assert coe.left_over == []
    again = coe("models", "import", "hf:someone/tiny-GGUF/tiny-Q8_0.gguf", "--provider", "cpu")
    assert again.code == 2 and "there is a model `tiny` already" in again.stderr


def test_a_repository_of_safetensors(coe: Coe, hub: Hub, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", "llama")
    tokenizer, config = tokenizer_files(bpe_metadata("gpt-2"), 10_000)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    hub.add_folder("someone/folder", folder)
    hub.repositories["someone/folder"] |= {"modeling.py": b"print()", "extra/model.safetensors": b"x"}
    result = coe("models", "import", "someone/folder", "--provider", "cpu", "--name", "mine")
    assert result.code == 0, result.stderr
    assert not any("extra" in path or "modeling" in path for _, path, _ in hub.requests)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["hf:someone/tiny-GGUF", "--quant", "Q6_K"], 2, "Q4_1 (0 MB), Q8_0"),
        (["hf:someone/mamba-GGUF"], 2, "`mamba` model, which cannot be imported"),
        (["hf:someone/pickled"], 2, "neither GGUF files nor safetensors"),
        (["hf:someone/oga"], 2, "coe models pull hf:someone/oga"),
        (["hf:someone/nothing"], 4, "does not exist"),
        (["no-such-file.gguf"], 4, "does not exist"),
    ],
)
def test_refused_before_anything_is_fetched(
    coe: Coe, hub: Hub, ggufs: dict[str, bytes], arguments: list[str], code: int, says: str
) -> None:
    hub.repositories["someone/mamba-GGUF"] = {"a-Q4_0.gguf": b"GGUF"}
    hub.architectures["someone/mamba-GGUF"] = "mamba"
    hub.repositories["someone/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    hub.repositories["someone/oga"] = {"genai_config.json": b"{}", "model.onnx": b"x"}
    result = coe("models", "import", *arguments, "--provider", "cpu")
    assert (result.code, says in result.stderr) == (code, True), result.stderr
    assert not any("/resolve/" in path for _, path, _ in hub.requests)
