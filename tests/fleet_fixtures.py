"""Problems of fleet planning that need no file, no model and no solver."""

from __future__ import annotations

from coe_cli.core.fleet.fleet import Demand, Node, NodeType, Rates
from coe_cli.core.fleet.fleet_problem import Group, NodeKind, NodeModel, Problem, Share, service_times
from coe_cli.core.hardware.profile import (
    AutoDetect,
    EvictionPolicy,
    HardwareProfile,
    PressureThresholds,
    VramComponents,
)
from coe_cli.core.scheduling.scheduler_state import ModelCost, pool_from_profile

PROFILE = HardwareProfile(
    name="test",
    vram_budget_mb=12_000,
    max_concurrent_slots=2,
    context_length=4096,
    provider="dml",
    preload_enabled=False,
    description="",
    notes="",
    vram_components=VramComponents(),
    pressure_thresholds=PressureThresholds(),
    eviction_policy=EvictionPolicy(),
    auto_detect=AutoDetect(),
)


def kind_of(
    name: str,
    experts: dict[str, str],
    *,
    pool_mb: int = 10_000,
    count: int = 1,
    price: int = 1,
    weights_mb: dict[str, float] | None = None,
    decode_tokens_per_s: float = 50.0,
) -> NodeKind:
    """A kind of node whose models take 4000 MB and 300 MB a slot unless ``weights_mb`` says otherwise."""
    from msgspec import structs

    profile = structs.replace(PROFILE, vram_budget_mb=pool_mb + PROFILE.fixed_mb)
    rates = Rates(prefill_tokens_per_s=1000, decode_tokens_per_s=decode_tokens_per_s, load_s=3.0)
    models = {}
    for model in dict.fromkeys(experts.values()):
        cost = ModelCost((weights_mb or {}).get(model, 4000), 300, load_s=3.0, max_slots=2)
        models[model] = NodeModel(cost, rates, service_times(rates, cost, load_shares_device=False))
    node = Node(NodeType(name, "test", count=count, price=price), profile)
    return NodeKind(node, pool_from_profile(profile), models, dict(experts))


def problem_of(demand: dict[str, Demand], nodes: int) -> tuple[Problem, list[Group]]:
    """``nodes`` equal nodes that all keep one model, which answers for every expert of ``demand``."""
    kind = kind_of("desk", dict.fromkeys(demand, "m"), count=nodes)
    problem = Problem((kind,), demand, "random", 0.5)
    return problem, [Group(0, nodes, ("m",), 0.0, tuple(Share(expert, 1.0) for expert in demand))]
