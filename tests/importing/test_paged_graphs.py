"""Graphs for continuous batching: every architecture that may have one, as ONNX Runtime reads it, and what coe reads of it."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import onnxruntime_genai as oga
import pytest
from conftest import REPOSITORY
from msgspec import structs

from coe_cli.core.importing.encodings import fitted, rules_for
from coe_cli.core.importing.genai_config import SpecialTokens, genai_config
from coe_cli.core.memory.footprint import ExactAccounting
from coe_cli.core.models.genai_config import parse_config
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.providers import spec_of
from coe_cli.errors import UsageError
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.importing.source import inspect
from coe_cli.runtime.importing.write_decoder import write_decoder
from coe_cli.runtime.model_folder.graph_files import read_graph
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.planning.plan_inputs import memory_of
from coe_cli.runtime.settings import load_profiles
from coe_cli.runtime.worker.engine import is_paged
from importing.configurations import CONFIGURATIONS, write_folder

UNTRIED = {"mistral-window", "phi3-head-of-24", "phi3-part-of-24", "gemma2", "gemma3"}
"""Windows, soft caps, and rotations that attention does not do itself."""
RULES = rules_for("cuda", "fp16", paged=True)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_graph_is_one_that_onnx_runtime_takes_and_its_caches_are_blocks(name: str, tmp_path: Path) -> None:
    """Types and shapes are inferred before kernels are looked for, and the CPU has none for PagedAttention."""
    source = inspect(write_folder(tmp_path / "source", name))
    decoder = source.decoder
    if name in UNTRIED:
        with pytest.raises(UsageError, match="not tried"):
            fitted(RULES, decoder)
        return
    write_decoder(decoder, source.weights(), tmp_path, RULES, "fp16")
    facts = read_graph(tmp_path / "model.onnx")
    assert (facts.block_tokens, facts.kv_heads, facts.head_size) == (256, decoder.kv_heads, decoder.head_size)
    assert (facts.layers, facts.vocab_size, facts.prunes_logits) == (decoder.layers, decoder.vocab_size, True)
    config = genai_config(decoder, spec_of("cuda"), SpecialTokens(1, (2,), 0), "model.onnx", RULES)
    content = parse_config(name, json.dumps(config).encode()).content
    assert content == config and is_paged(content), "nothing of it is dropped on the way to OGA"
    if not hasattr(oga, "TurnOptions"):
        return  # ONNX Runtime and its GenAI library before 0.18 know an older form of it
    missing = "Could not find an implementation for (PagedAttention|SimplifiedLayerNormalization|.*fp16)"
    with pytest.raises(Exception, match=missing):
        onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (tmp_path / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    oga.Config(str(tmp_path))


def test_only_what_asks_for_it_is_paged() -> None:
    assert not rules_for("cuda", "int4").paged_attention
    assert rules_for("cuda", "int4", paged=True).paged_attention


def test_a_college_counts_the_cache_of_all_slots_with_the_load(tmp_path: Path) -> None:
    source = inspect(write_folder(tmp_path / "source", "qwen2"))
    folder = tmp_path / "mine"
    folder.mkdir()
    write_decoder(source.decoder, source.weights(), folder, RULES, "fp16")
    config = genai_config(source.decoder, spec_of("cuda"), SpecialTokens(1, (2,), 0), "model.onnx", RULES)
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    profile = load_profiles([REPOSITORY / "profiles" / "hardware_profiles.yaml"]).select("standard")
    profile = structs.replace(profile, provider="cuda", max_concurrent_slots=4)
    memory, counting = memory_of(spec := spec_from_folder("mine", folder)), ExactAccounting()
    cost, context = cost_in(profile)(spec)
    slots = [counting.slot(memory, context, before=number) for number in range(4)]
    assert context == 128 and slots[0].kv_bytes == 2 * 3 * 2 * 16 * 2 * 256, "whole blocks of 256 tokens"
    assert cost.kv_mb == cost.activation_mb == 0
    whole = counting.weights_bytes(memory) + sum(slot.total_bytes for slot in slots)
    assert cost.weights_mb == pytest.approx(whole / BYTES_PER_MB)
