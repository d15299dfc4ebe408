"""What a machine offers to Ray, what a loaded model asks of it, and the `ray start` line that says so."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from coe_cli.core.command_line import command_line
from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig

VRAM_RESOURCE: Final = "vram_mb"
CPU_SLOTS_RESOURCE: Final = "cpu_slots"
"""Answers that a node writes at once on its CPU, where each is an actor with its part of the cores."""
NAMESPACE: Final = "coe"
DEFAULT_PORT: Final = 6379
OBJECT_STORE_BYTES: Final = 80 * 2**20
"""Only prompts and answers pass through Ray; it would take 30 % of the memory."""
_MANY: Final = 1_000_000
_LITTLE: Final = 0.001


def model_resource(model: str) -> str:
    """The resource that a node has when ``model`` is on its disk, so that Ray starts it nowhere else."""
    return f"model:{model}"


def node_resources(profile: HardwareProfile, models: Iterable[str], cores: int) -> dict[str, float]:
    """What a node with ``profile``, ``models`` on disk and so many cores offers.

    ``vram_mb`` is the pool up to critical pressure, which no reservation of the scheduler passes either.
    """
    offered = math.floor(profile.pressure_thresholds.critical * (profile.vram_budget_mb - profile.fixed_mb))
    offers = {VRAM_RESOURCE: max(0, offered), CPU_SLOTS_RESOURCE: max(1, min(profile.max_concurrent_slots, cores))}
    return {key: float(value) for key, value in offers.items()} | {
        model_resource(name): float(_MANY) for name in sorted(models)
    }


def actor_mb(cost: ModelCost, slots: int) -> int:
    """What one loaded model takes: its weights and the memory of all its slots, in whole MB."""
    return math.ceil(cost.weights_mb) + slots * math.ceil(cost.kv_mb + cost.activation_mb)


def actor_resources(model: str, demand_mb: int, cpu_slots: int) -> dict[str, float]:
    """What Ray sets aside for an actor; ``cpu_slots`` is 0 for a model on a GPU."""
    demand = {VRAM_RESOURCE: float(demand_mb), model_resource(model): _LITTLE}
    return demand | ({CPU_SLOTS_RESOURCE: float(cpu_slots)} if cpu_slots else {})


def actor_pool(profile: HardwareProfile, demand_mb: int, slots: int) -> PoolConfig:
    """The pool of an actor's college: room for its one model with all slots, for Ray has set the memory aside."""
    thresholds = profile.pressure_thresholds
    return PoolConfig(
        vram_budget_mb=math.ceil(demand_mb / thresholds.high) + 1,
        max_concurrent_slots=slots,
        thresholds=thresholds,
        retry_delay_s=profile.eviction_policy.retry_delay_seconds,
        max_queue=100_000,
    )


class NodeStart(Struct, frozen=True):
    """How a machine joins a cluster: environment variables and arguments of ``ray start``."""

    environment: dict[str, str]
    arguments: list[str]

    def line(self, *, windows: bool = False) -> str:
        """The command for the user's shell: POSIX, or PowerShell on Windows."""
        form = "$env:{}={}; " if windows else "{}={} "
        before = [form.format(key, command_line([value], windows=windows)) for key, value in self.environment.items()]
        return "".join(before) + command_line(["ray", *self.arguments], windows=windows)


def node_start(
    resources: Mapping[str, float], *, address: str | None, port: int = DEFAULT_PORT, windows: bool = False
) -> NodeStart:
    """Join the cluster at ``address``, or with None be its head on ``port``.

    Ray's own CPU and GPU counts are left out of the placement: memory decides. No dashboard and no usage statistics.
    """
    environment = {"RAY_USAGE_STATS_ENABLED": "0"}
    if windows:
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
    arguments = ["start"]
    if address is None:
        arguments += ["--head", f"--port={port}", "--include-dashboard=false"]
    else:
        arguments.append(f"--address={address}")
    arguments += [
        "--num-cpus=1",
        "--num-gpus=0",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--resources={json.dumps({name: _whole(value) for name, value in resources.items()})}",
        "--disable-usage-stats",
    ]
    return NodeStart(environment, arguments)


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value
