"""The graphs that are written for each architecture and provider: pinned by a hash, and made of what the provider has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from coe_cli.core.importing import needs
from coe_cli.core.importing.encodings import encoding_of
from coe_cli.core.models.graph_check import graph_problems
from coe_cli.runtime.importing import decoder_graph
from coe_cli.runtime.importing.source import inspect
from coe_cli.runtime.importing.write_decoder import write_decoder
from coe_cli.runtime.model_folder.graph_files import graph_records, read_graph
from importing.configurations import CONFIGURATIONS, RULES, write_folder
from importing.gguf_files import write_gguf
from importing.running import Running

GOLDEN = Path(__file__).with_name("written_graphs.json")
"""Provider → configuration → hash of the graph. Written anew by ``python -m importing.test_written_graphs`` in tests/."""


def written(name: str, provider: str, folder: Path) -> Path:
    source = inspect(write_folder(folder / "source", name))
    write_decoder(source.decoder, source.weights(), folder, RULES[provider], "int4")
    return folder / "model.onnx"


def digest(graph: Path) -> str:
    """Nodes, inputs, outputs and the form of each tensor; not what lies in the data file."""
    model = onnx.load(graph, load_external_data=False)
    lines = [
        f"{node.op_type} {list(node.input)} {list(node.output)} "
        + str(sorted((item.name, str(onnx.helper.get_attribute_value(item))) for item in node.attribute))
        for node in model.graph.node
    ]
    lines += [f"{tensor.name} {tensor.data_type} {list(tensor.dims)}" for tensor in model.graph.initializer]
    lines += [str(value) for value in [*model.graph.input, *model.graph.output]]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.long
@pytest.mark.parametrize("provider", RULES)
def test_graphs_are_what_they_were_and_the_provider_takes_them(provider: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[provider]
    found = {}
    for name in CONFIGURATIONS:
        (tmp_path / name).mkdir()
        graph = written(name, provider, tmp_path / name)
        found[name] = digest(graph)
        with graph_records(graph) as records:
            assert graph_problems(records, RULES[provider]) == []
    assert found == golden


def test_graphs_hold_what_a_provider_has(tmp_path: Path) -> None:
    operators = {}
    for provider in RULES:
        (tmp_path / provider).mkdir()
        model = onnx.load(written("llama-tied-biased", provider, tmp_path / provider), load_external_data=False)
        operators[provider] = {node.op_type for node in model.graph.node}
        attention = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
        rotates = next(item.i for item in attention.attribute if item.name == "do_rotary")
        assert rotates == (provider != "dml")
        norm = next(node for node in model.graph.node if node.op_type == "SimplifiedLayerNormalization")
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == norm.input[1])
        assert (weight.data_type == onnx.TensorProto.FLOAT) == (provider in ("cpu", "dml"))
    assert "RotaryEmbedding" in operators["dml"] and "RotaryEmbedding" not in operators["cpu"]
    assert [name for name in RULES if "GatherBlockQuantized" in operators[name]] == ["cpu"]
    assert [name for name in RULES if "Concat" in operators[name]] == ["cpu"]


@pytest.mark.parametrize("provider", RULES)
def test_a_small_model_keeps_its_quality_where_offsets_cannot_be_kept(provider: str, tmp_path: Path) -> None:
    source = inspect(write_gguf(tmp_path / "a.gguf", kind="Q4_1"))
    formats = write_decoder(source.decoder, source.weights(), tmp_path, RULES[provider], "int4")
    exact = RULES[provider].block_offsets
    assert formats["Q4_1: 4 bits, blocks of 32, exact" if exact else "Q4_1: 8 bits, blocks of 32, requantised"] >= 5
    assert encoding_of("Q4_1", RULES[provider], "int4", small=False).bits == 4


def test_a_shared_table_is_stored_once(tmp_path: Path) -> None:
    model = onnx.load(written("llama-tied-biased", "cpu", tmp_path), load_external_data=False)
    places: dict[str, list[str]] = {}
    for tensor in model.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if entry:
            places.setdefault(entry["offset"], []).append(tensor.name)
    assert ["lm_head.MatMul.codes", "model.embed_tokens.codes"] in places.values()


def test_a_shared_table_is_mapped_and_not_counted_as_loaded(tmp_path: Path) -> None:
    source = inspect(write_folder(tmp_path / "source", "llama-tied-biased", vocab_size=20_000))
    write_decoder(source.decoder, source.weights(), tmp_path, RULES["cpu"], "int4")
    facts = read_graph(tmp_path / "model.onnx")
    assert facts.embedding_bytes == 20_000 * 64 and facts.folded_bytes == 0
    head = 20_000 * 64 * (1 + 4 / 32)
    assert facts.other_bytes < head / 4, "the head's scales are stored once more for the norms and rotations, no more"


def test_a_large_model_keeps_scales_in_fp16_counted_as_the_fp32_that_the_session_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small").mkdir()
    small = written("llama", "cpu", tmp_path / "small")
    monkeypatch.setattr(decoder_graph, "SMALL_WEIGHTS", 0)
    graph = written("llama", "cpu", tmp_path)
    expected, found = (Running(path).logits([3, 17, 40, 5]) for path in (small, graph))
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    model = onnx.load(graph, load_external_data=False)
    scales = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name.endswith(".scales")}
    assert scales and {tensor.data_type for tensor in scales.values()} == {onnx.TensorProto.FLOAT16}
    cast = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Cast"}
    products = [node.input[2] for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert sorted(products) == sorted(cast[name] for name in scales if "embed_tokens" not in name)
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in scales:
            node.attribute[0].i = onnx.TensorProto.FLOAT16
    onnx.save(model, tmp_path / "not-cast.onnx")
    stored = sum(2 * tensor.dims[0] * tensor.dims[1] for name, tensor in scales.items() if name in cast)
    assert read_graph(graph).other_bytes - read_graph(tmp_path / "not-cast.onnx").other_bytes == stored


@pytest.mark.parametrize("provider", RULES)
@pytest.mark.parametrize(("columns", "large"), [(1024, False), (1024, True), (576, False)])
def test_the_disk_that_an_import_takes_is_what_it_writes(
    provider: str, columns: int, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        for module in (decoder_graph, needs):
            monkeypatch.setattr(module, "SMALL_WEIGHTS", 0)
    sizes = {"hidden_size": columns, "intermediate_size": columns, "num_hidden_layers": 1}
    source = inspect(write_folder(tmp_path / "source", "llama", **sizes))
    judged_bytes = source.needs(provider, "int4")[1] - needs._SIDE_FILES_BYTES
    write_decoder(source.decoder, source.weights(), tmp_path, RULES[provider], "int4")
    assert (tmp_path / "model.onnx.data").stat().st_size == pytest.approx(judged_bytes, rel=0.02)


@pytest.mark.parametrize("provider", RULES)
def test_head_and_table_have_blocks_of_128_where_columns_are_whole_ones(provider: str, tmp_path: Path) -> None:
    source = inspect(write_folder(tmp_path / "source", "llama", hidden_size=128))
    formats = write_decoder(source.decoder, source.weights(), tmp_path, RULES[provider], "int4")
    size, count = (128, 2) if provider == "cpu" else (32, 1)
    assert formats[f"F32: 8 bits, blocks of {size}, requantised"] == count


def test_a_table_of_its_own_is_counted_once(tmp_path: Path) -> None:
    source = inspect(write_folder(tmp_path / "source", "llama", vocab_size=20_000))
    write_decoder(source.decoder, source.weights(), tmp_path, RULES["cpu"], "int4")
    facts = read_graph(tmp_path / "model.onnx")
    assert facts.embedding_bytes == 20_000 * 64
    assert facts.other_bytes < 20_000 * 64, "scales of the table and of the head"


if __name__ == "__main__":
    import tempfile

    golden: dict[str, dict[str, str]] = {}
    for provider in RULES:
        for name in CONFIGURATIONS:
            with tempfile.TemporaryDirectory() as scratch:
                golden.setdefault(provider, {})[name] = digest(written(name, provider, Path(scratch)))
    GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
