"""What a model costs the college's budget: the plan's exact figures for one model and one slot of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.memory.calibration import apply
from coe_cli.core.memory.footprint import ExactAccounting, SlotBytes
from coe_cli.core.memory.slot_context import fitting_context
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.core.providers import spec_of
from coe_cli.core.scheduling.scheduler_state import ModelCost
from coe_cli.runtime.folders import folders
from coe_cli.runtime.planning.calibration_store import CalibrationStore
from coe_cli.runtime.planning.plan_inputs import calibration_of, memory_of

_LOAD_MB_PER_S = 1000.0


def slot_context(spec: ModelSpec, profile: HardwareProfile) -> int:
    """The fixed context length of a slot: what profile and model allow, as a power of two.

    Where a prompt is one run of the graph it is as much of that as fits (``core.memory.slot_context``).
    """
    context = int(2 ** (min(profile.context_length, spec.context_length).bit_length() - 1))
    return context if spec_of(spec.provider).capabilities.prompt_chunks else _fitting(spec, profile, context)


def context_reason(spec: ModelSpec, profile: HardwareProfile) -> tuple[str, str]:
    """Why the slots have no longer context, and what to do about a prompt that is too long for it."""
    on, context = spec_of(spec.provider), slot_context(spec, profile)
    if on.capabilities.prompt_chunks or 2 * context > min(profile.context_length, spec.context_length):
        reason = f"profile {profile.name} allows {profile.context_length}, {spec.name} {spec.context_length}"
        more = "a profile or a model with a longer context"
    else:
        reason = f"{on.label} reads a prompt whole, and profile {profile.name} has no memory for a longer one"
        more = "a profile with a larger budget (`coe vram plan -p NAME` shows its longest prompt), or the CPU (-p embedded)"
    return reason, f"Shorten the prompt to {context - 1} tokens, or choose {more}."


@lru_cache(maxsize=64)
def _fitting(spec: ModelSpec, profile: HardwareProfile, context_length: int) -> int:
    return fitting_context(profile, [memory_of(spec)], context_length)


def cost_in(profile: HardwareProfile, catalog: Catalog | None = None) -> Callable[[ModelSpec], tuple[ModelCost, int]]:
    """A function from a model to its cost under ``profile`` and the context length of its slots.

    The figures are those of ``coe vram plan``: computed from the graph on disk, or measured where a real run was recorded.
    What the slots of a worker share is counted with its weights where the second slot is known to use it again: it stays
    until the process ends, as they do. A paged cache is made with the load, for all slots.
    """

    def cost_of(spec: ModelSpec) -> tuple[ModelCost, int]:
        context_length = slot_context(spec, profile)
        memory = memory_of(spec)
        memory = apply(memory, calibration_of(memory, CalibrationStore(folders().state).read()))
        counting = ExactAccounting()
        slot, shared_bytes = counting.slot(memory, context_length), 0
        if memory.on.slots_share_buffers:
            another = counting.slot(memory, context_length, before=1)
            slot, shared_bytes = another, slot.total_bytes - another.total_bytes
        if memory.block_tokens:
            slots = (counting.slot(memory, context_length, before=n) for n in range(profile.max_concurrent_slots))
            slot, shared_bytes = SlotBytes(0, 0), sum(each.total_bytes for each in slots)
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
