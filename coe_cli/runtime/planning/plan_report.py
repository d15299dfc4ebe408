"""Everything that one `coe vram plan` asks for: the plan, the solution, the comparison."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, structs

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.memory.footprint import ACCOUNTING_NAMES, AccountingName, accounting
from coe_cli.core.memory.planner import ComparisonRow, Plan, compare_row, plan, with_solution
from coe_cli.core.memory.solve import largest_context, most_slots, smallest_budget_mb
from coe_cli.core.models.catalog import Catalog
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.planning.plan_inputs import PlanInputs, PlanRequest, gather
from coe_cli.runtime.probe import quick_card_mb
from coe_cli.runtime.routing.embedder_memory import with_measured_embedder


class Report(Struct, frozen=True):
    plan: Plan
    compare: list[ComparisonRow] | None
    notes: list[str]
    how: str | None = None
    """Whether several models stay loaded together or take turns; None for one model."""


def report(
    request: PlanRequest, profile: HardwareProfile, catalog: Catalog, where: Folders, *, compare: bool = False
) -> Report:
    """Plan what was asked.

    Raises:
        CoeError: as ``plan_inputs.gather``.
    """
    accounting, solve = request.accounting, request.solve
    card_mb = quick_card_mb(request.provider or profile.provider, where.state)
    inputs = gather(request, profile, catalog, where, card_mb)
    inputs = structs.replace(inputs, known=structs.replace(inputs.known, guide_fixed_mb=float(profile.fixed_mb)))
    # The guide counts by its own constants; the others take the embedder's memory as it was measured.
    measured = with_measured_embedder(profile, where)
    counted = profile if accounting == "guide" else measured
    if solve is None:
        result = plan(counted, inputs.scenario, inputs.known, accounting)
    else:
        result = _solved(counted, inputs, accounting, solve)
    rows = _comparison(profile, measured, inputs) if compare else None
    return Report(result, rows, inputs.notes, _how(counted, inputs, result))


def _how(profile: HardwareProfile, inputs: PlanInputs, planned: Plan) -> str | None:
    """A plan is of answers at the same time; whoever names experts may only want to ask them one after the other."""
    scenario = inputs.scenario
    of_model = {role.model: role for role in scenario.roles}
    if len(of_model) < 2:
        return None
    if planned.fits and not any(warning.code == "above_admission" for warning in planned.warnings):
        return "together: all of them stay loaded and answer at the same time"
    alone = {
        model: plan(profile, structs.replace(scenario, roles=(role,), slots=1), inputs.known).fits
        for model, role in of_model.items()
    }
    if all(alone.values()):
        return "in turns: each fits alone, and coe swaps them between questions"
    return f"not even in turns: {', '.join(model for model, fits in alone.items() if not fits)} does not fit alone"


def _solved(
    profile: HardwareProfile, inputs: PlanInputs, name: AccountingName, variable: Literal["context", "slots", "vram"]
) -> Plan:
    counting = accounting(name, profile.vram_components.per_slot_estimate)
    scenario, known = inputs.scenario, inputs.known
    if variable == "context":
        value = largest_context(profile, scenario, known, counting)
        field = "context_length"
    elif variable == "slots":
        value, field = most_slots(profile, scenario, known, counting), "slots"
    else:
        value, field = smallest_budget_mb(profile, scenario, known, counting), "budget_mb"
    solved = structs.replace(scenario, **{field: value}) if value else scenario
    result = plan(profile, solved, known, name)
    return with_solution(result if value else structs.replace(result, fits=False), variable, value)


def _comparison(profile: HardwareProfile, measured: HardwareProfile, inputs: PlanInputs) -> list[ComparisonRow]:
    """The three ways of counting without measurements, and a fourth row with them where every model has them."""
    rows = [
        compare_row(name, plan(profile if name == "guide" else measured, inputs.scenario, inputs.computed, name))
        for name in reversed(ACCOUNTING_NAMES)
    ]
    if all(role.model in inputs.calibrations for role in inputs.scenario.roles):
        rows.append(compare_row("measured", plan(measured, inputs.scenario, inputs.known, "exact")))
    return rows
