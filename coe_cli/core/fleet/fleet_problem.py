"""Where models could be kept: for each kind of node the sets of models that it can hold, and what an answer costs there.

The solver (``runtime.fleet_placement``) chooses how many nodes hold which set and how each expert's requests are shared
out among them; ``Group`` is what it answers with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from coe_cli.core.fleet.fleet import Balancing, Demand, Node, Rates
from coe_cli.core.fleet.fleet_device import ServiceTimes
from coe_cli.core.fleet.fleet_simulation import SimulatedModel, SimulatedNode, Stream
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig

MOST_PATTERNS: Final = 400
"""For each kind of node; beyond that the sets that swap the most are left out."""


class NodeModel(Struct, frozen=True):
    """One model on one kind of node: memory as its college counts it, and its speed."""

    cost: ModelCost
    rates: Rates
    times: ServiceTimes

    def service_s(self, demand: Demand) -> tuple[float, float, float]:
        """Device-seconds of a mean request: overhead, prefill, decode."""
        rates = self.rates
        return (
            rates.overhead_s,
            demand.tokens_in / rates.prefill_tokens_per_s,
            demand.tokens_out / rates.decode_totals[0],
        )


class NodeKind(Struct, frozen=True):
    """A kind of node as the planner sees it. ``answering``: expert → the model that answers for it there, if any can."""

    node: Node
    pool: PoolConfig
    models: dict[str, NodeModel]
    answering: dict[str, str]

    @property
    def name(self) -> str:
        return self.node.name

    def work_s(self, expert: str, demand: Demand) -> float:
        """Device-seconds of one request to ``expert``."""
        return sum(self.models[self.answering[expert]].service_s(demand))

    def speed(self, models: int) -> float:
        """Device-seconds a second of ``models`` that are kept: those that can be at work at once share the device."""
        speedup = self.node.type.parallel_speedup
        at_once = max(1, min(models, self.pool.max_concurrent_slots))
        return speedup[min(at_once, len(speedup)) - 1]

    def resident_mb(self, models: Iterable[str]) -> float:
        """Weights of ``models``, and of their slots the largest, as many as run at once."""
        costs = [self.models[name].cost for name in models]
        slots = sorted((math.ceil(c.kv_mb + c.activation_mb) for c in costs for _ in range(c.max_slots)), reverse=True)
        return sum(math.ceil(c.weights_mb) for c in costs) + sum(slots[: self.pool.max_concurrent_slots])

    def excess_mb(self, models: Sequence[str]) -> float:
        """What ``models`` need beyond what the scheduler lets stay loaded together; 0: none of them is ever evicted.

        Beside other work it admits up to the threshold of high pressure; a single model is never evicted for room.
        """
        if len(models) <= 1:
            return 0.0
        limit_mb = self.pool.thresholds.high * self.pool.pool_mb
        return max(0.0, self.resident_mb(models) - math.nextafter(limit_mb, 0.0))


class Pattern(Struct, frozen=True):
    """A set of models that nodes of one kind serve. ``excess_mb`` > 0: they do not fit together and take turns."""

    kind: int
    models: tuple[str, ...]
    excess_mb: float


class Share(Struct, frozen=True):
    """The part of an expert's requests that goes to a group, 0 to 1."""

    expert: str
    part: float


class Group(Struct, frozen=True):
    """``count`` equal nodes of one kind that serve ``models``; none: they have nothing to do."""

    kind: int
    count: int
    models: tuple[str, ...]
    excess_mb: float
    shares: tuple[Share, ...]


