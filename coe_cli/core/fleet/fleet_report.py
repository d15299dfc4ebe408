"""The answer of ``coe vram plan --fleet``: its structs are the JSON contract, in MB of 2**20 bytes and seconds."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

from msgspec import Struct

SCHEMA_VERSION: Final = 1


class Quantiles(Struct, frozen=True):
    """None: so many were refused that there is no such time."""

    p50: float | None
    p95: float | None


class Times(Struct, frozen=True):
    """From a request's arrival to its start on a node, to the first token, and to the end of its answer."""

    waiting_s: Quantiles
    first_token_s: Quantiles
    latency_s: Quantiles


class FleetNode(Struct, frozen=True):
    """A kind of node as it was planned with."""

    name: str
    count: int
    profile: str
    provider: str
    vram_budget_mb: int
    max_concurrent_slots: int
    context_length: int
    price: int
    fixed_mb: int


class FleetRates(Struct, frozen=True):
    """The figures that were used for one model on one kind of node; ``source`` is where they come from."""

    node: str
    model: str
    prefill_tokens_per_s: float
    decode_tokens_per_s: list[float]
    load_s: float
    overhead_s: float
    source: Literal["measured", "assumed"]


class ExpertShare(Struct, frozen=True):
    expert: str
    model: str
    part: float


class PlacedGroup(Struct, frozen=True):
    """``count`` equal nodes. ``takes_turns``: the models do not fit together, so they are swapped.

    ``utilisation`` is what the plan expects of answers alone, ``simulated_utilisation`` the part of the time in which the
    device was at work in the simulation, loads on a CPU included.
    """

    node: str
    count: int
    keep: list[str]
    takes_turns: bool
    resident_mb: float
    experts: list[ExpertShare]
    requests_per_s: float
    utilisation: float
    simulated_utilisation: float
    swaps_per_hour: float
    times: Times


class ExpertTimes(Struct, frozen=True):
    expert: str
    requests_per_s: float
    refused_part: float
    times: Times


class FleetPlan(Struct, frozen=True):
    """A placement with what a simulation of it gave. ``swaps_per_hour`` counts loads of the whole fleet."""

    nodes: dict[str, int]
    price: int
    idle: dict[str, int]
    placement: list[PlacedGroup]
    experts: list[ExpertTimes]
    requests: int
    requests_per_s: float
    utilisation: float
    swaps_per_hour: float
    refused_part: float
    times: Times


class FleetTarget(Struct, frozen=True):
    waiting_p95_s: float
    met: bool


class FleetWarning(Struct, frozen=True):
    code: str
    message: str


class FleetReport(Struct, frozen=True):
    """``smallest`` is the cheapest fleet that meets the target; None without a target, or when there is none."""

    schema_version: int
    fleet: list[FleetNode]
    rates: list[FleetRates]
    balancing: str
    seed: int
    plan: FleetPlan
    target: FleetTarget | None
    smallest: FleetPlan | None
    warnings: list[FleetWarning]

    @property
    def fits(self) -> bool:
        """Every request is served without end of waiting, within the target where there is one."""
        overloaded = any(warning.code == "overloaded" for warning in self.warnings)
        return not overloaded and (self.target is None or self.target.met)


def quantiles(ordered: Any) -> Quantiles:
    """The nearest ranks of 50 and 95 % of ``ordered``, a sequence or array of numbers that rise."""
    return Quantiles(_quantile(ordered, 0.5), _quantile(ordered, 0.95))


def _quantile(ordered: Any, part: float) -> float | None:
    if len(ordered) == 0:
        return None
    value = float(ordered[max(0, math.ceil(part * len(ordered)) - 1)])
    return None if math.isinf(value) else round(value, 4)
