"""Plans: the guide's scenarios, monotony, tight solutions, pressure, preload, warnings."""

from __future__ import annotations

import math
import re

import pytest
from conftest import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec import structs

from coe_cli.core.hardware.profile import HardwareProfile, PressureThresholds, Provider
from coe_cli.core.memory.footprint import ACCOUNTING_NAMES, AccountingName, ExactAccounting, ModelMemory, accounting
from coe_cli.core.memory.planner import Plan, plan
from coe_cli.core.memory.pressure import PressureLevel, pressure, pressure_level
from coe_cli.core.memory.scenario import Known, Role, Scenario, working_set
from coe_cli.core.memory.solve import largest_context, most_slots, smallest_budget_mb
from coe_cli.core.models.model_spec import BYTES_PER_MB, spec_from_catalog
from coe_cli.core.models.onnx_graph import GraphFacts
from coe_cli.core.scheduling.scheduler import Scheduler
from coe_cli.core.scheduling.scheduler_events import Event, Load, Loaded, Request, Start
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig
from coe_cli.runtime.folders import catalog_paths, profile_paths
from coe_cli.runtime.settings import load_catalog, load_profiles

CATALOG = load_catalog(catalog_paths()[:1])
PROFILES = load_profiles(profile_paths()[:1])
DEEPSEEK, CODER, SQL, MATH = "general_reasoner", "python_backend", "sql_query", "math_expert"
MEDICAL = "medical_expert"
EXPERTS = (DEEPSEEK, CODER, SQL, MATH, MEDICAL)


def roles(*names: str) -> tuple[Role, ...]:
    return tuple(Role(name, CATALOG.experts[name].model, CATALOG.experts[name].slot_cost) for name in names)


def known(provider: Provider = "dml", chunk_size: int | None = None, **more: object) -> Known:
    models = {
        name: ModelMemory(spec_from_catalog(name, entry), provider, chunk_size=chunk_size)
        for name, entry in CATALOG.models.items()
    }
    return Known(models, **more)  # type: ignore[arg-type]


def scenario(
    *names: str, profile: HardwareProfile, provider: Provider = "dml", slots: int | None = None, context: int = 0
) -> Scenario:
    return Scenario(
        roles(*names), slots or len(names), context or profile.context_length, profile.vram_budget_mb, provider
    )


def made(profile_name: str, *names: str, accounting: AccountingName = "exact", **options: object) -> Plan:
    profile = PROFILES.select(profile_name)
    return plan(profile, scenario(*names, profile=profile, **options), known(), accounting)  # type: ignore[arg-type]


def codes(result: Plan) -> list[str]:
    return [warning.code for warning in result.warnings]


@pytest.mark.parametrize(
    ("experts", "total_mb"),
    [((CODER,), 10_000), ((CODER, DEEPSEEK), 26_000), ((CODER, SQL, MEDICAL), 26_000)],
)
def test_guide_scenarios(experts: tuple[str, ...], total_mb: int) -> None:
    result = made("standard", *experts, accounting="guide")
    assert result.total_mb == total_mb
    assert result.fits
    assert result.headroom_mb == 32_000 - total_mb


def test_weights_count_once_and_the_cache_once_a_slot() -> None:
    one, two = (made("standard", *experts, context=2048) for experts in ((DEEPSEEK,), (DEEPSEEK, "security_architect")))
    assert len(two.models) == 1
    assert two.models[0].experts == [DEEPSEEK, "security_architect"]
    assert two.total_mb - one.total_mb == pytest.approx(one.slots[0].kv_mb, abs=0.1), "its buffers serve the second"
    assert one.slots[0].kv_mb == 112


def test_slots_go_round_the_experts() -> None:
    result = made("unlimited", CODER, SQL, slots=3)
    assert [slot.expert for slot in result.slots] == [CODER, SQL, CODER]


