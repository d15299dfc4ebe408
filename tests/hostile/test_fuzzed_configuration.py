"""Any ``genai_config.json``: it is refused, or nothing but what is listed here reaches ONNX Runtime GenAI."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from model_store.tiny_model import write_tiny_model

from coe_cli.core.models.genai_config import GENAI_CONFIG, MAX_CONFIG_BYTES, parse_config
from coe_cli.errors import CoeError, ModelDamaged
from coe_cli.runtime.model_folder.on_disk import spec_from_folder

# The allow-list once more, so that a key that is added to it is added in two places.
ROOT = "model search engine speculative"
MODEL = """type decoder draft encoder embedding vision speech joiner vad mtp vocab_size context_length eos_token_id
pad_token_id bos_token_id sep_token_id decoder_start_token_id image_token_id audio_token_id boa_token_id video_token_id
vision_start_token_id bot_token_id eot_token_id bor_token_id eor_token_id blank_id num_mels fft_size hop_length win_length
subsampling_factor left_context conv_context pre_encode_cache_size sample_rate chunk_samples max_symbols_per_step
left_context_samples right_context_samples preemph log_eps norm_eps tdt_durations"""
STAGE = """filename session_options run_options inputs outputs output_names_forwarder reset_session_idx run_on_prompt
run_on_token_gen is_lm_head inherit_session_options run_on_cpu"""
COMPONENT = f"""{STAGE} pipeline config_filename adapter_filename layer_types main_hidden_states sliding_window
num_attention_heads num_hidden_layers num_key_value_heads hidden_size head_size conv_cache_size spatial_merge_size patch_size
num_visual_tokens window_size silence_duration_ms prefix_padding_ms tokens_per_second threshold"""
WINDOW = "window_size pad_value alignment slide_key_value_cache slide_inputs layers cache_slack"
SEARCH = """num_beams num_return_sequences batch_size do_sample early_stopping past_present_share_buffer min_length max_length
top_k no_repeat_ngram_size chunk_size random_seed top_p temperature repetition_penalty length_penalty diversity_penalty
blank_penalty"""
SESSION = """log_id log_severity_level log_verbosity_level intra_op_num_threads inter_op_num_threads enable_cpu_mem_arena
enable_mem_pattern graph_optimization_level provider_options ep.dml.disable_graph_fusion ep.dml.enable_graph_capture
ep.dml.enable_cpu_sync_spinning mlas.disable_kleidiai mlas.enable_gemm_fastmath_arm64_bfloat16 mlas.qnbit.force_fp32
mlas.use_lut_gemm optimization.enable_cast_chain_elimination optimization.enable_gelu_approximation
session.allow_released_opsets_only session.disable_aot_function_inlining session.disable_cpu_ep_fallback
session.disable_double_qdq_remover session.disable_prepacking session.disable_qdq_constant_folding session.disable_quant_qdq
session.enable_dq_matmulnbits_fusion session.enable_quant_qdq_cleanup session.force_spinning_stop
session.inter_op.allow_spinning session.intra_op.allow_spinning session.qdqisint8allowed session.set_denormal_as_zero
session.strict_shape_type_inference session.use_deterministic_compute session.use_device_allocator_for_initializers
session.use_env_allocators session.x64quantprecision session.dynamic_block_base session.graph_optimizations_loop_level
session.qdq_matmulnbits_accuracy_level session.qdq_matmulnbits_block_size"""
RUN = "memory.enable_memory_arena_shrinkage disable_synchronize_execution_providers"
PROVIDER = """device_filtering_options luid device_index enable_graph_capture max_mem arena_extend_strategy
initial_chunk_size_bytes max_dead_bytes_per_chunk initial_growth_chunk_size_bytes enable_cuda_graph do_copy_in_default_stream
cudnn_conv_use_max_workspace cudnn_conv1d_pad_to_nc1d tunable_op_enable tunable_op_tuning_enable
enable_skip_layer_norm_strict_mode prefer_nhwc use_ep_level_unified_stream use_tf32 fuse_conv_bias device_id gpu_mem_limit
sdpa_kernel tunable_op_max_tuning_duration_ms cudnn_conv_algo_search enableGraphCapture enableInt64 enablePIXCapture
validationMode preferredLayout powerPreference storageBufferCacheMode multiRotaryCacheConcatOffset"""
DEVICE = "hardware_device_type hardware_device_id hardware_vendor_id"
ENGINE = "static_batching dynamic_batching"
BATCHING = "max_batch_size block_size num_blocks max_scheduled_tokens gpu_utilization_factor"
SPECULATIVE = "max_draft_tokens ngram_size min_adaptive_k ngram_chained_lookup cooldown"

HOSTILE_KEYS = """custom_ops_library enable_profiling tokenizer_dir shared_initializers session.optimized_model_filepath
session.model_external_initializers_file_folder_path session.load_model_format ep.context_enable ep.context_file_path
session.collect_node_memory_stats_to_file session.save_external_prepacked_constant_initializers backend_path
gpu_external_alloc user_compute_stream dawnProcTable cache_dir load_config QNN OpenVINO NvTensorRtRtx cuda dml webgpu cpu
CUDAExecutionProvider use_env_allocators __proto__ model.decoder"""
LISTS = (ROOT, MODEL, COMPONENT, WINDOW, SEARCH, SESSION, RUN, PROVIDER, DEVICE, ENGINE, BATCHING, SPECULATIVE)
KEYS = sorted({key for text in (*LISTS, HOSTILE_KEYS) for key in text.split()})
FILES = ("filename", "config_filename", "adapter_filename")


def only(value: Any, keys: str) -> dict[str, Any]:
    assert isinstance(value, dict)
    assert not set(value) - set(keys.split()), set(value) - set(keys.split())
    return value


def check_session(options: dict[str, Any]) -> None:
    only(options, SESSION)
    for provider in options.get("provider_options", []):
        for name, said in provider.items():
            assert name.lower().removesuffix("executionprovider") in ("cpu", "dml", "cuda", "webgpu")
            only(only(said, PROVIDER).get("device_filtering_options", {}), DEVICE)


def check_stage(stage: dict[str, Any], keys: str) -> None:
    only(stage, keys)
    check_session(stage.get("session_options", {}))
    only(stage.get("run_options", {}), RUN)
    only(stage.get("sliding_window", {}), WINDOW)
    pipeline = stage.get("pipeline", [])
    for stages in pipeline if isinstance(pipeline, list) else [pipeline]:
        for inner in stages.values():
            check_stage(inner, STAGE)


def check_allowed(content: dict[str, Any]) -> None:
    only(content, ROOT)
    only(content.get("search", {}), SEARCH)
    only(content.get("speculative", {}), SPECULATIVE)
    for batching in only(content.get("engine", {}), ENGINE).values():
        only(batching, BATCHING)
    for key, value in only(content["model"], MODEL).items():
        if isinstance(value, dict):
            check_stage(value, COMPONENT)
        else:
            assert key not in ("decoder", "encoder", "vision")
    check_values(content)


def check_values(value: Any, key: str = "") -> None:
    if isinstance(value, dict):
        for inner, item in value.items():
            assert inner.isprintable() and len(inner) <= 256
            check_values(item, inner)
    elif isinstance(value, list):
        assert len(value) <= 4096
        for item in value:
            check_values(item, key)
    elif isinstance(value, str):
        assert value.isprintable() and len(value) <= 512 and re.fullmatch(r"[^%]*(%d)?[^%]*", value)
        if key in FILES:
            assert not value.startswith("/") and ".." not in value.split("/") and "\\" not in value and ":" not in value
    else:
        assert value is None or isinstance(value, bool) or abs(value) < 2**33


TEXTS = [
    *("", "0", "1", "x.so", "../x.onnx", "/etc/passwd", "model.onnx", "a/../../b.onnx", "C:\\x.onnx", "%d", "%s%n"),
    *("DEFAULT", "left", "\x1b[2J", "\ud800", "\u0661", "a" * 300),
]
scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400])),
    *(st.floats(), st.sampled_from(TEXTS), st.text(max_size=5)),
)
keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=4))
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
SECTIONS = [
    "model",
    "search",
    "engine",
    "decoder",
    "vision",
    "session_options",
    "provider_options",
    "pipeline",
    "run_options",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("fuzzed") / "tiny")


@pytest.fixture(scope="module")
def whole(tiny: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((tiny / GENAI_CONFIG).read_text())
    return config


def look(tiny: Path, raw: bytes) -> bool:
    """Whether a configuration is taken; what is taken is on the list, and a second look finds nothing more to drop."""
    try:
        config = parse_config("tiny", raw)
    except ModelDamaged as refused:
        assert refused.exit_code == 4 and refused.message.isprintable() and len(refused.message) < 3000
        taken = False
    else:
        check_allowed(config.content)
        below = parse_config("tiny", config.with_files_below("files").encode())
        assert not below.notes
        assert parse_config("tiny", json.dumps(config.content).encode()).content == config.content
        taken = True
    path = tiny / GENAI_CONFIG
    path.write_bytes(raw)
    try:
        spec = spec_from_folder("tiny", tiny)
    except CoeError as refused:
        assert refused.exit_code == 4
    else:
        assert taken and spec.graph.endswith(".onnx")
    return taken


@given(st.data())
@settings(max_examples=examples(300), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_configuration_with_anything_in_it_is_refused_or_cleaned(
    tiny: Path, whole: dict[str, Any], data: st.DataObject
) -> None:
    config = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = config
        for _ in range(data.draw(st.integers(0, 5))):
            if isinstance(place, list):
                place.append({})
                place = place[-1]
                continue
            known = [key for key, item in place.items() if isinstance(item, dict | list)]
            place = place.setdefault(data.draw(st.sampled_from(sorted({*known, *SECTIONS}))), {})
            if not isinstance(place, dict | list):
                break
        if isinstance(place, list):
            place.append(data.draw(trees))
        elif isinstance(place, dict):
            place[data.draw(keys)] = data.draw(trees)
    look(tiny, json.dumps(config).encode())


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b'{"model": {}}')
@settings(max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_refused_or_cleaned(tiny: Path, raw: bytes) -> None:
    look(tiny, raw)


def test_the_untouched_configuration_is_taken(tiny: Path, whole: dict[str, Any]) -> None:
    assert look(tiny, json.dumps(whole).encode())


LARGE = {
    "a hundred thousand keys, the last one twice": b'{"model": {%s}}'
    % b",".join(b'"%x":0' % (number % 99_999) for number in range(100_000)),
    "places with long names": b'{"model": {}, %s[%s[]]%s}'
    % (b'"%s": {' % (b"k" * 80) * 60 + b'"z": ', b"[]," * 300_000, b"}" * 60),
    "a list of lists": b'{"model": {"decoder": {"layer_types": [%s[]]}}}' % (b"[]," * 300_000),
    "a long number": b'{"model": {"context_length": %s}}' % (b"1" * 4000),
    "a longer number": b'{"model": {"context_length": %s}}' % (b"1" * 1_000_000),
    "layers beside the decoder": b'{"model": {"num_hidden_layers": 1%s}}' % (b"0" * 4000),
}


@pytest.mark.long
@pytest.mark.parametrize("name", LARGE)
def test_a_megabyte_costs_no_more_than_to_read_it(tiny: Path, name: str) -> None:
    """The first two took hours and gigabytes once."""
    assert len(LARGE[name]) <= MAX_CONFIG_BYTES
    before_mb = peak_mb()
    look(tiny, LARGE[name])
    assert peak_mb() - before_mb < 500


def peak_mb() -> float:
    if sys.platform == "win32":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
