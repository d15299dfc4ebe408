"""What a model costs the college's budget: the plan's exact figures for one model and one slot of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.memory.calibration import apply
from coe_cli.core.memory.footprint import ExactAccounting
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.core.providers import on_host, spec_of
from coe_cli.core.scheduling.scheduler_state import ModelCost
from coe_cli.runtime.folders import folders
from coe_cli.runtime.planning.calibration_store import CalibrationStore
from coe_cli.runtime.planning.plan_inputs import calibration_of, memory_of

_LOAD_MB_PER_S = 1000.0
_LEAST_CONTEXT = 512
"""Tokens: with less a model is refused, for no question with its system prompt and answer would fit."""


def slot_context(spec: ModelSpec, profile: HardwareProfile) -> int:
    """The fixed context length of a slot: what profile and model allow, as a power of two (DESIGN §6).

    Where a prompt is one run of the graph (``Capabilities.prompt_pieces``), what that takes grows with the context: it is as
    much of it as one slot of the model can have alone under the profile, and never below ``_LEAST_CONTEXT``.
    """
    context = int(2 ** (min(profile.context_length, spec.context_length).bit_length() - 1))
    if spec_of(spec.provider).capabilities.prompt_pieces:
        return context
    pool_mb = profile.vram_budget_mb - profile.fixed_mb
    return _context_alone(spec, context, int(profile.pressure_thresholds.critical * pool_mb * BYTES_PER_MB))


@lru_cache(maxsize=64)
def _context_alone(spec: ModelSpec, context_length: int, most_bytes: int) -> int:
    memory, counting = memory_of(spec), ExactAccounting()
    left_bytes = most_bytes - counting.weights_bytes(memory)
    while context_length > _LEAST_CONTEXT and counting.slot(memory, context_length).total_bytes > left_bytes:
        context_length //= 2
    return context_length


def cost_in(profile: HardwareProfile, catalog: Catalog | None = None) -> Callable[[ModelSpec], tuple[ModelCost, int]]:
    """A function from a model to its cost under ``profile`` and the context length of its slots.

    The figures are those of ``coe vram plan``: computed from the graph on disk, or measured where a real run was recorded.
    What the slots of a worker on the CPU share is counted with its weights: it stays until the process ends, as they do.
    """

    def cost_of(spec: ModelSpec) -> tuple[ModelCost, int]:
        context_length = slot_context(spec, profile)
        memory = memory_of(spec)
        memory = apply(memory, calibration_of(memory, CalibrationStore(folders().state).read()))
        counting = ExactAccounting()
        slot, shared_bytes = counting.slot(memory, context_length), 0
        if on_host(memory.provider):
            another = counting.slot(memory, context_length, before=1)
            slot, shared_bytes = another, slot.total_bytes - another.total_bytes
        cost = ModelCost(
            weights_mb=(counting.weights_bytes(memory) + shared_bytes) / BYTES_PER_MB,
            kv_mb=slot.kv_bytes / BYTES_PER_MB,
            activation_mb=slot.activation_bytes / BYTES_PER_MB,
            load_s=spec.weights_bytes / BYTES_PER_MB / _LOAD_MB_PER_S,
            max_slots=profile.max_concurrent_slots,
            keep_alive_s=catalog.keep_alive_s(spec.name) if catalog is not None else None,
        )
        return cost, context_length

    return cost_of
