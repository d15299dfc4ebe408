"""The memory arithmetic against every published figure, and the graph reader against graphs made by onnx."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from coe_cli.core.hardware.profile import PerSlotEstimate, Provider
from coe_cli.core.memory.footprint import ExactAccounting, FormulaAccounting, GuideAccounting, ModelMemory
from coe_cli.core.models.catalog import ModelShape
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec, spec_from_catalog
from coe_cli.core.models.onnx_graph import GraphFacts
from coe_cli.core.providers import cpu, cuda, dml
from coe_cli.core.units import power_of_two
from coe_cli.runtime.folders import catalog_paths
from coe_cli.runtime.model_folder.graph_files import read_graph
from coe_cli.runtime.settings import load_catalog

CATALOG = load_catalog(catalog_paths()[:1])
CONSTANTS = PerSlotEstimate()


def memory(name: str, provider: Provider = "dml") -> ModelMemory:
    return ModelMemory(spec_from_catalog(name, CATALOG.models[name]), provider)


def made(shape: ModelShape, files_mb: float, provider: Provider, **known: object) -> ModelMemory:
    spec = ModelSpec("m", "disk", provider, 32768, shape, round(files_mb * BYTES_PER_MB))
    return ModelMemory(spec, provider, **{"has_tokenizer": False, **known})  # type: ignore[arg-type]


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
        model = memory(name, provider)
        assert model.on.kv_cache_bytes(model, 8192) == mb_at_8192 * BYTES_PER_MB


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
Q_TENSORS = {
    4_243_456: 84,
    33_947_648: 84,
    7_168: 57,
    8_257_536: 28,
    6_422_528: 28,
    1_032_192: 28,
    9_216: 28,
    802_816: 28,
    4_194_304: 2,
    34_062_336: 1,
    272_498_688: 1,
    1_089_994_752: 1,
}
S_TENSORS = {
    22_544_384: 96,
    2_818_048: 96,
    8_192: 65,
    25_165_824: 32,
    3_145_728: 32,
    1_048_576: 32,
    8_388_608: 32,
    4_194_304: 2,
    262_275_072: 1,
    65_568_768: 1,
    8_196_096: 1,
}
"""Size → how many of the tensors in the files of random models in these shapes."""


def on_cuda(name: str, chunk_size: int | None = None) -> ModelMemory:
    """``Q`` or ``S`` with all logits (``a``) or a pruned head (``p``)."""
    shape, inner, tensors = (Q_SHAPE, 18944, Q_TENSORS) if name[0] == "Q" else (S_SHAPE, 11008, S_TENSORS)
    sizes = tuple(size for size, count in tensors.items() for _ in range(count))
    graph = GraphFacts(2, name[1] == "p", inner, 4608 if name[0] == "Q" else 12288, initializer_bytes=sizes)
    return made(shape, sum(sizes) / BYTES_PER_MB, "cuda", graph=graph, chunk_size=chunk_size)


@pytest.mark.parametrize(("name", "measured_mb"), [("Qa", 5356), ("Qp", 5356), ("Sa", 4162), ("Sp", 4162)])
def test_cuda_loads_measured_on_a_gpu(name: str, measured_mb: float) -> None:
    model = on_cuda(name)
    assert (model.on.load_bytes(model) - cuda.CONTEXT_BYTES) / BYTES_PER_MB == pytest.approx(measured_mb, rel=0.005)


def measured_rows(file: str) -> list[dict[str, Any]]:
    lines = (Path(__file__).parent / "fixtures" / "plan_accuracy" / file).read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("file", "rows", "within"),
    [("cuda_fitted.jsonl", 20, 0.005), ("cuda_predicted.jsonl", 56, 0.05), ("cuda_again.jsonl", 8, 0.005)],
)
def test_cuda_peaks_measured_on_a_gpu(file: str, rows: int, within: float) -> None:
    """The rows that the model of memory was made with, those of other lengths that it was then held against, and some again on another card."""
    found = measured_rows(file)
    assert len(found) == rows
    for row in found:
        model, context = on_cuda(row["model"], row["chunk_size"]), row["context_length"]
        activation = model.on.activation_bytes(model, context, row["prompt_tokens"])
        predicted = (
            model.on.load_bytes(model) + model.on.kv_cache_bytes(model, context) + activation - cuda.CONTEXT_BYTES
        )
        assert predicted / BYTES_PER_MB == pytest.approx(row["measured_mb"], rel=within), row


def test_the_page_on_memory_has_the_measured_rows() -> None:
    """``python benchmarks/plan_accuracy.py table FILE`` writes the tables of docs/memory.md."""
    shown: list[dict[str, str]] = []
    header: list[str] = []
    for line in (REPOSITORY / "docs" / "memory.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        header = header if cells and header else [cell.removesuffix(" again") for cell in cells]
        shown.append(dict(zip(header, cells, strict=False)))
    for file in (Path(__file__).parent / "fixtures" / "plan_accuracy").glob("*.jsonl"):
        for row in measured_rows(file.name):
            context = str(row["context_length"] or "loaded")
            wanted = {"model": row["model"], "context": context, "measured": f"{row['measured_mb']:.0f}"}
            wanted |= {"predicted": f"{row['predicted_mb']:.0f}"} if "predicted_mb" in row else {}
            wanted |= {"prompt": str(row["prompt_tokens"] or "")} if "prompt_tokens" in row else {}
            wanted |= {"slots": str(row["slots"]), "prompts": row["prompts"]} if "prompts" in row else {}
            assert any(wanted.items() <= cells.items() for cells in shown), (file.name, wanted)


def on_webgpu(name: str, chunk_size: int | None) -> ModelMemory:
    """A shape of ``webgpu_shapes.json``, with its graph's tensors."""
    facts = json.loads((Path(__file__).parent / "fixtures" / "plan_accuracy" / "webgpu_shapes.json").read_text())[name]
    sizes = tuple(size for size, count in facts["tensors"] for _ in range(count))
    graph = GraphFacts(2, True, facts["intermediate_size"], facts["qkv_size"], initializer_bytes=sizes)
    return made(ModelShape(*facts["shape"]), sum(sizes) / BYTES_PER_MB, "webgpu", graph=graph, chunk_size=chunk_size)


