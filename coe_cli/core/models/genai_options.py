"""The allow-list of ``session_options``, ``provider_options`` and ``run_options`` in ``genai_config.json``.

OGA hands these on by name, so a key that is not listed is refused. Names are those of ONNX Runtime's
``onnxruntime_session_options_config_keys.h``; providers bring their own (``ProviderSpec.config_options``, ``session_entries``).
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
from coe_cli.core.providers import all_specs

_FLAG = matching(r"[01]")

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
    spec.name: section(
        {**_FILTER, **{key: matching(pattern) for key, pattern in spec.config_options.items()}}, handed_on=True
    )
    for spec in all_specs()
}


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
                *(entry for spec in all_specs() for entry in spec.session_entries),
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
