"""`coe models import`: what it refuses, what it says first, and that nothing half-made is seen."""

from __future__ import annotations

import json
import re
import struct
import sys
import types
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from importing.configurations import RULES, write_safetensors
from importing.gguf_files import write_gguf

from coe_cli.core.importing.encodings import Precision
from coe_cli.core.importing.needs import needs
from coe_cli.errors import ModelDamaged
from coe_cli.runtime.importing.source import inspect
from coe_cli.runtime.progress import Step
from coe_cli.runtime.store.integrity import check_files
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model


def write_folder(folder: Path, architecture: str = "LlamaForCausalLM", **config: Any) -> Path:
    folder.mkdir()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    values = {"architectures": [architecture], **sizes, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, **config}
    (folder / "config.json").write_text(json.dumps(values))
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,)}
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (32, 32),
        "self_attn.v_proj": (32, 32),
    }
    layer |= {
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (64, 32),
        "mlp.up_proj": (64, 32),
        "mlp.down_proj": (32, 64),
    }
    layer |= {"input_layernorm": (32,), "post_attention_layernorm": (32,)}
    tensors |= {f"model.layers.0.{name}.weight": shape for name, shape in layer.items()}
    arrays = {name: np.zeros(shape, np.float16) for name, shape in tensors.items()}
    write_safetensors(folder / "model.safetensors", arrays)
    return folder


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A converter that writes the tiny model, in place of the real one, which takes minutes; its calls."""
    calls: list[dict[str, Any]] = []

    def convert(source: Path, output: Path, **options: Any) -> None:
        calls.append({"source": source, **options})
        options["on_progress"](Step("Converting", 0.5, 1.0))
        write_tiny_model(output)

    module = types.ModuleType("coe_cli.runtime.importing.convert")
    module.convert = convert  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coe_cli.runtime.importing.convert", module)
    return calls


def import_(coe: Coe, source: Path, *options: str) -> Any:
    return coe("models", "import", str(source), "--name", "mine", *options)


@pytest.mark.parametrize("make", [write_gguf, write_folder])
def test_a_source_is_converted_checked_and_recorded(
    coe: Coe, converter: list[dict[str, Any]], tmp_path: Path, make: Any
) -> None:
    source = make(tmp_path / "source.gguf")
    result = import_(coe, source, "--provider", "cpu", "--precision", "int8")
    assert result.code == 0, result.stderr
    assert "MB of memory and" in result.stderr and "MB of disk" in result.stderr
    assert "mine is ready" in result.stderr
    (call,) = converter
    assert (call["source"], call["provider"], call["precision"]) == (source, "cpu", "int8")
    check_files("mine", coe.models / "mine")
    origin = json.loads((coe.models / "mine" / "coe_manifest.json").read_text())["origin"]
    assert (origin["uri"], origin["precision"]) == (f"file:{source}", "int8")
    assert coe.left_over == []
    assert coe("models", "verify", "mine").code == 0


def test_a_precision_that_a_device_has_no_use_for(coe: Coe, converter: list[Any], tmp_path: Path) -> None:
    for provider, precision in (("cpu", "fp16"), ("cuda", "int8")):
        result = import_(coe, write_gguf(tmp_path / "a.gguf"), "--provider", provider, "--precision", precision)
        assert (result.code, converter) == (2, [])
        assert f"no {precision} recipe for provider `{provider}`" in result.stderr
        assert "MB of memory" not in result.stderr, "it is not going to be converted"


def test_a_model_for_continuous_batching(coe: Coe, converter: list[dict[str, Any]], tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "a.gguf")
    for provider, label in (("cpu", "the CPU"), ("dml", "DirectML"), ("webgpu", "WebGPU")):
        result = import_(coe, source, "--provider", provider, "--paged")
        assert (result.code, converter) == (2, [])
        assert f"{label.removeprefix('the ')} has no paged attention" in result.stderr
        assert "--provider cuda" in result.stderr and "without --paged" in result.stderr
    assert import_(coe, source, "--provider", "cuda", "--paged").code == 0
    assert [call["paged"] for call in converter] == [True]
    origin = json.loads((coe.models / "mine" / "coe_manifest.json").read_text())["origin"]
    assert origin["paged"] == "yes"
    (coe.models / "mine" / "coe_conversion.json").write_text("[]")
    assert "--paged --force" in re.sub(r"\s+", " ", coe("models", "verify", "mine").stdout), "made anew as it was"


def test_a_name_that_is_taken(coe: Coe, converter: list[Any], tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "a.gguf")
    old = write_tiny_model(coe.models / "mine", seed=7)
    before = (old / "model.onnx.data").read_bytes()
    assert import_(coe, source).code == 2
    assert (converter, (old / "model.onnx.data").read_bytes()) == ([], before)
    assert import_(coe, source, "--force").code == 0
    assert (old / "model.onnx.data").read_bytes() != before


def test_a_conversion_that_fails_or_gives_nonsense_leaves_nothing(
    coe: Coe, converter: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["coe_cli.runtime.importing.convert"]
    old = write_tiny_model(coe.models / "mine", seed=7)

    def fails(source: Path, output: Path, **options: Any) -> None:
        write_tiny_model(output)
        raise ModelDamaged("it broke", "Fix it.")

    def contradicts(source: Path, output: Path, **options: Any) -> None:
        write_tiny_model(output, layers=3)
        path = output / "genai_config.json"
        path.write_text(path.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))

    for wrong in (fails, contradicts):
        monkeypatch.setattr(module, "convert", wrong)
        assert import_(coe, write_gguf(tmp_path / "a.gguf"), "--force").code == 4
        check_files("mine", old)
        assert coe.left_over == []


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "model.ckpt"])
def test_pickles_are_refused_and_not_opened(coe: Coe, converter: list[Any], tmp_path: Path, file: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / file).write_bytes(b"cos\nsystem\n(S'echo pwned'\ntR.")
    for source in (folder, folder / file):
        result = import_(coe, source)
        assert result.code == 2
        assert "pickle" in result.stderr and "safetensors" in result.stderr
    assert converter == []


@pytest.mark.parametrize("architecture", ["MambaForCausalLM", "T5ForConditionalGeneration", "BertModel"])
def test_an_unsupported_architecture_gets_a_clear_no(coe: Coe, tmp_path: Path, architecture: str) -> None:
    result = import_(coe, write_folder(tmp_path / "folder", architecture))
    assert result.code == 2
    assert f"is a {architecture}, which cannot be imported" in result.stderr
    assert "LlamaForCausalLM" in result.stderr


def test_an_unsupported_gguf_and_code_of_its_own(coe: Coe, tmp_path: Path) -> None:
    assert "mamba" in import_(coe, write_gguf(tmp_path / "m.gguf", "mamba")).stderr
    custom = write_folder(tmp_path / "custom", auto_map={"AutoModel": "modeling.Model"})
    assert "code of its own" in import_(coe, custom).stderr


def test_what_is_no_source(coe: Coe, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello, this is no model")
    (tmp_path / "empty").mkdir()
    for path, code, says in (
        (tmp_path / "nothing", 4, "does not exist"),
        (tmp_path / "text.gguf", 2, "not a GGUF file"),
        (tmp_path / "empty", 2, "no config.json"),
        (write_tiny_model(tmp_path / "oga"), 2, "coe models pull file:"),
    ):
        result = import_(coe, path)
        assert (result.code, says in result.stderr) == (code, True), result.stderr


def test_damaged_sources(coe: Coe, tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    for cut in (4, 12, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        assert import_(coe, tmp_path / "cut.gguf").code == 4
    folder = write_folder(tmp_path / "folder")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-1], content[:20], b"", struct.pack("<Q", 2**60) + content[8:]):
        weights.write_bytes(damaged)
        assert import_(coe, folder).code == 4


def test_too_little_memory_or_disk_is_said_before_it_starts(
    coe: Coe, converter: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    source = write_gguf(tmp_path / "a.gguf", rows=1 << 18)
    memory = namedtuple("memory", "total available")
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: memory(2**27, 2**27))
        result = import_(coe, source)
        assert (result.code, "128 MB" in result.stderr) == (5, True)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 2**20))
    result = import_(coe, source)
    assert (result.code, "B free" in result.stderr) == (5, True)
    assert converter == []


def test_needs_grow_with_the_precision_and_not_with_the_memory(tmp_path: Path) -> None:
    source = inspect(write_gguf(tmp_path / "a.gguf", rows=1 << 16))
    matrices = {  # eight times as wide, for the offsets of 32 columns take 32 more
        part: (item.type_name, item.rows // 8, 8 * item.columns) for part, item in source.parts.items() if item.rows > 1
    }
    disk = {}
    cases: list[tuple[str, Precision]] = [("cpu", "int4"), ("cpu", "int8"), ("cuda", "int4"), ("cuda", "fp16")]
    for provider, precision in cases:
        memory_bytes, disk[provider, precision] = needs(source.decoder, matrices, RULES[provider], precision)
        assert memory_bytes < 2**29
    # 2 MiB of weights in the embedding: shared with the head in 8 bits on the CPU, twice there where it is fp16
    assert disk["cpu", "int4"] <= disk["cpu", "int8"] < disk["cuda", "int4"] < disk["cuda", "fp16"]


def test_a_bad_name(coe: Coe, tmp_path: Path) -> None:
    result = coe("models", "import", str(write_gguf(tmp_path / "a.gguf")), "--name", "../x")
    assert result.code == 2


@pytest.mark.parametrize(("eos", "said"), [(5, True), ([5, 257], False), (257, False)])
def test_a_source_that_does_not_name_all_ends_is_told(
    coe: Coe, converter: list[Any], tmp_path: Path, eos: Any, said: bool
) -> None:
    folder = write_folder(tmp_path / "source", eos_token_id=eos)
    result = import_(coe, folder)
    assert result.code == 0, result.stderr
    assert ("source ends an answer at token 5, its tokenizer and chat template at 257 too" in result.stderr) == said