@pytest.mark.parametrize(("file", "rows"), [("webgpu_fitted.jsonl", 29), ("webgpu_predicted.jsonl", 26)])
def test_webgpu_peaks_measured_on_two_cards(file: str, rows: int) -> None:
    """The rows that the model was made with, on one card, and those predicted before they were measured, on another."""
    found = measured_rows(file)
    assert len(found) == rows
    for row in found:
        model, context = on_webgpu(row["model"], row["chunk_size"]), row["context_length"]
        peak = (
            model.on.load_bytes(model)
            + model.on.kv_cache_bytes(model, context)
            + model.on.activation_bytes(model, context, row["prompt_tokens"])
        )
        assert peak / BYTES_PER_MB == pytest.approx(row["measured_mb"], rel=0.05), row
        assert model.on.load_bytes(model) / BYTES_PER_MB == pytest.approx(row["measured_load_mb"], rel=0.012)


@pytest.mark.parametrize(
    ("name", "context", "measured_mb"),
    [("7b", 4096, 6010), ("7b", 2048, 5878), ("small", 4096, 592), ("mid", 4096, 1145), ("deep", 4096, 1349)],
)
def test_webgpu_workers_measured_after_prompts_of_many_lengths(name: str, context: int, measured_mb: float) -> None:
    model = on_webgpu(name, 512)
    slot = ExactAccounting().slot(model, context, 1)
    planned_mb = (model.on.load_bytes(model) + slot.total_bytes) / BYTES_PER_MB
    assert measured_mb <= planned_mb <= measured_mb * 1.05
    assert ExactAccounting().slot(model, context, 1, before=1).total_bytes == model.on.kv_cache_bytes(model, context)


