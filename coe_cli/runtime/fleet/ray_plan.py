"""Actor specification: settings, Ray resources and name."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec
from msgspec import structs

from coe_cli.core.fleet.ray_node import actor_mb, actor_pool, actor_resources
from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.providers import on_host
from coe_cli.core.scheduling.scheduler_state import ModelCost
from coe_cli.runtime.fleet.ray_actor import ActorSettings


class ActorPlan(NamedTuple):
    """``demand``: Ray's resources of one actor. ``prefix``: the part of a name that actors with the same settings share."""

    settings: ActorSettings
    demand: dict[str, float]
    prefix: str


def actor_plan(
    spec: ModelSpec,
    profile: HardwareProfile,
    cost: ModelCost,
    context_length: int,
    worker_command: tuple[str, ...] | None = None,
) -> ActorPlan:
    """On a graphics card an actor has all slots of the profile; on the CPU one, with its part of the cores."""
    model, at_once, on_cpu = spec.name, profile.max_concurrent_slots, on_host(spec.provider)
    slots = 1 if on_cpu else at_once
    demand_mb = actor_mb(cost, slots)
    settings = ActorSettings(
        model=model,
        pool=actor_pool(profile, demand_mb, slots),
        cost=structs.replace(cost, max_slots=slots),
        context_length=context_length,
        profile=profile.name,
        keep_alive_s=profile.keep_alive_s,
        side_by_side=at_once if on_cpu else 1,
        worker_command=worker_command,
    )
    digest = hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:12]
    return ActorPlan(settings, actor_resources(model, demand_mb, cpu_slots=1 if on_cpu else 0), f"{model}/{digest}/")
