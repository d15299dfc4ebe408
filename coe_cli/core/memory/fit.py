"""Capacity in the user's words: which experts a card holds together, which in turns, and which not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct, structs

from coe_cli.core.hardware.machine import SHARE_OF_SYSTEM_MEMORY
from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet, Provider
from coe_cli.core.memory.footprint import accounting
from coe_cli.core.memory.scenario import Known, Role, Scenario, total_mb
from coe_cli.core.memory.solve import largest_context
from coe_cli.core.models.catalog import GENERAL_EXPERT
from coe_cli.core.models.model_spec import BYTES_PER_MB

READ_MB_PER_S: Final = 1000.0
"""Speed at which a model's files are read, for an estimate of the cost of a swap: an NVMe disk, not the page cache."""
LEAST_CONTEXT: Final = 1024
"""Tokens below which a slot is of little use."""

USED_WELL: Final = 0.9
"""Share of the usable memory from which on a profile's budget is worth naming."""

How = Literal["together", "in turns", "no"]


class Memory(Struct, frozen=True):
    """One device: what it is called, its memory, and the bandwidth of that where it is known; an ``integrated`` one shares the system's."""

    name: str
    memory_mb: int
    integrated: bool = False
    bandwidth_gb_s: int | None = None

    def usable_mb(self, safety_margin: float) -> int:
        """What models may take: all but a margin for the screen, or the share of an integrated card."""
        share = SHARE_OF_SYSTEM_MEMORY if self.integrated else safety_margin
        return int(self.memory_mb * share)


class ExpertFit(Struct, frozen=True):
    """One expert. ``context_length`` is the largest when its model has the memory to itself; ``swap_s`` what a question
    waits while another model gives way, 0 where none has to.
    """

    expert: str
    model: str
    how: How
    context_length: int
    weights_mb: float
    swap_s: float


class Fit(Struct, frozen=True):
    """The answer of `coe fit` for one device; its fields are the JSON contract. Memory in MB of 2**20 bytes."""

    device: str
    memory_mb: int
    budget_mb: int
    provider: Provider
    profile: str | None
    context_length: int
    together_mb: float
    experts: list[ExpertFit]
    bandwidth_gb_s: int | None = None


class FitReport(Struct, frozen=True):
    """One answer a device, and what is to be said about them."""

    devices: list[Fit]
    notes: list[str]


def nearest_profile(profiles: ProfileSet, budget_mb: int, provider: Provider) -> HardwareProfile:
    """The largest profile of ``provider`` within ``budget_mb``, else the smallest one, else the default profile."""
    own = [profile for profile in profiles.profiles.values() if profile.provider == provider]
    within = [profile for profile in own if profile.vram_budget_mb <= budget_mb]
    if within:
        return max(within, key=lambda profile: profile.vram_budget_mb)
    return min(own, key=lambda profile: profile.vram_budget_mb, default=profiles.select())


def uses_the_device(profile: HardwareProfile, budget_mb: int, provider: Provider) -> bool:
    """Whether the profile is ``provider``'s and its budget is within ``budget_mb`` and leaves little of it unused."""
    return profile.provider == provider and USED_WELL * budget_mb <= profile.vram_budget_mb <= budget_mb


def fit(
    device: Memory, profile: HardwareProfile, named: str | None, budget_mb: int, roles: Sequence[Role], known: Known
) -> Fit:
    """Place each role's model: first the general expert's, then those that serve most experts, while all fit with a slot each.

    ``profile`` gives fixed part, context and thresholds; ``named`` is the one to use, None where no profile suits.
    A model that fits alone and not beside those takes turns with them.
    """
    models = list(dict.fromkeys(role.model for role in roles))
    users = {model: [role for role in roles if role.model == model] for model in models}
    general = next((role.model for role in roles if role.expert == GENERAL_EXPERT), None)
    ranked = sorted(models, key=lambda m: (m != general, -len(users[m]), known.models[m].spec.weights_bytes))
    together: list[str] = []
    for model in ranked:
        if _fits([users[m][0] for m in (*together, model)], profile, budget_mb, known):
            together.append(model)
    experts = []
    counting = accounting("exact", profile.vram_components.per_slot_estimate)
    admitted_mb = profile.fixed_mb + profile.pressure_thresholds.critical * (budget_mb - profile.fixed_mb)
    for role in roles:
        alone = _scenario([role], profile, int(admitted_mb))
        context = largest_context(profile, alone, known, counting)
        weights_mb = counting.weights_bytes(known.models[role.model], [role.slot_cost]) / BYTES_PER_MB
        how: How = "together" if role.model in together else "in turns" if context >= LEAST_CONTEXT else "no"
        experts.append(
            ExpertFit(
                role.expert,
                role.model,
                how,
                0 if how == "no" else context,
                round(weights_mb, 1),
                round(weights_mb / READ_MB_PER_S, 1) if how == "in turns" else 0.0,
            )
        )
    used = _total([users[m][0] for m in together], profile, budget_mb, known) if together else float(profile.fixed_mb)
    return Fit(
        device=device.name,
        memory_mb=device.memory_mb,
        budget_mb=budget_mb,
        provider=profile.provider,
        profile=named,
        context_length=profile.context_length,
        together_mb=round(used, 1),
        experts=experts,
        bandwidth_gb_s=device.bandwidth_gb_s,
    )


def _scenario(roles: Sequence[Role], profile: HardwareProfile, budget_mb: int) -> Scenario:
    return Scenario(tuple(roles), len(roles), profile.context_length, budget_mb, profile.provider)


def _total(roles: Sequence[Role], profile: HardwareProfile, budget_mb: int, known: Known) -> float:
    counting = accounting("exact", profile.vram_components.per_slot_estimate)
    limit = min(known.models[role.model].spec.context_length for role in roles)
    scenario = _scenario(roles, profile, budget_mb)
    scenario = structs.replace(scenario, context_length=min(scenario.context_length, limit))
    return total_mb(scenario, known.models, counting, profile.fixed_mb)


def _fits(roles: Sequence[Role], profile: HardwareProfile, budget_mb: int, known: Known) -> bool:
    """Within what the college's scheduler admits: up to high pressure for several answers, up to critical for one."""
    thresholds = profile.pressure_thresholds
    limit = thresholds.high if len(roles) > 1 else thresholds.critical
    pool_mb = budget_mb - profile.fixed_mb
    return pool_mb > 0 and _total(roles, profile, budget_mb, known) - profile.fixed_mb <= limit * pool_mb