def test_cpu_peaks_of_the_embedded_model_measured_in_real_processes() -> None:
    facts = (Path(__file__).parent / "fixtures" / "plan_accuracy" / "cpu_smollm2_graph.json").read_bytes()
    graph = msgspec.json.decode(facts, type=GraphFacts)
    found = measured_rows("cpu_smollm2.jsonl")
    assert len(found) == 30
    for row in found:
        known = msgspec.structs.replace(graph, prunes_logits=row["prunes_logits"])
        model = made(SMOL_SHAPE, 0, "cpu", graph=known, chunk_size=row["chunk_size"])
        context = row["context_length"]
        running = model.on.load_bytes(model) + model.on.kv_cache_bytes(model, context)
        running += model.on.activation_bytes(model, context, row["prompt_tokens"])
        predicted = max(running, model.on.load_peak_bytes(model)) - cpu.PROCESS_BYTES
        assert predicted / BYTES_PER_MB == pytest.approx(row["measured_mb"], rel=0.05), row


def test_cpu_workers_measured_after_many_prompts() -> None:
    """Real workers of the embedded model, one and several slots: the plan is above their peak, by 5 % at most."""
    facts = (Path(__file__).parent / "fixtures" / "plan_accuracy" / "cpu_smollm2_graph.json").read_bytes()
    graph, counting = msgspec.json.decode(facts, type=GraphFacts), ExactAccounting()
    found = measured_rows("cpu_workers.jsonl")
    assert {row["slots"] for row in found} == {1, 2, 3} and {row["prunes_logits"] for row in found} == {True, False}
    for row in found:
        known = msgspec.structs.replace(graph, prunes_logits=row["prunes_logits"])
        model = made(SMOL_SHAPE, 0, "cpu", graph=known, chunk_size=512, has_tokenizer=True)
        slots = [counting.slot(model, row["context_length"], before=number) for number in range(row["slots"])]
        planned_mb = (model.on.load_bytes(model) + sum(slot.total_bytes for slot in slots)) / BYTES_PER_MB
        assert row["measured_mb"] * 0.995 <= planned_mb <= row["measured_mb"] * 1.05, row


def test_another_slot_on_the_cpu_brings_its_cache_and_its_logits() -> None:
    counting = ExactAccounting()
    for graph, logits in ((SMOL_PRUNED, 4 * 49152), (SMOL, 512 * 4 * 49152)):
        model = made(SMOL_SHAPE, 0, "cpu", graph=graph, chunk_size=512)
        first, second = (counting.slot(model, 4096, before=number) for number in range(2))
        assert (second.kv_bytes, second.activation_bytes) == (first.kv_bytes, logits)
        assert first.activation_bytes > logits


def test_directml_keeps_a_pool_for_each_power_of_two() -> None:
    """Prompts of 512, 256, … tokens: those that round to one power of two share a pool, and the logits are all alike."""
    model = made(SMOL_SHAPE, 0, "dml", graph=SMOL_PRUNED, chunk_size=512)
    logits = dml.rounded(2 * 49_152) + dml.rounded(4 * 49_152)
    temporaries = {model.on.activation_bytes(model, 4096, 512 >> halved) - logits for halved in range(10)}
    assert temporaries == {2**29, 2**28, 2**27}
    assert ExactAccounting().slot(model, 4096).activation_bytes == sum(temporaries) + logits
    assert ExactAccounting().slot(model, 4096, before=1).activation_bytes == 0, "the first slot's serve the others"


@pytest.mark.parametrize(
    ("context", "prompt", "asked_mb"), [(2048, 8, 129), (2048, 512, 257), (2048, 2000, 1026), (8192, 512, 1026)]
)
def test_prompts_measured_on_directml(context: int, prompt: int, asked_mb: float) -> None:
    """SmolLM2-135M, by what was asked of Direct3D 12 (docs/memory.md)."""
    model = made(SMOL_SHAPE, 0, "dml", graph=SMOL_PRUNED)
    assert model.on.activation_bytes(model, context, prompt) / BYTES_PER_MB == pytest.approx(asked_mb, rel=0.01)