def test_a_plan_that_does_not_fit_names_changes_that_do() -> None:
    profile, context = PROFILES.select("compact"), 8192
    result = made("compact", CODER, context=context)
    assert not result.fits
    change = next(warning.message for warning in result.warnings if warning.code == "does_not_fit")
    assert f"--context {result.max_context}" in change
    smaller = scenario(CODER, profile=profile, context=result.max_context)
    assert plan(profile, smaller, known()).fits
    assert "--chunk-size" not in change, "DirectML reads a prompt whole"
    wanted = scenario(CODER, profile=profile, context=context)
    richer = structs.replace(wanted, budget_mb=int(change.rsplit(" ", 1)[1]))
    assert plan(profile, richer, known()).fits


def test_smaller_pieces_are_named_where_prompts_are_read_in_pieces() -> None:
    profile = PROFILES.select("minimal")
    wanted = scenario(CODER, profile=profile, provider="cuda")
    short = structs.replace(wanted, budget_mb=round(plan(profile, wanted, known("cuda", chunk_size=128)).total_mb) + 1)
    result = plan(profile, short, known("cuda"))
    change = next(warning.message for warning in result.warnings if warning.code == "does_not_fit")
    assert "--chunk-size 128" in change
    assert plan(profile, short, known("cuda", chunk_size=128)).fits


providers = st.sampled_from(["dml", "cuda", "cpu"])
some_experts = st.lists(st.sampled_from(EXPERTS), min_size=1, max_size=3, unique=True)


@settings(max_examples=examples(60))
@given(
    some_experts,
    providers,
    st.sampled_from(ACCOUNTING_NAMES),
    st.integers(16, 20_000),
    st.integers(1, 8),
    st.integers(2_500, 200_000),
)
def test_plans_are_monotone(
    experts: list[str], provider: Provider, name: AccountingName, context: int, slots: int, budget: int
) -> None:
    profile, facts = PROFILES.select("standard"), known(provider)
    base = structs.replace(
        scenario(*experts, profile=profile, provider=provider), context_length=context, slots=slots, budget_mb=budget
    )
    counting = accounting(name, profile.vram_components.per_slot_estimate)
    smallest = smallest_budget_mb(profile, base, facts, counting)
    for more in (structs.replace(base, context_length=context + 1), structs.replace(base, slots=slots + 1)):
        assert smallest_budget_mb(profile, more, facts, counting) >= smallest
    richer = structs.replace(base, budget_mb=budget + 1)
    assert largest_context(profile, richer, facts, counting) >= largest_context(profile, base, facts, counting)
    assert most_slots(profile, richer, facts, counting) >= most_slots(profile, base, facts, counting)
    assert plan(profile, richer, facts, name).fits >= plan(profile, base, facts, name).fits


@settings(max_examples=examples(60))
@given(some_experts, providers, st.sampled_from(ACCOUNTING_NAMES), st.integers(3_000, 120_000), st.integers(1, 4))
def test_solutions_are_tight(
    experts: list[str], provider: Provider, name: AccountingName, budget: int, slots: int
) -> None:
    profile, facts = PROFILES.select("standard"), known(provider)
    base = structs.replace(scenario(*experts, profile=profile, provider=provider), budget_mb=budget, slots=slots)
    counting = accounting(name, profile.vram_components.per_slot_estimate)

    def fits(**change: int) -> bool:
        return plan(profile, structs.replace(base, **change), facts, name).fits

    context = largest_context(profile, base, facts, counting)
    limit = min(facts.models[role.model].spec.context_length for role in base.roles)
    assert context == 0 or fits(context_length=context)
    assert context == limit or not fits(context_length=max(context + 1, 16))
    most = most_slots(profile, base, facts, counting)
    assert most == 0 or fits(slots=most)
    assert most == 1024 or not fits(slots=most + 1)
    vram = smallest_budget_mb(profile, base, facts, counting)
    assert fits(budget_mb=vram)
    assert not fits(budget_mb=vram - 1)


@pytest.mark.parametrize(
    ("ratio", "level"),
    [
        (0, "normal"),
        (0.799, "normal"),
        (0.8, "elevated"),
        (0.9, "high"),
        (0.95, "high"),
        (0.9501, "critical"),
        (2, "critical"),
    ],
)
def test_pressure_levels(ratio: float, level: PressureLevel) -> None:
    assert pressure_level(ratio, PressureThresholds()) == level


