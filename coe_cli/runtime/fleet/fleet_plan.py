"""Everything that `coe vram plan --fleet` asks for: placement, simulation, and the smallest fleet that meets the target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coe_cli.core.fleet.fleet import Fleet, Node, fleet_of
from coe_cli.core.fleet.fleet_problem import Group, NodeKind, NodeModel, Problem, service_times
from coe_cli.core.fleet.fleet_report import (
    SCHEMA_VERSION,
    ExpertShare,
    ExpertTimes,
    FleetNode,
    FleetPlan,
    FleetRates,
    FleetReport,
    FleetTarget,
    FleetWarning,
    PlacedGroup,
    Times,
    quantiles,
)
from coe_cli.core.fleet.fleet_simulation import Samples
from coe_cli.core.hardware.profile import ProfileSet
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.names import size_words
from coe_cli.core.providers import on_host
from coe_cli.core.scheduling.scheduler_state import pool_from_profile
from coe_cli.errors import DoesNotFit, ProfileInvalid
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.fleet.fleet_placement import MOST_LOAD, Placement
from coe_cli.runtime.fleet.fleet_simulation import simulate_fleet
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.model_folder.on_disk import find_spec, models_on_disk
from coe_cli.runtime.planning.plan_inputs import answering_models
from coe_cli.runtime.progress import OnProgress, Step, ignore
from coe_cli.runtime.settings import read_document

MOST_NODES = 100_000
"""The smallest fleet is looked for up to so many nodes of each kind."""


def plan_fleet(
    path: Path, profiles: ProfileSet, catalog: Catalog, where: Folders, on_progress: OnProgress = ignore
) -> FleetReport:
    """Plan the fleet of ``path``.

    Raises:
        ProfileInvalid: the file is wrong, or has no rates for a model that would be used.
        DoesNotFit: no node of the fleet can hold the model that an expert needs.
        CoeError: OR-Tools is not installed.
    """
    fleet = fleet_of(read_document(path), profiles, catalog)
    return _Planner(fleet, problem_of(fleet, catalog, where), on_progress).report()


def problem_of(fleet: Fleet, catalog: Catalog, where: Folders) -> Problem:
    kinds = tuple(_kind(fleet, node, catalog, where) for node in fleet.nodes)
    problem = Problem(kinds, fleet.demand, fleet.balancing, fleet.simulation.spread)
    for expert in problem.unserved():
        raise DoesNotFit(
            f"no node of {fleet.path} can hold the model of `{expert}`",
            "Give a node more vram_mb, fewer slots or a shorter context; `coe vram plan` shows what one takes.",
        )
    return problem


def _kind(fleet: Fleet, node: Node, catalog: Catalog, where: Folders) -> NodeKind:
    profile = node.profile
    on_disk = models_on_disk(where.models)
    answering = answering_models(catalog, on_disk, profile.provider, explicit=node.type.provider is not None)
    pool = pool_from_profile(profile, max_queue=fleet.simulation.max_queue)
    cost_of = cost_in(profile)
    models: dict[str, NodeModel] = {}
    for name in dict.fromkeys(answering[expert] for expert in fleet.demand):
        cost, _ = cost_of(find_spec(name, catalog, where.models))
        rates = fleet.rates_of(node, name)
        if rates is None:
            raise ProfileInvalid(
                f"{fleet.path}: there are no rates for `{name}` on `{node.name}`",
                f"Add `rates: {{{name}: {{prefill_tokens_per_s: …, decode_tokens_per_s: …}}}}` or a `default` to it.",
            )
        times = service_times(rates, cost, load_shares_device=on_host(profile.provider))
        models[name] = NodeModel(cost, rates, times)
    largest_mb = pool.thresholds.critical * pool.pool_mb
    fitting = {name for name, m in models.items() if m.cost.need_mb() <= largest_mb}
    served = {expert: answering[expert] for expert in fleet.demand if answering[expert] in fitting}
    return NodeKind(node, pool, {name: models[name] for name in models if name in fitting}, served)


class _Planner:
    """One fleet's plans, all simulated with the same seed."""

    def __init__(self, fleet: Fleet, problem: Problem, on_progress: OnProgress) -> None:
        self._fleet = fleet
        self._problem = problem
        self._placement = Placement(problem)
        self._on_progress = on_progress

    def report(self) -> FleetReport:
        fleet = self._fleet
        counts = [node.type.count for node in fleet.nodes]
        self._on_progress(Step("placing models", 0, None))
        groups = self._placement.for_counts(counts)
        plan = self._simulated(groups, counts, "simulating the fleet")
        warnings = self._warnings(groups, plan)
        target, smallest = None, None
        if fleet.target is not None:
            met = self._meets(plan) and not any(w.code == "overloaded" for w in warnings)
            target = FleetTarget(fleet.target.waiting_p95_s, met)
            smallest = self._smallest()
            if smallest is None:
                text = f"no fleet of these nodes keeps waiting at p95 within {fleet.target.waiting_p95_s:g} s"
                warnings.append(FleetWarning("target_out_of_reach", text))
        return FleetReport(
            schema_version=SCHEMA_VERSION,
            fleet=[self._node(node) for node in fleet.nodes],
            rates=[self._rates(kind, name) for kind in self._problem.kinds for name in kind.models],
            balancing=fleet.balancing,
            seed=fleet.simulation.seed,
            plan=plan,
            target=target,
            smallest=smallest,
            warnings=warnings,
        )

    # --- the smallest fleet

    def _meets(self, plan: FleetPlan) -> bool:
        target, waiting_s = self._fleet.target, plan.times.waiting_s.p95
        return target is not None and waiting_s is not None and waiting_s <= target.waiting_p95_s

    def _smallest(self) -> FleetPlan | None:
        """The cheapest fleet that meets the target: a search by halves, since waiting falls as nodes are added."""
        most = [node.type.most or MOST_NODES for node in self._fleet.nodes]
        least = self._placement.least_price(most)
        if least is None:
            return None
        highest = sum(count * node.type.price for count, node in zip(most, self._fleet.nodes, strict=True))
        best = self._at_price(least, most)
        if best is not None and self._meets(best):
            return best
        low, step = least, 1
        while True:
            price = min(low + step, highest)
            if price <= low:
                return None
            best = self._at_price(price, most)
            if best is not None and self._meets(best):
                break
            low, step = price, step * 2
        high = price
        while high - low > 1:
            middle = (low + high) // 2
            found = self._at_price(middle, most)
            if found is not None and self._meets(found):
                best, high = found, middle
            else:
                low = middle
        return best

    def _at_price(self, price: int, most: Sequence[int]) -> FleetPlan | None:
        found = self._placement.for_price(price, most)
        if found is None:
            return None
        counts, groups = found
        return self._simulated(groups, counts, "looking for the smallest fleet")

    # --- one plan

    def _simulated(self, groups: list[Group], counts: Sequence[int], stage: str) -> FleetPlan:
        settings, problem = self._fleet.simulation, self._problem
        self._on_progress(Step(stage, 0.0, 1.0))
        samples = simulate_fleet(
            problem, groups, settings, on_part=lambda part: self._on_progress(Step(stage, part, 1.0))
        )
        placement = [self._placed(group, found) for group, found in zip(groups, samples, strict=True)]
        total = Samples()
        for found in samples:
            total.add(found)
        used = [sum(group.count for group in groups if group.kind == kind) for kind in range(len(counts))]
        names = [kind.name for kind in problem.kinds]
        busy = sum(g.utilisation * g.count for g in placement) / max(1, sum(g.count for g in placement))
        return FleetPlan(
            nodes=dict(zip(names, counts, strict=True)),
            price=sum(count * k.node.type.price for count, k in zip(counts, problem.kinds, strict=True)),
            idle={n: have - need for n, have, need in zip(names, counts, used, strict=True) if have > need},
            placement=placement,
            experts=[self._expert(index, name, total) for index, name in enumerate(problem.demand)],
            requests=len(total.kinds),
            requests_per_s=round(problem.total_per_s(), 4),
            utilisation=round(busy, 4),
            swaps_per_hour=round(sum(g.swaps_per_hour for g in placement), 2),
            refused_part=_refused(_array(total.waiting_s)),
            times=_times(total),
        )

    def _placed(self, group: Group, samples: Samples) -> PlacedGroup:
        problem = self._problem
        kind = problem.kinds[group.kind]
        per_s = sum(share.part * problem.demand[share.expert].requests_per_s for share in group.shares)
        span_s = samples.span_s or 1.0
        return PlacedGroup(
            node=kind.name,
            count=group.count,
            keep=list(group.models),
            takes_turns=group.excess_mb > 0,
            resident_mb=round(kind.resident_mb(group.models), 1),
            experts=[ExpertShare(s.expert, kind.answering[s.expert], s.part) for s in group.shares],
            requests_per_s=round(per_s, 4),
            utilisation=round(problem.utilisation(group), 4),
            simulated_utilisation=round(samples.busy_s / span_s, 4),
            swaps_per_hour=round(samples.loads / span_s * 3600 * group.count, 2),
            times=_times(samples),
        )

    def _expert(self, index: int, name: str, total: Samples) -> ExpertTimes:
        mine = _array(total.kinds) == index
        return ExpertTimes(
            expert=name,
            requests_per_s=self._problem.demand[name].requests_per_s,
            refused_part=_refused(_array(total.waiting_s)[mine]),
            times=_times(total, mine),
        )

    def _warnings(self, groups: list[Group], plan: FleetPlan) -> list[FleetWarning]:
        found = []
        for group in groups:
            kind, load = self._problem.kinds[group.kind], self._problem.utilisation(group)
            if load > MOST_LOAD:
                text = (
                    f"{kind.name}: asked for {load:.0%} of what {group.count} of them can do; waiting grows without end"
                )
                found.append(FleetWarning("overloaded", text))
            if group.excess_mb > 0:
                text = (
                    f"{kind.name}: {', '.join(group.models)} need {size_words(group.excess_mb)} more than fit together and"
                    f" take turns, {plan.swaps_per_hour:g} loads an hour"
                )
                found.append(FleetWarning("swapping", text))
        if plan.refused_part:
            text = f"{plan.refused_part:.1%} of the requests find {self._fleet.simulation.max_queue} waiting and are refused"
            found.append(FleetWarning("refused", text))
        if all(not m.rates.measured for kind in self._problem.kinds for m in kind.models.values()):
            found.append(
                FleetWarning(
                    "assumed_rates", "every rate is assumed: measure with `coe bench` and set `measured: true`"
                )
            )
        return found

    def _node(self, node: Node) -> FleetNode:
        profile = node.profile
        return FleetNode(
            name=node.name,
            count=node.type.count,
            profile=profile.name,
            provider=profile.provider,
            vram_budget_mb=profile.vram_budget_mb,
            max_concurrent_slots=profile.max_concurrent_slots,
            context_length=profile.context_length,
            price=node.type.price,
            fixed_mb=profile.fixed_mb,
        )

    def _rates(self, kind: NodeKind, name: str) -> FleetRates:
        model = kind.models[name]
        return FleetRates(
            node=kind.name,
            model=name,
            prefill_tokens_per_s=model.rates.prefill_tokens_per_s,
            decode_tokens_per_s=list(model.rates.decode_totals),
            load_s=round(model.times.load_s, 3),
            overhead_s=model.rates.overhead_s,
            source="measured" if model.rates.measured else "assumed",
        )


def _array(values: Any) -> Any:
    import numpy as np

    return np.frombuffer(values, dtype=values.typecode) if len(values) else np.empty(0, dtype=values.typecode)


def _times(samples: Samples, chosen: Any = slice(None)) -> Times:
    """Quantiles of the ``chosen`` samples, all of them by default."""
    import numpy as np

    waiting, first_token, latency = (
        quantiles(np.sort(_array(values)[chosen]))
        for values in (samples.waiting_s, samples.first_token_s, samples.latency_s)
    )
    return Times(waiting, first_token, latency)


def _refused(waiting_s: Any) -> float:
    import numpy as np

    return round(float(np.isinf(waiting_s).mean()), 6) if len(waiting_s) else 0.0
