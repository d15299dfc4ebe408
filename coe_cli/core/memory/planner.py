"""Profile + experts + models → a plan of memory: what each model and slot takes, whether it fits, how full that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from msgspec import Struct, structs

from coe_cli.core.hardware.profile import HardwareProfile, Provider
from coe_cli.core.memory.footprint import Accounting, AccountingName, accounting, wasted_by_rounding
from coe_cli.core.memory.pressure import Pressure, pressure, pressure_level
from coe_cli.core.memory.scenario import Known, PlannedModel, PlannedSlot, Scenario, Usage, total_mb, usage
from coe_cli.core.memory.solve import largest_context, longest_prompt, most_slots, nearest_change, not_admitted
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.names import compared_sizes, size_words

WASTE_LIMIT: Final = 0.15
GUIDE_TOLERANCE: Final = 0.25
SCHEMA_VERSION: Final = 1


class PlanWarning(Struct, frozen=True):
    code: str
    message: str


class Preload(Struct, frozen=True):
    """A model that could be loaded beside the running set without leaving "normal"."""

    model: str
    experts: list[str]
    weights_mb: float


class PlannedProfile(Struct, frozen=True):
    name: str
    vram_budget_mb: int
    max_concurrent_slots: int
    context_length: int


class Solution(Struct, frozen=True):
    variable: Literal["context", "slots", "vram"]
    value: int


class Plan(Struct, frozen=True, omit_defaults=True):
    """The whole plan in MB of 2**20 bytes; its fields are the JSON contract of ``coe vram plan``."""

    schema_version: int
    accounting: AccountingName
    provider: Provider
    profile: PlannedProfile
    fixed_mb: float
    pool_mb: float
    models: list[PlannedModel]
    slots: list[PlannedSlot]
    total_mb: float
    headroom_mb: float
    pressure: Pressure
    fits: bool
    max_slots: int
    max_context: int
    preload: Preload | None
    warnings: list[PlanWarning]
    max_prompt: int
    solution: Solution | None = None


class ComparisonRow(Struct, frozen=True):
    """One way of counting the same scenario; ``measured`` is what real runs gave."""

    accounting: str
    weights_mb: float
    kv_mb: float
    activation_mb: float
    total_mb: float
    headroom_mb: float
    fits: bool


def compare_row(name: str, plan: Plan) -> ComparisonRow:
    return ComparisonRow(
        name,
        round(sum(model.weights_mb for model in plan.models), 1),
        round(sum(slot.kv_mb for slot in plan.slots), 1),
        round(sum(slot.activation_mb for slot in plan.slots), 1),
        plan.total_mb,
        plan.headroom_mb,
        plan.fits,
    )


def plan(profile: HardwareProfile, scenario: Scenario, known: Known, name: AccountingName = "exact") -> Plan:
    """Plan ``scenario`` under ``profile``: what it takes, what is left, what would still fit.

    Every model that a role names must be in ``known.models``.
    """
    counting = accounting(name, profile.vram_components.per_slot_estimate)
    used = usage(scenario, known.models, counting, profile.fixed_mb)
    pool_mb = scenario.budget_mb - profile.fixed_mb
    fits = used.total_mb <= scenario.budget_mb
    warnings = list(_warnings(profile, scenario, known, counting, used))
    if not fits:
        warnings.append(PlanWarning("does_not_fit", nearest_change(profile, scenario, known, counting)))
    elif counting.name == "exact" and (message := not_admitted(profile, scenario, known, counting)):
        warnings.append(PlanWarning("above_admission", message))
    return Plan(
        schema_version=SCHEMA_VERSION,
        accounting=name,
        provider=scenario.provider,
        profile=PlannedProfile(
            profile.name, profile.vram_budget_mb, profile.max_concurrent_slots, profile.context_length
        ),
        fixed_mb=profile.fixed_mb,
        pool_mb=pool_mb,
        models=used.models,
        slots=used.slots,
        total_mb=round(used.total_mb, 1),
        headroom_mb=round(scenario.budget_mb - used.total_mb, 1),
        pressure=pressure(used.total_mb - profile.fixed_mb, pool_mb, profile.pressure_thresholds),
        fits=fits,
        max_slots=most_slots(profile, scenario, known, counting),
        max_context=largest_context(profile, scenario, known, counting),
        preload=_preload(profile, scenario, known, counting, used),
        warnings=warnings,
        max_prompt=longest_prompt(profile, scenario, known, counting),
    )


def _preload(
    profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting, used: Usage
) -> Preload | None:
    """The model that serves the most experts of those whose weights leave the pressure "normal"."""
    pool_mb = scenario.budget_mb - profile.fixed_mb
    loaded = {model.name for model in used.models}
    best: Preload | None = None
    if not profile.preload_enabled or pool_mb <= 0:
        return None
    for name in dict.fromkeys(role.model for role in known.candidates):
        if name in loaded or name not in known.models:
            continue
        roles = [role for role in known.candidates if role.model == name]
        weights_mb = counting.weights_bytes(known.models[name], [max(r.slot_cost for r in roles)]) / BYTES_PER_MB
        ratio = (used.total_mb - profile.fixed_mb + weights_mb) / pool_mb
        if pressure_level(ratio, profile.pressure_thresholds) != "normal":
            continue
        if best is None or len(roles) > len(best.experts):
            best = Preload(name, [role.expert for role in roles], round(weights_mb, 1))
    return best


def _warnings(
    profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting, used: Usage
) -> Iterator[PlanWarning]:
    constants = profile.vram_components.per_slot_estimate
    for model in used.models:
        memory = known.models[model.name]
        context = scenario.context_length
        if context > model.context_length:
            yield PlanWarning(
                "context_above_model_limit",
                f"{model.name} ends at {model.context_length} tokens, the slots have {context}: "
                f"plan with --context {model.context_length}",
            )
        cache_mb = counting.slot(memory, context, 1).kv_bytes / BYTES_PER_MB
        cache, guide = compared_sizes(cache_mb, constants.kv_cache_8k_context)
        if counting.name == "exact" and not memory.spec.has_gqa and cache_mb > constants.kv_cache_8k_context:
            yield PlanWarning(
                "cache_above_guide",
                f"{model.name} has no grouped-query attention: {cache} of cache a slot, "
                f"more than the {guide} that a slot is often counted with",
            )
        waste = wasted_by_rounding(memory, context) if counting.name == "exact" else 0.0
        if context & (context - 1) and waste > WASTE_LIMIT:
            yield PlanWarning(
                "context_not_power_of_two",
                f"{model.name}: {memory.on.label} rounds a cache of {context} tokens up and wastes {waste:.0%} of it: "
                f"{1 << context.bit_length()} tokens cost the same",
            )
        for twin in known.duplicates.get(model.name, ()):
            if model.name < twin or twin not in {m.name for m in used.models}:
                yield PlanWarning(
                    "duplicate_weights",
                    f"{model.name} and {twin} are the same weights: use one name and they are loaded once",
                )
    if scenario.slots > profile.max_concurrent_slots:
        yield PlanWarning(
            "slots_above_profile",
            f"{scenario.slots} slots, but profile {profile.name} runs {profile.max_concurrent_slots} at once",
        )
    if known.card_mb is not None and scenario.budget_mb > known.card_mb:
        budget, card = compared_sizes(scenario.budget_mb, known.card_mb)
        yield PlanWarning(
            "profile_above_card",
            f"the budget of {budget} is more than this machine's {card}: see `coe profile check --auto`",
        )
    yield from _guide_differs(profile, scenario, known)


def _guide_differs(profile: HardwareProfile, scenario: Scenario, known: Known) -> Iterator[PlanWarning]:
    constants = profile.vram_components.per_slot_estimate
    fixed_mb = profile.fixed_mb if known.guide_fixed_mb is None else known.guide_fixed_mb
    guide = total_mb(scenario, known.models, accounting("guide", constants), fixed_mb)
    exact = total_mb(scenario, known.models, accounting("exact", constants), profile.fixed_mb)
    if abs(guide - exact) > GUIDE_TOLERANCE * exact:
        message = f"the guide's constants give {size_words(guide)}, the exact count {size_words(exact)}"
        yield PlanWarning("guide_differs", message)


def with_solution(result: Plan, variable: Literal["context", "slots", "vram"], value: int) -> Plan:
    return structs.replace(result, solution=Solution(variable, value))
