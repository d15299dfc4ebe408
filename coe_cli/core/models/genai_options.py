"""The allow-list of ``session_options``, ``provider_options`` and ``run_options`` in ``genai_config.json``.

OGA hands these on by name, so a key that is not listed is refused. Names are those of ONNX Runtime's
``onnxruntime_session_options_config_keys.h`` and of its providers.
"""

from __future__ import annotations

from typing import Any, Final

from coe_cli.core.models.genai_rules import (
    Refused,
    Rule,
    Walk,
    boolean,
    integer,
    join,
    list_of,
    matching,
    section,
    text,
    wrong,
)

_FLAG = matching(r"[01]")
_DIGITS = matching(r"-?\d{1,18}")

_ARENA = dict.fromkeys(
    (
        "max_mem",
        "arena_extend_strategy",
        "initial_chunk_size_bytes",
        "max_dead_bytes_per_chunk",
        "initial_growth_chunk_size_bytes",
    ),
    _DIGITS,
)
_FILTER = {
    "device_filtering_options": section(
        {
            "hardware_device_type": matching(r"(?i)cpu|gpu|npu"),
            "hardware_device_id": integer(0, 2**32 - 1),
            "hardware_vendor_id": integer(0, 2**32 - 1),
        }
    )
}
_PROVIDERS: Final[dict[str, Rule]] = {
    "cpu": section(_FILTER, handed_on=True),
    "dml": section(
        {
            **_FILTER,
            "luid": matching(r"-?\d{1,10}:-?\d{1,10}"),
            "device_index": matching(r"\d{1,4}"),
            "enable_graph_capture": _FLAG,
        },
        handed_on=True,
    ),
    "cuda": section(
        {
            **_FILTER,
            **_ARENA,
            **dict.fromkeys(
                (
                    "enable_cuda_graph",
                    "do_copy_in_default_stream",
                    "cudnn_conv_use_max_workspace",
                    "cudnn_conv1d_pad_to_nc1d",
                    "tunable_op_enable",
                    "tunable_op_tuning_enable",
                    "enable_skip_layer_norm_strict_mode",
                    "prefer_nhwc",
                    "use_ep_level_unified_stream",
                    "use_tf32",
                    "fuse_conv_bias",
                ),
                _FLAG,
            ),
            "device_id": matching(r"\d{1,4}"),
            "gpu_mem_limit": _DIGITS,
            "sdpa_kernel": _DIGITS,
            "tunable_op_max_tuning_duration_ms": _DIGITS,
            "cudnn_conv_algo_search": matching(r"EXHAUSTIVE|HEURISTIC|DEFAULT"),
        },
        handed_on=True,
    ),
    "webgpu": section(
        {
            **_FILTER,
            "enableGraphCapture": _FLAG,
            "enableInt64": _FLAG,
            "enablePIXCapture": matching("0"),
            "validationMode": matching(r"disabled|wgpuOnly|basic|full"),
            "preferredLayout": matching(r"NCHW|NHWC"),
            "powerPreference": matching(r"high-performance|low-power"),
            "storageBufferCacheMode": matching(r"disabled|lazyRelease|simple|bucket"),
            "multiRotaryCacheConcatOffset": _DIGITS,
        },
        handed_on=True,
    ),
}
"""Options by provider. Left out are those that name files or libraries, or hand over an address (``user_compute_stream``,
``gpu_external_alloc``, ``dawnProcTable``)."""


def _providers(value: Any, where: str, walk: Walk) -> dict[str, Any]:
    """One element of ``provider_options``: provider → options, under any of the spellings that OGA takes."""
    if not isinstance(value, dict):
        raise wrong(where, value, "a section")
    found = {}
    for key, options in value.items():
        canonical = key.lower().removesuffix("executionprovider")
        if canonical not in _PROVIDERS:
            raise Refused(f"has `{join(where, key)}`, a provider that coe does not run")
        found[key] = _PROVIDERS[canonical](options, join(where, key), walk)
    return found


SESSION_OPTIONS: Final = section(
    {
        "log_id": text,
        "log_severity_level": integer(0, 4),
        "log_verbosity_level": integer(0, 100),
        "intra_op_num_threads": integer(0, 1024),
        "inter_op_num_threads": integer(0, 1024),
        "enable_cpu_mem_arena": boolean,
        "enable_mem_pattern": boolean,
        "graph_optimization_level": matching(r"ORT_DISABLE_ALL|ORT_ENABLE_BASIC|ORT_ENABLE_EXTENDED|ORT_ENABLE_ALL"),
        "provider_options": list_of(_providers, 16),
        **dict.fromkeys(
            (
                "ep.dml.disable_graph_fusion",
                "ep.dml.enable_graph_capture",
                "ep.dml.enable_cpu_sync_spinning",
                "mlas.disable_kleidiai",
                "mlas.enable_gemm_fastmath_arm64_bfloat16",
                "mlas.qnbit.force_fp32",
                "mlas.use_lut_gemm",
                "optimization.enable_cast_chain_elimination",
                "optimization.enable_gelu_approximation",
                "session.allow_released_opsets_only",
                "session.disable_aot_function_inlining",
                "session.disable_cpu_ep_fallback",
                "session.disable_double_qdq_remover",
                "session.disable_prepacking",
                "session.disable_qdq_constant_folding",
                "session.disable_quant_qdq",
                "session.enable_dq_matmulnbits_fusion",
                "session.enable_quant_qdq_cleanup",
                "session.force_spinning_stop",
                "session.inter_op.allow_spinning",
                "session.intra_op.allow_spinning",
                "session.qdqisint8allowed",
                "session.set_denormal_as_zero",
                "session.strict_shape_type_inference",
                "session.use_deterministic_compute",
                "session.use_device_allocator_for_initializers",
                "session.use_env_allocators",
                "session.x64quantprecision",
            ),
            _FLAG,
        ),
        "session.dynamic_block_base": matching(r"\d{1,4}"),
        "session.graph_optimizations_loop_level": matching(r"[0-2]"),
        "session.qdq_matmulnbits_accuracy_level": matching(r"[0-4]"),
        "session.qdq_matmulnbits_block_size": matching(r"-?\d{1,4}"),
    },
    handed_on=True,
)
RUN_OPTIONS: Final = section(
    {
        "memory.enable_memory_arena_shrinkage": matching(r"((cpu|gpu):\d{1,3};?){1,8}"),
        "disable_synchronize_execution_providers": _FLAG,
    },
    handed_on=True,
)
