"""The inverse questions: the largest context, the most slots, the smallest card, the nearest change that fits."""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import structs

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.memory.footprint import Accounting, ExactAccounting
from coe_cli.core.memory.pressure import admission_share, admits
from coe_cli.core.memory.scenario import Known, Role, Scenario, total_mb
from coe_cli.core.memory.slot_context import LEAST_CONTEXT, fitting_context
from coe_cli.core.names import size_words

SMALLEST_CONTEXT = 16
MOST_SLOTS = 1024
CHUNK_SIZE = 128
"""What is proposed where chunks of ``core.memory.prefill.CHUNK_TOKENS`` do not fit: half of a prefill's speed at the most."""


def largest_context(profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting) -> int:
    """The most tokens a slot can have, up to what every model of the scenario can take; 0 if not even 16 fit."""
    limit = min((known.models[role.model].spec.context_length for role in scenario.roles), default=0)
    return _largest(
        SMALLEST_CONTEXT,
        limit,
        lambda context: _fits(profile, structs.replace(scenario, context_length=context), known, counting),
    )


def most_slots(profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting) -> int:
    """The most slots at the scenario's context that the budget holds, going round the experts; 1024 at most."""
    if not scenario.roles:
        return 0
    return _largest(
        1, MOST_SLOTS, lambda slots: _fits(profile, structs.replace(scenario, slots=slots), known, counting)
    )


def smallest_budget_mb(profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting) -> int:
    """The least whole number of megabytes that the scenario fits in."""
    return math.ceil(total_mb(scenario, known.models, counting, profile.fixed_mb))


def nearest_change(profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting) -> str:
    """One sentence: what would make the scenario fit, the smallest changes first."""
    short_mb = smallest_budget_mb(profile, scenario, known, counting) - scenario.budget_mb
    changes = _changes(profile, scenario, known, counting, 1.0)
    return f"{size_words(short_mb)} short of {size_words(scenario.budget_mb)}; it would fit with {changes}"


def longest_prompt(profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting) -> int:
    """Tokens of the longest prompt that the college takes for every model of the scenario: a slot's context less one token of answer.

    Where a prompt is one run of the graph the context is what fits (``core.memory.slot_context``). 0: it does not take even
    one answer of each.
    """
    as_planned = structs.replace(profile, vram_budget_mb=scenario.budget_mb, max_concurrent_slots=scenario.slots)
    memories = [known.models[role.model] for role in scenario.roles]
    context = fitting_context(as_planned, memories, scenario.context_length)
    context = min((context, *(memory.spec.context_length for memory in memories)))
    single = structs.replace(scenario, slots=1, context_length=context)
    each = (structs.replace(single, roles=(role,)) for role in scenario.roles)
    if not all(_admits_alone(profile, one, known, counting) for one in each):
        return 0
    return max(0, context - 1)


def runs_alone(profile: HardwareProfile, scenario: Scenario, role: Role, known: Known) -> bool:
    """Whether the college answers with the role's model when nothing else is loaded, with the context that it gives it then."""
    memory = known.models[role.model]
    context = fitting_context(profile, [memory], min(scenario.context_length, memory.spec.context_length))
    single = structs.replace(scenario, roles=(role,), slots=1, context_length=context)
    return _admits_alone(profile, single, known, ExactAccounting())


def _admits_alone(profile: HardwareProfile, single: Scenario, known: Known, counting: Accounting) -> bool:
    used_mb = total_mb(single, known.models, counting, profile.fixed_mb) - profile.fixed_mb
    return admits(used_mb, single.budget_mb - profile.fixed_mb, profile.pressure_thresholds, alone=True)


def not_admitted(profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting) -> str:
    """One sentence on a scenario that fits the budget and is more than the college's scheduler admits, else "".

    Beside other work it admits up to the threshold of high pressure, one answer alone up to critical (``core.scheduling.scheduler``).
    """
    thresholds, alone = profile.pressure_thresholds, scenario.slots == 1
    limit = admission_share(thresholds, alone=alone)
    used_mb = total_mb(scenario, known.models, counting, profile.fixed_mb) - profile.fixed_mb
    pool_mb = scenario.budget_mb - profile.fixed_mb
    if admits(used_mb, pool_mb, thresholds, alone=alone):
        return ""
    changes = _changes(profile, scenario, known, counting, limit)
    if alone:
        return f"the college refuses it, for it goes up to {limit:.0%} of the pool; it would run with {changes}"
    return f"its slots take turns, for beside other work the college goes up to {limit:.0%}; all at once with {changes}"


def _changes(profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting, limit: float) -> str:
    """Options that would bring the scenario below ``limit`` of its pool."""
    fixed_mb = profile.fixed_mb
    needed_mb = total_mb(scenario, known.models, counting, fixed_mb) - fixed_mb
    enough_mb = math.ceil(fixed_mb + needed_mb)
    inside = scenario
    if limit < 1.0:
        enough_mb = math.floor(fixed_mb + needed_mb / limit) + 1
        inside_mb = math.ceil(fixed_mb + limit * (scenario.budget_mb - fixed_mb)) - 1
        inside = structs.replace(scenario, budget_mb=inside_mb)
    changes = []
    chunked = {
        name: structs.replace(memory, chunk_size=min(memory.chunk_size or CHUNK_SIZE, CHUNK_SIZE))
        for name, memory in known.models.items()
        if memory.on.capabilities.prompt_chunks
    }
    if _fits(profile, inside, structs.replace(known, models={**known.models, **chunked}), counting):
        changes.append(f"--chunk-size {CHUNK_SIZE}")
    context = largest_context(profile, inside, known, counting)
    if LEAST_CONTEXT <= context < scenario.context_length:
        changes.append(f"--context {context}")
    slots = most_slots(profile, inside, known, counting)
    if 0 < slots < scenario.slots:
        changes.append(f"--slots {slots}")
    if not changes and (fewer := _fewer_experts(profile, inside, known, counting)):
        changes.append(f"--experts {fewer} --slots 1")
    changes.append(f"--vram-mb {enough_mb}")
    return " or ".join(changes)


def _fewer_experts(profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting) -> str:
    """The first expert that fits alone, if the scenario has several."""
    for role in scenario.roles if len(scenario.roles) > 1 else ():
        if _fits(profile, structs.replace(scenario, roles=(role,), slots=1), known, counting):
            return role.expert
    return ""


def _fits(profile: HardwareProfile, scenario: Scenario, known: Known, counting: Accounting) -> bool:
    return total_mb(scenario, known.models, counting, profile.fixed_mb) <= scenario.budget_mb


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from ``low`` to ``high`` that ``fits``, which must be monotone; 0 if ``low`` does not."""
    if high < low or not fits(low):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
