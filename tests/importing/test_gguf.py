"""GGUF files: the same model as the Hugging Face folder that they were made of, and headers that are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe_cli.core.importing.genai_config import gguf_special_tokens, hf_special_tokens
from coe_cli.core.importing.gguf_header import parse_gguf
from coe_cli.core.importing.tensor_names import expected_shapes
from coe_cli.errors import ModelDamaged, UnsupportedArchitecture, UsageError
from coe_cli.runtime.importing.source import inspect
from coe_cli.runtime.importing.write_decoder import write_decoder
from importing.configurations import CONFIGURATIONS, RULES, configuration, random_tensors, write_folder
from importing.gguf_files import write_gguf, write_gguf_of
from importing.running import Running

_EXTRA: dict[str, dict[str, Any]] = {
    "llama-linear-rope": {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
    "qwen2-yarn": {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 32,
    },
    "phi3-part-of-24": {"rope__dimension_count": 16},
}
_ELSEWHERE = {"llama3-rope", "phi4-mini", "mistral-window", "gemma2", "gemma3"}
"""GGUF keeps their rotation in tensors, ignores Mistral's window, or takes other patterns of windows and scales for granted."""


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name not in _ELSEWHERE])
def test_a_gguf_file_is_the_same_model_as_the_folder_that_it_was_made_of(name: str, tmp_path: Path) -> None:
    config = configuration(name)
    folder = write_folder(tmp_path / "folder", name)
    file = write_gguf_of(tmp_path / "model.gguf", config, random_tensors(config), **_EXTRA.get(name, {}))
    logits = []
    for source, target in ((inspect(folder), tmp_path / "hf"), (inspect(file), tmp_path / "gguf")):
        target.mkdir()
        write_decoder(source.decoder, source.weights(), target, RULES["cpu"], "fp32")
        running = Running(target / "model.onnx")
        logits.append([running.logits([5, 9, 30, 31, 7]), running.logits([8])])
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)


def test_gemma_in_gguf(tmp_path: Path) -> None:
    """Its norms have the one already, and its layers look back on the window in llama.cpp's pattern."""
    for name, period in (("gemma2", 2), ("gemma3", 6)):
        config = configuration(name) | {"num_hidden_layers": 7}
        source = inspect(write_gguf_of(tmp_path / f"{name}.gguf", config, random_tensors(config)))
        decoder = source.decoder
        assert decoder.norm_offset == 0
        assert decoder.windows == tuple(0 if (layer + 1) % period == 0 else 5 for layer in range(7))
        assert decoder.attention_scale == pytest.approx(32**-0.5)
        if name == "gemma3":
            assert [decoder.ropes[index].theta for index in decoder.rope_of_layer[4:6] if index is not None] == [
                10000.0,
                10000.0,
            ]


def rewritten(path: Path, find: bytes, put: bytes) -> Path:
    content = path.read_bytes()
    assert find in content
    path.write_bytes(content.replace(find, put, 1))
    return path


def test_headers_that_lie_are_damaged(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    file = tmp_path / "model.gguf"
    for start, value in ((8, 2**60), (16, 2**60), (8, 2**32), (24, 2**63)):
        file.write_bytes(whole[:start] + struct.pack("<Q", value) + whole[start + 8 :])
        with pytest.raises(ModelDamaged, match=r"model\.gguf is damaged"):
            inspect(file)
    for cut in (4, 11, 40, 300, len(whole) // 2, len(whole) - 70):
        file.write_bytes(whole[:cut])
        with pytest.raises(ModelDamaged):
            inspect(file)
    file.write_bytes(b"GGUF" + struct.pack("<I", 99) + whole[8:])
    with pytest.raises(ModelDamaged, match="version 99"):
        inspect(file)


def test_nested_arrays_end(tmp_path: Path) -> None:
    deep = struct.pack("<IQ", 9, 1) * 10_000
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + deep
    with pytest.raises(ValueError, match="unknown type"):
        parse_gguf(memoryview(content))


@pytest.mark.parametrize(
    ("find", "put", "says"),
    [
        (b"attention.head_count", b"attention.head_cxunt", "head_count"),
        (b"blk.0.ffn_gate.weight", b"blk.0.ffn_gatX.weight", "ffn_gatX"),
        (b"blk.0.ffn_down.weight", b"blk.7.ffn_down.weight", "0.down.weight"),
        (b"token_embd.weight", b"token_embX.weight", "token_embX"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, find: bytes, put: bytes, says: str) -> None:
    with pytest.raises((ModelDamaged, UnsupportedArchitecture), match=says):
        inspect(rewritten(write_gguf(tmp_path / "model.gguf"), find, put))


def test_types_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 98), np.uint8), raw_dtype=GGMLQuantizationType.IQ3_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedArchitecture, match="IQ3_XXS"):
        inspect(tmp_path / "a.gguf")


def test_a_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UsageError, match="several files"):
        inspect(tmp_path / "a.gguf")


def test_a_folder_with_one_gguf_file_stands_for_it(tmp_path: Path) -> None:
    one = write_gguf(tmp_path / "a.gguf")
    assert inspect(tmp_path).path == one
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(UsageError, match=r"no config\.json"):
        inspect(tmp_path)


def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", "llama")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_local_experts": 8}))
    with pytest.raises(UnsupportedArchitecture, match="mixture of experts"):
        inspect(folder)


def test_all_ids_that_end_an_answer() -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["a", "<|im_end|>", "</s>", "<|endoftext|>", "b"],
        "tokenizer.ggml.token_type": [1, 3, 1, 3, 1],
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.eot_token_id": 1,
        "tokenizer.ggml.bos_token_id": 77,
    }
    special = gguf_special_tokens(metadata)
    assert (special.bos, special.eos) == (None, (3, 1))
    special = hf_special_tokens({"eos_token_id": 5, "bos_token_id": 1}, {"eos_token_id": [7, 5]}, {"eos": 6}, 10)
    assert (special.bos, special.eos) == (1, (7, 5, 6))


def test_expected_shapes_name_every_tensor_of_a_folder(tmp_path: Path) -> None:
    for name in CONFIGURATIONS:
        source = inspect(write_folder(tmp_path / name, name))
        expected = expected_shapes(source.decoder, source.parts)
        assert set(source.parts) - {"embedding.weight", "head.weight"} == set(expected)
