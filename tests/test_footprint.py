"""The memory arithmetic against every published figure, and the graph reader against graphs made by onnx."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe_cli.core.catalog import ModelShape, load_catalog
from coe_cli.core.footprint import (
    CPU_PROCESS_BYTES,
    ExactAccounting,
    FormulaAccounting,
    GuideAccounting,
    ModelMemory,
    activation_bytes,
    cuda_growth_bytes,
    dml_rounded,
    kv_cache_bytes,
    load_bytes,
    load_peak_bytes,
    power_of_two,
)
from coe_cli.core.model_spec import BYTES_PER_MB, ModelSpec, spec_from_catalog
from coe_cli.core.onnx_graph import GraphFacts, read_graph
from coe_cli.core.profile import PerSlotEstimate, Provider
from coe_cli.runtime.folders import catalog_paths

CATALOG = load_catalog(catalog_paths()[:1])
CONSTANTS = PerSlotEstimate()


def memory(name: str, provider: Provider = "dml") -> ModelMemory:
    return ModelMemory(spec_from_catalog(name, CATALOG.models[name]), provider)


def made(shape: ModelShape, files_mb: float, provider: Provider, **known: object) -> ModelMemory:
    spec = ModelSpec("m", "disk", provider, 32768, shape, round(files_mb * BYTES_PER_MB))
    return ModelMemory(spec, provider, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "per_token", "mb_at_8192"),
    [
        ("DeepSeek-R1-Distill-Qwen-7B-DML", 57_344, 448),
        ("Qwen2.5-Coder-7B-DML", 57_344, 448),
        ("Qwen2.5-Math-7B-DML", 57_344, 448),
        ("BioMistral-7B-DML", 131_072, 1024),
        ("sqlcoder-7b-2-DML", 524_288, 4096),
        ("law-LLM-DML", 524_288, 4096),
    ],
)
def test_exact_cache_of_the_catalog_models(name: str, per_token: int, mb_at_8192: int) -> None:
    assert ExactAccounting().kv_bytes_per_token(memory(name)) == per_token
    for provider in ("dml", "cuda"):
        assert kv_cache_bytes(memory(name, provider), 8192) == mb_at_8192 * BYTES_PER_MB


def test_formula_ignores_grouped_query_attention() -> None:
    deepseek, formula = memory("DeepSeek-R1-Distill-Qwen-7B-DML"), FormulaAccounting(CONSTANTS)
    assert formula.kv_bytes_per_token(deepseek) == 401_408
    assert formula.slot(deepseek, 8192, 2).kv_bytes == 3136 * BYTES_PER_MB
    assert formula.weights_bytes(deepseek, [2]) == 5000 * BYTES_PER_MB


@pytest.mark.parametrize(("costs", "total_mb"), [([1], 10_000), ([1, 2], 26_000), ([1, 1, 1], 26_000)])
def test_guide_scenarios(costs: list[int], total_mb: int) -> None:
    guide, model = GuideAccounting(CONSTANTS), memory("Qwen2.5-Coder-7B-DML")
    slots = sum(guide.slot(model, 8192, cost).total_bytes for cost in costs)
    assert 2000 + (guide.weights_bytes(model, costs) + slots) / BYTES_PER_MB == total_mb


Q_SHAPE = ModelShape(28, 3584, 28, 4, 128, 152064)
S_SHAPE = ModelShape(32, 4096, 32, 32, 128, 32016)
Q_GRAPH = GraphFacts(2, False, 18944, largest_matrix_elements=152064 * 3584)
Q_PRUNED = GraphFacts(2, True, 18944, largest_matrix_elements=152064 * 3584)
S_PRUNED = GraphFacts(2, True, 11008, largest_matrix_elements=32016 * 4096)


@pytest.mark.parametrize(
    ("model", "prompt", "measured_mb"),
    [
        (made(Q_SHAPE, 4866, "cuda", graph=Q_GRAPH), 0, 6292),
        (made(Q_SHAPE, 4866, "cuda", graph=Q_GRAPH), 64, 6292 + 256),
        (made(Q_SHAPE, 4866, "cuda", graph=Q_GRAPH), 7000, 6292 + 256 + 3072),
        (made(Q_SHAPE, 4866, "cuda", graph=Q_PRUNED), 0, 5284),
        (made(Q_SHAPE, 4866, "cuda", graph=Q_PRUNED), 64, 5284 + 2066),
        (made(Q_SHAPE, 4866, "cuda", graph=Q_PRUNED), 7000, 5284 + 2066),
        (made(S_SHAPE, 3799, "cuda", graph=S_PRUNED), 0, 4244),
        (made(S_SHAPE, 3799, "cuda", graph=S_PRUNED), 64, 4244 + 2),
        (made(S_SHAPE, 3799, "cuda", graph=S_PRUNED), 7000, 4244 + 2 + 1024),
    ],
)
def test_cuda_figures_measured_on_a_gpu(model: ModelMemory, prompt: int, measured_mb: float) -> None:
    predicted = load_bytes(model) + (cuda_growth_bytes(model, prompt) if prompt else 0)
    assert predicted / BYTES_PER_MB == pytest.approx(measured_mb, rel=0.05)


def test_cuda_slots_measured_on_a_gpu() -> None:
    assert kv_cache_bytes(made(Q_SHAPE, 4866, "cuda", graph=Q_PRUNED), 8192) == 448 * BYTES_PER_MB
    assert kv_cache_bytes(made(S_SHAPE, 3799, "cuda", graph=S_PRUNED), 8192) == 4096 * BYTES_PER_MB


SMOL_SHAPE = ModelShape(30, 576, 9, 3, 64, 49152)
SMOL = GraphFacts(4, False, 1536, 960, 91_459_584, 16_809_984, 28_311_552, 28_311_552, 0, 0, 28_311_552, 21_905_792)
SMOL_PRUNED = GraphFacts(
    4, True, 1536, 960, 91_459_584, 16_809_984, 28_311_552, 28_311_552, 0, 0, 28_311_552, 21_905_792
)
GQA_SHAPE = ModelShape(12, 1024, 16, 2, 64, 65536)
GQA_PRUNED = GraphFacts(
    4, True, 4864, 1280, 137_363_456, 34_340_864, 33_554_432, 67_108_864, 4096, 268_435_456, 0, 36_540_416
)
NO_GQA_SHAPE = ModelShape(16, 768, 12, 12, 64, 32000)
NO_GQA = GraphFacts(
    4, True, 2048, 2304, 68_911_104, 17_227_776, 12_288_000, 24_576_000, 3072, 98_304_000, 0, 19_426_304
)


@pytest.mark.parametrize(
    ("shape", "graph", "context", "prompt", "chunk", "measured_mb"),
    [
        (SMOL_SHAPE, SMOL, 512, 16, None, 224),
        (SMOL_SHAPE, SMOL, 8192, 512, None, 675),
        (SMOL_SHAPE, SMOL, 4096, 2048, None, 851),
        (SMOL_SHAPE, SMOL, 8192, 2048, 512, 676),
        (SMOL_SHAPE, SMOL_PRUNED, 512, 256, None, 230),
        (SMOL_SHAPE, SMOL_PRUNED, 4096, 2048, None, 466),
        (SMOL_SHAPE, SMOL_PRUNED, 4096, 2048, 512, 400),
        (GQA_SHAPE, GQA_PRUNED, 8192, 16, None, 355),
        (GQA_SHAPE, GQA_PRUNED, 1024, 512, None, 351),
        (NO_GQA_SHAPE, NO_GQA, 1024, 512, None, 309),
        (NO_GQA_SHAPE, NO_GQA, 8192, 512, None, 983),
    ],
)
def test_cpu_peaks_measured_in_real_processes(
    shape: ModelShape, graph: GraphFacts, context: int, prompt: int, chunk: int | None, measured_mb: float
) -> None:
    model = made(shape, 0, "cpu", graph=graph, chunk_size=chunk)
    running = load_bytes(model) + kv_cache_bytes(model, context) + activation_bytes(model, prompt)
    predicted = max(running, load_peak_bytes(model)) - CPU_PROCESS_BYTES
    assert predicted / BYTES_PER_MB == pytest.approx(measured_mb, rel=0.05)


def test_dml_rounds_each_tensor_up_and_never_below_64_kib() -> None:
    assert [dml_rounded(size) for size in (0, 1, 65_536, 65_537, 3 * 2**20)] == [0, 65_536, 65_536, 131_072, 4 * 2**20]
    deepseek = memory("DeepSeek-R1-Distill-Qwen-7B-DML")
    assert kv_cache_bytes(deepseek, 5000) == kv_cache_bytes(deepseek, 8192)
    assert kv_cache_bytes(deepseek, 8193) == 2 * kv_cache_bytes(deepseek, 8192)


def test_the_graphs_element_size_wins_over_the_providers() -> None:
    assert memory("BioMistral-7B-DML", "cpu").element_bytes == 4
    assert memory("BioMistral-7B-DML", "dml").element_bytes == 2
    assert made(SMOL_SHAPE, 1, "cpu", graph=GraphFacts(cache_element_bytes=2)).element_bytes == 2


def test_logits_cost_what_the_graph_says_and_a_chunk_bounds_them() -> None:
    every, last = made(SMOL_SHAPE, 1, "cpu", graph=SMOL), made(SMOL_SHAPE, 1, "cpu", graph=SMOL_PRUNED)
    assert activation_bytes(every, 512) - activation_bytes(last, 512) == 511 * 49152 * 4
    chunked = made(SMOL_SHAPE, 1, "cpu", graph=SMOL, chunk_size=512)
    assert activation_bytes(chunked, 4096) == activation_bytes(every, 512)
    assert made(SMOL_SHAPE, 1, "cpu").logits_for_every_token
    assert not made(SMOL_SHAPE, 1, "cpu", prunes_logits=True).logits_for_every_token


@settings(deadline=None)
@given(st.sampled_from(["dml", "cuda", "cpu"]), st.sampled_from(sorted(CATALOG.models)), st.integers(1, 2**17))
def test_a_longer_context_never_takes_less(provider: Provider, name: str, context: int) -> None:
    model, counting = memory(name, provider), ExactAccounting()
    assert counting.slot(model, context + 1).total_bytes >= counting.slot(model, context).total_bytes


@settings(deadline=None)
@given(st.integers(1, 2**50))
def test_power_of_two_is_the_least_one_above(size: int) -> None:
    assert size <= power_of_two(size) < 2 * size
    assert power_of_two(size).bit_count() == 1


def graph_file(folder: Path, *, pruned: bool, cache_type: int) -> Path:
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["e"]),
        helper.make_node(
            "MatMulNBits",
            ["e", "qkv.weight", "qkv.scale"],
            ["q"],
            domain="com.microsoft",
            K=64,
            N=96,
            bits=4,
            block_size=32,
        ),
        helper.make_node(
            "MatMulNBits", ["q", "down.weight", "s"], ["d"], domain="com.microsoft", K=160, N=64, bits=8, block_size=32
        ),
    ]
    tensors = [
        helper.make_tensor("embedding", TensorProto.FLOAT, [8192, 64], bytes(8192 * 64 * 4), raw=True),
        helper.make_tensor("qkv.weight", TensorProto.UINT8, [96, 2, 16], bytes(96 * 32), raw=True),
        helper.make_tensor("qkv.scale", TensorProto.FLOAT, [192], bytes(192 * 4), raw=True),
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1 if pruned else "tokens", 8192])
    cache = helper.make_tensor_value_info("past_key_values.0.key", cache_type, ["batch", 2, "past", 32])
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    path = folder / "model.onnx"
    save(helper.make_model(helper.make_graph(nodes, "g", [ids, cache], [logits], tensors)), path)
    return path


@pytest.mark.parametrize(("pruned", "cache_type", "element_bytes"), [(True, 10, 2), (False, 1, 4), (False, 3, 1)])
def test_a_graph_is_read_without_onnx(tmp_path: Path, pruned: bool, cache_type: int, element_bytes: int) -> None:
    facts = read_graph(graph_file(tmp_path, pruned=pruned, cache_type=cache_type))
    assert facts == GraphFacts(
        cache_element_bytes=element_bytes,
        prunes_logits=pruned,
        intermediate_size=160,
        qkv_size=96,
        quantized_bytes=64 * 96 // 2 + 160 * 64,
        block_bytes=4 * (96 * 2 + 64 * 5),
        largest_quantized_bytes=160 * 64,
        largest_matrix_elements=160 * 64,
        embedding_row_bytes=256,
        embedding_bytes=8192 * 256,
        folded_bytes=0,
        other_bytes=768,
        layers=1,
        kv_heads=2,
        head_size=32,
        vocab_size=8192,
        weights={"int4, blocks of 32": 1, "int8, blocks of 32": 1},
    )


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_a_damaged_graph_is_a_value_error_and_never_a_crash(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        with suppress(ValueError):
            assert read_graph(path).quantized_bytes >= 0


def test_a_truncated_graph_is_no_graph(tmp_path: Path) -> None:
    path = graph_file(tmp_path, pruned=True, cache_type=1)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not an ONNX graph"):
        read_graph(path)
    with pytest.raises(OSError):
        read_graph(tmp_path / "missing.onnx")