def test_without_a_pool_pressure_is_critical_and_has_no_ratio() -> None:
    assert pressure(0, 0, PressureThresholds()).ratio is None
    assert pressure(0, -5, PressureThresholds()).level == "critical"


def test_preload_takes_the_most_useful_model_that_leaves_pressure_normal() -> None:
    profile = PROFILES.select("unlimited")
    facts = known(candidates=roles(SQL, CODER, "html_css_specialist"))
    result = plan(profile, scenario(MEDICAL, profile=profile, context=2048), facts)
    assert result.preload is not None
    assert (result.preload.model, result.preload.experts) == (
        CATALOG.experts[CODER].model,
        [CODER, "html_css_specialist"],
    )
    full = structs.replace(scenario(MEDICAL, profile=profile), budget_mb=round(result.total_mb) + 5000)
    assert plan(profile, full, facts).preload is None
    assert (
        plan(structs.replace(profile, preload_enabled=False), scenario(MEDICAL, profile=profile), facts).preload is None
    )


def test_warning_codes() -> None:
    assert "context_above_model_limit" in codes(made("standard", MATH, context=8192))
    assert "cache_above_guide" in codes(made("standard", SQL, context=8192))
    assert "cache_above_guide" not in codes(made("standard", CODER, context=8192))
    assert "context_not_power_of_two" in codes(made("standard", CODER, context=5000))
    assert "context_not_power_of_two" not in codes(made("standard", CODER, context=7500))
    assert "context_not_power_of_two" not in codes(made("standard", CODER, context=8192))
    assert "slots_above_profile" in codes(made("standard", CODER, slots=3))
    assert "slots_above_profile" not in codes(made("standard", CODER, slots=2))
    assert "does_not_fit" in codes(made("minimal", CODER))


@settings(max_examples=examples(60))
@given(some_experts, st.integers(0, 3), st.integers(8_000, 60_000))
def test_what_fits_and_is_not_warned_of_is_admitted_by_the_college(
    experts: list[str], more: int, budget_mb: int
) -> None:
    """The scheduler itself is asked, with one question for each slot of the plan."""
    profile, facts, slots = PROFILES.select("standard"), known(chunk_size=512), len(experts) + more
    base = structs.replace(scenario(*experts, profile=profile), slots=slots, budget_mb=budget_mb)
    result = plan(profile, base, facts)
    assume(result.fits)
    sizes = {slot.model: slot for slot in result.slots}
    first = {slot.model: slot.activation_mb for slot in reversed(result.slots)}
    weights = {
        model.name: math.ceil(model.weights_mb + first[model.name] - sizes[model.name].activation_mb)
        for model in result.models
    }
    costs = {
        name: ModelCost(weights[name], slot.kv_mb, slot.activation_mb, max_slots=slots) for name, slot in sizes.items()
    }
    pool = PoolConfig(budget_mb, profile.fixed_mb, slots)
    scheduler, running = Scheduler(pool, costs), 0
    for number, slot in enumerate(result.slots):
        events: list[Event] = [Request(number, slot.model)]
        while events:
            for decision in scheduler.handle(events.pop(), 0.0):
                running += isinstance(decision, Start)
                if isinstance(decision, Load):
                    events.append(Loaded(decision.model))
    # a whole megabyte for each part is what rounding may add in the scheduler
    near = abs(result.total_mb - profile.fixed_mb - 0.9 * result.pool_mb) <= 2 * slots + len(weights) or (
        slots == 1 and abs(result.total_mb - profile.fixed_mb - 0.95 * result.pool_mb) <= 4
    )
    assert near or (running == slots) == ("above_admission" not in codes(result))