def test_directml_measured_on_a_card() -> None:
    """SmolLM2-135M's process in all, after its load, with a generator, with a prompt; the device and upload heaps (49 and 89 MB,
    the middle of 62 to 116) are the fixed part's."""
    graph = msgspec.structs.replace(SMOL_PRUNED, cache_element_bytes=2)
    model, found = made(SMOL_SHAPE, 127, "dml", graph=graph), measured_rows("dml_smollm2.jsonl")
    assert len(found) == 9
    for row in found:
        context, prompt = row["context_length"], row["prompt_tokens"]
        planned = model.on.load_bytes(model) + model.on.kv_cache_bytes(model, context)
        planned += model.on.activation_bytes(model, context, prompt) if prompt else 0
        assert planned / BYTES_PER_MB + 49 + 89 == pytest.approx(row["measured_mb"], rel=0.05), row
    assert model.on.kv_cache_bytes(model, 2730) == model.on.kv_cache_bytes(model, 2048), (
        "three heads leave room in a power of two"
    )
    slots = [ExactAccounting().slot(model, 2048, before=number).total_bytes / BYTES_PER_MB for number in range(2)]
    assert slots[1] == 60, "64 were measured beside the first generator: its cache and nothing else"


def test_the_plan_of_a_slot_is_never_below_what_a_row_measured() -> None:
    for row in measured_rows("cuda_predicted.jsonl"):
        model = on_cuda(row["model"], row["chunk_size"])
        slot = ExactAccounting().slot(model, row["context_length"])
        planned = model.on.load_bytes(model) + slot.total_bytes - cuda.CONTEXT_BYTES
        assert planned / BYTES_PER_MB >= row["measured_mb"] * 0.999, row


@pytest.mark.parametrize(("name", "measured_mb"), [("Qp", 6672), ("Qa", 6674), ("Sp", 11464), ("Sa", 11720)])
def test_three_cuda_slots_measured_on_a_gpu(name: str, measured_mb: float) -> None:
    """Slots of 4096 tokens, each after a prompt of 64: the cache's arena in the plan is the measured one."""
    model, counting = on_cuda(name, chunk_size=64), ExactAccounting()
    slots = sum(counting.slot(model, 4096, before=number).total_bytes for number in range(3))
    assert (model.on.load_bytes(model) + slots - cuda.CONTEXT_BYTES) / BYTES_PER_MB == pytest.approx(
        measured_mb, rel=0.05
    )


PAGED_LOAD_MB = 6262
"""Planned for the model of these rows, which is of Q4_K_M's mixture."""


@pytest.mark.parametrize(
    ("slots", "context", "measured_mb"),
    [(1, 4096, 6988), (8, 4096, 8784), (4, 8192, 8524), (3, 2048, 6992), (8, 8192, 10824)],
)
def test_paged_slots_measured_on_a_gpu(slots: int, context: int, measured_mb: float) -> None:
    model, counting = on_cuda("Qp", chunk_size=512), ExactAccounting()
    assert model.graph is not None
    model = msgspec.structs.replace(model, graph=msgspec.structs.replace(model.graph, block_tokens=256))
    each = [counting.slot(model, context, before=number) for number in range(slots)]
    planned_mb = PAGED_LOAD_MB + sum(slot.total_bytes for slot in each) / BYTES_PER_MB
    assert measured_mb <= planned_mb <= 1.06 * measured_mb
    assert all(slot.kv_bytes >= 0 and slot.activation_bytes >= 0 for slot in each)
    assert model.on.kv_cache_bytes(model, context - 100) == model.on.kv_cache_bytes(model, context), "whole blocks"