class Problem(Struct, frozen=True):
    """Demand and the kinds of nodes that can meet it."""

    kinds: tuple[NodeKind, ...]
    demand: dict[str, Demand]
    balancing: Balancing
    spread: float

    def total_per_s(self) -> float:
        return sum(demand.requests_per_s for demand in self.demand.values())

    def unserved(self) -> list[str]:
        """Experts that no kind of node can answer for."""
        return [expert for expert in self.demand if not any(expert in kind.answering for kind in self.kinds)]

    def utilisation(self, group: Group) -> float:
        """Device-seconds asked of each node of the group, ÷ what it gives, loads left out."""
        kind = self.kinds[group.kind]
        asked_s = sum(
            share.part * self.demand[share.expert].requests_per_s * kind.work_s(share.expert, self.demand[share.expert])
            for share in group.shares
        )
        return asked_s / group.count / kind.speed(len(group.models))

    def simulated(self, group: Group) -> tuple[SimulatedNode, tuple[Stream, ...]]:
        """One node of the group and what arrives there; stream kinds are indices into ``demand``."""
        kind = self.kinds[group.kind]
        models = tuple(SimulatedModel(name, kind.models[name].cost, kind.models[name].times) for name in group.models)
        node = SimulatedNode(
            pool=kind.pool,
            models=models,
            parallel_speedup=tuple(kind.node.type.parallel_speedup),
            keep=tuple(self._kept(kind, group.models)),
        )
        order = list(self.demand)
        streams = []
        for share in group.shares:
            demand, model = self.demand[share.expert], kind.answering[share.expert]
            overhead_s, prefill_s, decode_s = kind.models[model].service_s(demand)
            stream = Stream(
                kind=order.index(share.expert),
                model=group.models.index(model),
                per_s=share.part * demand.requests_per_s / group.count,
                overhead_s=overhead_s,
                prefill_s=prefill_s,
                decode_s=decode_s,
                nodes=max(1, round(group.count / share.part)) if self.balancing == "round_robin" else 1,
            )
            streams.append(stream)
        return node, tuple(streams)

    @staticmethod
    def _kept(kind: NodeKind, models: Sequence[str]) -> list[int]:
        """The first models that fit together."""
        kept: list[int] = []
        for index in range(len(models)):
            if kind.excess_mb([models[i] for i in [*kept, index]]) == 0:
                kept.append(index)
        return kept


def service_times(rates: Rates, cost: ModelCost, *, load_shares_device: bool) -> ServiceTimes:
    totals = rates.decode_totals
    return ServiceTimes(
        load_s=cost.load_s if rates.load_s is None else rates.load_s,
        evict_s=rates.evict_s,
        decode_factors=tuple(total / totals[0] for total in totals),
        load_shares_device=load_shares_device,
    )


def patterns(kinds: Sequence[NodeKind], demand: Mapping[str, Demand]) -> list[Pattern]:
    """For each kind the largest sets of models that fit, then sets that swap, the least first."""
    found: list[Pattern] = []
    for index, kind in enumerate(kinds):
        models = list(dict.fromkeys(kind.answering[expert] for expert in demand if expert in kind.answering))
        fitting = _largest_fitting(kind, models)
        found += [Pattern(index, tuple(chosen), 0.0) for chosen in fitting]
        if len(fitting) == 1 and len(fitting[0]) == len(models):
            continue
        swapping = [
            Pattern(index, tuple(chosen), kind.excess_mb(chosen))
            for size in range(2, len(models) + 1)
            if len(models) <= 8 or size in (2, 3, len(models))
            for chosen in itertools.combinations(models, size)
        ]
        swapping = sorted((p for p in swapping if p.excess_mb > 0), key=lambda p: (p.excess_mb, p.models))
        found += swapping[: max(0, MOST_PATTERNS - len(fitting))]
    return found


def _largest_fitting(kind: NodeKind, models: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets of ``models`` that fit together and to which none can be added, in the order of ``models``."""
    sets: list[frozenset[int]] = []

    def grow(chosen: tuple[int, ...], start: int) -> None:
        if len(sets) >= MOST_PATTERNS:
            return
        more = [i for i in range(len(models)) if i not in chosen and fits((*chosen, i))]
        if not more:
            if chosen and frozenset(chosen) not in sets:
                sets.append(frozenset(chosen))
            return
        for i in more:
            if i >= start:
                grow((*chosen, i), i + 1)

    def fits(chosen: tuple[int, ...]) -> bool:
        return kind.excess_mb([models[i] for i in chosen]) == 0

    grow((), 0)
    return [tuple(models[i] for i in sorted(chosen)) for chosen in sets]
