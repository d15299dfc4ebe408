"""What a model costs the college's budget: the plan's figures for one model and one slot of it."""

from __future__ import annotations

from collections.abc import Callable

from coe_cli.core.model_spec import BYTES_PER_MB, KV_ELEMENT_BYTES, ModelSpec
from coe_cli.core.profile import HardwareProfile
from coe_cli.core.scheduler_state import ModelCost

_RUNTIME_MB = 120
"""The worker process itself on the CPU: interpreter, ONNX Runtime and tokenizer."""
_LOAD_MB_PER_S = 1000.0


def slot_context(spec: ModelSpec, profile: HardwareProfile) -> int:
    """The fixed context length of a slot: what profile and model allow, as a power of two (DESIGN §6)."""
    return int(2 ** (min(profile.context_length, spec.context_length).bit_length() - 1))


def cost_in(profile: HardwareProfile) -> Callable[[ModelSpec], tuple[ModelCost, int]]:
    """A function from a model to its cost under ``profile`` and the context length of its slots."""

    def cost_of(spec: ModelSpec) -> tuple[ModelCost, int]:
        context_length = slot_context(spec, profile)
        kv_mb = spec.kv_bytes_per_token(KV_ELEMENT_BYTES[spec.provider]) * context_length / BYTES_PER_MB
        weights_mb = spec.weights_bytes / BYTES_PER_MB
        process_mb = _RUNTIME_MB if spec.provider == "cpu" else 0
        cost = ModelCost(
            weights_mb=weights_mb + process_mb,
            kv_mb=kv_mb,
            load_s=weights_mb / _LOAD_MB_PER_S,
            max_slots=profile.max_concurrent_slots,
        )
        return cost, context_length

    return cost_of