@settings(max_examples=examples(30))
@given(some_experts, st.integers(1, 4), st.integers(8_000, 60_000))
def test_a_change_that_is_named_is_admitted(experts: list[str], slots: int, budget_mb: int) -> None:
    profile, facts = PROFILES.select("standard"), known(chunk_size=512)
    base = structs.replace(scenario(*experts, profile=profile), slots=slots, budget_mb=budget_mb)
    (message,) = [w.message for w in plan(profile, base, facts).warnings if w.code == "above_admission"] or [""]
    fields = {"--context": "context_length", "--slots": "slots", "--vram-mb": "budget_mb"}
    for option, value in re.findall(r"(--context|--slots|--vram-mb) (\d+)", message):
        changed = plan(profile, structs.replace(base, **{fields[option]: int(value)}), facts)
        assert changed.fits and "above_admission" not in codes(changed), option


def test_law_model_ends_at_2048_tokens() -> None:
    profile = PROFILES.select("unlimited")
    base = Scenario((Role("law", "law-LLM-DML"),), 1, 8192, 64_000, "dml")
    result = plan(profile, base, known())
    assert {"context_above_model_limit", "cache_above_guide"} <= set(codes(result))
    assert result.slots[0].kv_mb == 4096
    assert result.max_context == 2048


def test_card_twins_and_the_guide_are_warned_of() -> None:
    profile = PROFILES.select("standard")
    both = scenario(CODER, MATH, profile=profile)
    first, second = (CATALOG.experts[name].model for name in (CODER, MATH))
    facts = known(card_mb=24_576.0, duplicates={first: [second], second: [first]})
    found = codes(plan(profile, both, facts))
    assert "profile_above_card" in found
    assert found.count("duplicate_weights") == 1
    assert "profile_above_card" not in codes(plan(profile, both, known(card_mb=32_768.0)))
    guide, exact = (plan(profile, both, known(), name).total_mb for name in ("guide", "exact"))
    assert ("guide_differs" in codes(made("standard", CODER, MATH))) == (abs(guide - exact) > 0.25 * exact)
    reasoners = scenario(DEEPSEEK, "security_architect", profile=profile)
    assert "guide_differs" in codes(plan(profile, reasoners, known(chunk_size=512)))
    measured = plan(profile, scenario(CODER, profile=profile), known(guide_fixed_mb=30_000.0))
    (said,) = (warning.message for warning in measured.warnings if warning.code == "guide_differs")
    assert "give 37.1 GB" in said  # 8000 MB a slot and the guide's own fixed part


def test_working_set_is_one_expert_a_model_the_general_one_first() -> None:
    own = {name: expert.model for name, expert in CATALOG.experts.items()}
    assert [role.expert for role in working_set(CATALOG, own, 2)] == [DEEPSEEK, CODER]
    everyone = working_set(CATALOG, own, 100)
    assert len({role.model for role in everyone}) == len(everyone) == len(set(own.values()))
    fallback = dict.fromkeys(CATALOG.experts, CATALOG.default_model)
    assert [(role.expert, role.slot_cost) for role in working_set(CATALOG, fallback, 3)] == [(DEEPSEEK, 1)]


def test_a_paged_model_has_room_for_all_slots_from_its_load_on() -> None:
    """Two models and four slots: two of each, and the cache of each has room for four."""
    profile, counting = PROFILES.select("standard"), ExactAccounting()
    wanted = scenario(CODER, MATH, profile=profile, provider="cuda", slots=4, context=4000)
    paged = {
        name: structs.replace(memory, graph=GraphFacts(block_tokens=256))
        for name, memory in known("cuda").models.items()
    }
    result = plan(profile, wanted, Known(paged))
    one = paged[wanted.roles[0].model]
    slots = [counting.slot(one, 4000, before=number) for number in range(4)]
    assert slots[0].kv_bytes == one.spec.kv_bytes_per_token(2) * 4096, "whole blocks"
    each_mb = (counting.weights_bytes(one) + sum(slot.total_bytes for slot in slots)) / BYTES_PER_MB
    assert result.total_mb == pytest.approx(profile.fixed_mb + 2 * each_mb, abs=1)
    parts = [model.weights_mb for model in result.models] + [slot.total_mb for slot in result.slots]
    assert sum(parts) + result.fixed_mb == pytest.approx(result.total_mb, abs=1)