SMOL_SHAPE = ModelShape(30, 576, 9, 3, 64, 49152)
SMOL = GraphFacts(4, False, 1536, 960, 91_459_584, 16_809_984, 28_311_552, 0, 0, 28_311_552, 21_905_792)
SMOL_PRUNED = GraphFacts(4, True, 1536, 960, 91_459_584, 16_809_984, 28_311_552, 0, 0, 28_311_552, 21_905_792)
GQA_SHAPE = ModelShape(12, 1024, 16, 2, 64, 65536)
GQA_PRUNED = GraphFacts(4, True, 4864, 1280, 137_363_456, 34_340_864, 33_554_432, 4096, 268_435_456, 0, 36_540_416)
NO_GQA_SHAPE = ModelShape(16, 768, 12, 12, 64, 32000)
NO_GQA = GraphFacts(4, True, 2048, 2304, 68_911_104, 17_227_776, 12_288_000, 3072, 98_304_000, 0, 19_426_304)


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
    running = (
        model.on.load_bytes(model)
        + model.on.kv_cache_bytes(model, context)
        + model.on.activation_bytes(model, context, prompt)
    )
    predicted = max(running, model.on.load_peak_bytes(model)) - cpu.PROCESS_BYTES
    assert predicted / BYTES_PER_MB == pytest.approx(measured_mb, rel=0.05)


def test_dml_rounds_each_tensor_up_and_never_below_64_kib() -> None:
    assert [dml.rounded(size) for size in (0, 1, 65_536, 65_537, 3 * 2**20)] == [0, 65_536, 65_536, 131_072, 4 * 2**20]
    deepseek = memory("DeepSeek-R1-Distill-Qwen-7B-DML")
    assert deepseek.on.kv_cache_bytes(deepseek, 5000) == deepseek.on.kv_cache_bytes(deepseek, 8192)
    assert deepseek.on.kv_cache_bytes(deepseek, 8193) == 2 * deepseek.on.kv_cache_bytes(deepseek, 8192)


def test_the_graphs_element_size_wins_over_the_providers() -> None:
    assert memory("BioMistral-7B-DML", "cpu").element_bytes == 4
    assert memory("BioMistral-7B-DML", "dml").element_bytes == 2
    assert made(SMOL_SHAPE, 1, "cpu", graph=GraphFacts(cache_element_bytes=2)).element_bytes == 2


def test_logits_cost_what_the_graph_says_and_a_chunk_bounds_them() -> None:
    every, last = made(SMOL_SHAPE, 1, "cpu", graph=SMOL), made(SMOL_SHAPE, 1, "cpu", graph=SMOL_PRUNED)
    assert every.on.activation_bytes(every, 512, 512) - last.on.activation_bytes(last, 512, 512) == 511 * 49152 * 4
    chunked = made(SMOL_SHAPE, 1, "cpu", graph=SMOL, chunk_size=512)
    assert chunked.on.activation_bytes(chunked, 4096, 4096) == every.on.activation_bytes(every, 512, 512)
    assert made(SMOL_SHAPE, 1, "cpu").logits_for_every_token
    assert not made(SMOL_SHAPE, 1, "cpu", prunes_logits=True).logits_for_every_token


@given(st.sampled_from(["dml", "cuda", "cpu"]), st.sampled_from(sorted(CATALOG.models)), st.integers(1, 2**17))
def test_a_longer_context_never_takes_less(provider: Provider, name: str, context: int) -> None:
    model, counting = memory(name, provider), ExactAccounting()
    assert counting.slot(model, context + 1).total_bytes >= counting.slot(model, context).total_bytes


@pytest.mark.long
@settings(max_examples=25)
@given(st.integers(1, 2**15), st.integers(0, 20), st.sampled_from([None, 64, 512]), st.sampled_from(["Qa", "Sp"]))
def test_another_slot_on_cuda_takes_at_least_its_cache(context: int, before: int, chunk: int | None, name: str) -> None:
    model = on_cuda(name, chunk)
    slot = ExactAccounting().slot(model, context, before=before)
    assert slot.kv_bytes == model.on.kv_cache_bytes(model, context)
    assert slot.total_bytes >= slot.kv_bytes


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
        embedding_row_bytes=256,
        embedding_bytes=8192 * 256,
        folded_bytes=0,
        other_bytes=768,
        layers=1,
        kv_heads=2,
        head_size=32,
        vocab_size=8192,
        weights={"int4, blocks of 32": 1, "int8, blocks of 32": 1},
        initializer_bytes=(8192 * 256, 96 * 32, 192 * 4),
    )


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
