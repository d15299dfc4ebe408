"""The small reader of ONNX graphs against the onnx package and against noise."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from conftest import MODEL, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coe_cli.runtime.model_folder.graph_files import external_data_sizes, read_graph


def _by_onnx(graph: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
            sizes[entry["location"]] = max(sizes.get(entry["location"], 0), end)
    return sizes


def test_the_real_model(models_dir: Path) -> None:
    facts = read_graph(models_dir / MODEL / "model.onnx")
    assert (facts.layers, facts.kv_heads, facts.vocab_size) == (30, 3, 49152)
    assert (facts.intermediate_size, facts.qkv_size, facts.cache_element_bytes) == (1536, 960, 4)
    sizes = external_data_sizes(models_dir / MODEL / "model.onnx")
    assert sizes == _by_onnx(models_dir / MODEL / "model.onnx")
    assert 0 < sizes["model.onnx.data"] <= (models_dir / MODEL / "model.onnx.data").stat().st_size


@settings(max_examples=examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.lists(st.tuples(st.sampled_from(["a.data", "dätä", None]), st.integers(0, 2**40), st.integers(0, 2**40)))
)
def test_any_graph(tmp_path: Path, tensors: list[tuple[str | None, int, int]]) -> None:
    model = onnx.ModelProto(ir_version=10, producer_name="test")
    model.graph.name = "g"
    for location, offset, length in tensors:
        tensor = model.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
        if location is None:
            tensor.raw_data = b"\0\0\0\0"
            continue
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert external_data_sizes(path) == _by_onnx(path)


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=80))
def test_noise_is_a_value_error_or_a_graph(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    try:
        assert isinstance(external_data_sizes(path), dict)
    except ValueError:
        return


@pytest.mark.parametrize("keep", [0, 1, 5, 1000, 200_000])
def test_a_graph_that_is_cut_off(tmp_path: Path, models_dir: Path, keep: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((models_dir / MODEL / "model.onnx").read_bytes()[:keep])
    with pytest.raises(ValueError):
        external_data_sizes(path)
