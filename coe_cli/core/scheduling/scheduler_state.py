"""What the scheduler is configured with, what it keeps for each model and request, and what it shows of it."""

from __future__ import annotations

import math
from enum import Enum
from heapq import heappop
from typing import Literal

from msgspec import Struct

from coe_cli.core.hardware.profile import HardwareProfile, PressureThresholds
from coe_cli.core.names import share_words
from coe_cli.core.scheduling.scheduler_events import RequestId
from coe_cli.errors import DoesNotFit


class PoolConfig(Struct, frozen=True):
    """Limits of one pool. Memory in MB, times in seconds."""

    vram_budget_mb: int
    fixed_mb: int = 0
    max_concurrent_slots: int = 1
    thresholds: PressureThresholds = PressureThresholds()
    min_residency_s: float = 60.0
    retry_delay_s: float = 5.0
    max_queue: int = 256
    preload_enabled: bool = False
    keep_alive_s: float | None = None
    """An idle model is unloaded after this long, unless its cost says otherwise; None keeps it."""
    target: Literal["largest_consumer", "largest_kv_cache"] = "largest_consumer"
    priority_step_s: float = 10.0
    """One step of priority is worth this much waiting."""
    max_bypasses: int = 16
    max_bypass_s: float = 10.0
    give_up_s: float = 30.0
    """Seconds to wait for external memory, or a load that is killed, before failing the request."""
    max_evictions: int = 3
    """Maximum times that a running request is evicted and started again."""
    shortfall_tolerance_mb: float = 64.0

    @property
    def pool_mb(self) -> int:
        return self.vram_budget_mb - self.fixed_mb

    def check(self) -> None:
        """See that there can be such a pool.

        Raises:
            DoesNotFit: the fixed part leaves nothing of the budget.
            ValueError: ``max_concurrent_slots`` or ``max_queue`` is less than 1.
        """
        if self.pool_mb <= 0:
            raise DoesNotFit(
                f"the pool has no room for a model: {share_words(self.fixed_mb, self.vram_budget_mb)} are fixed",
                "Choose a profile with a larger budget; see `coe profile list`.",
            )
        if self.max_concurrent_slots < 1 or self.max_queue < 1:
            raise ValueError("a pool needs at least one slot and a queue of at least one")


def pool_from_profile(profile: HardwareProfile, *, max_queue: int = 256) -> PoolConfig:
    return PoolConfig(
        vram_budget_mb=profile.vram_budget_mb,
        fixed_mb=profile.fixed_mb,
        max_concurrent_slots=profile.max_concurrent_slots,
        thresholds=profile.pressure_thresholds,
        min_residency_s=profile.eviction_policy.min_resident_seconds,
        retry_delay_s=profile.eviction_policy.retry_delay_seconds,
        target=profile.eviction_policy.target,
        max_queue=max_queue,
        preload_enabled=profile.preload_enabled,
        keep_alive_s=profile.model_keep_alive_s,
    )


class ModelCost(Struct, frozen=True):
    """What the plan says one model costs. A slot's context, and so its cache, is fixed by the plan.

    ``weights_mb``: what the model takes beside its slots, from the load to the end of its process.
    """

    weights_mb: float
    kv_mb: float
    activation_mb: float = 0.0
    load_s: float = 1.0
    max_slots: int = 1
    keep_alive_s: float | None = None
    """Idle for so long, it is unloaded; infinity keeps it, None leaves it to the pool."""

    def need_mb(self) -> float:
        """The model with one slot, before anything is rounded up."""
        return self.weights_mb + self.kv_mb + self.activation_mb


class ModelState(Enum):
    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    EVICTING = "evicting"


class RequestState(Enum):
    QUEUED = "queued"
    DELAYED = "delayed"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


class RequestEntry:
    """One request that has not ended, or whose slot is not free yet."""

    __slots__ = (
        "blocked_since_s",
        "bypassed",
        "deaths",
        "delivered",
        "evictions",
        "key",
        "model",
        "request_id",
        "retries",
        "seq",
        "started_s",
        "state",
    )

    def __init__(self, request_id: RequestId, model: ModelEntry, key: float, seq: int, retries: int) -> None:
        self.request_id = request_id
        self.model = model
        self.key = key
        self.seq = seq
        self.retries = retries
        self.state = RequestState.QUEUED
        self.delivered = False
        self.deaths = 0
        self.evictions = 0
        self.bypassed = 0
        self.blocked_since_s = math.inf
        self.started_s = 0.0


class ModelEntry:
    """One model: its costs in whole MB (so that sums stay exact), its state, its queue and its running requests."""

    __slots__ = (
        "active",
        "held_mb",
        "idle_since_s",
        "infeasible_since_s",
        "keep_alive_s",
        "load_failing_since_s",
        "load_failures",
        "load_s",
        "loaded_s",
        "max_slots",
        "name",
        "not_before_s",
        "preload_failed",
        "queue",
        "slot_mb",
        "speculative",
        "state",
        "unload_wanted",
        "waiting",
        "warm_slots",
        "weights_mb",
    )

    def __init__(self, name: str, cost: ModelCost) -> None:
        self.name = name
        self.set_cost(cost)
        self.state = ModelState.ABSENT
        self.active: dict[RequestId, RequestEntry] = {}
        self.queue: list[tuple[float, int, RequestEntry]] = []
        self.waiting = 0
        self.held_mb = 0
        """Weights and every slot opened since the load."""
        self.warm_slots = 0
        """Slots opened since the load, the first one with it; each keeps its memory until the process ends."""
        self.speculative = False
        """Preloaded and not asked for since."""
        self.unload_wanted = False
        self.loaded_s = 0.0
        self.idle_since_s = 0.0
        self.not_before_s = -math.inf
        self.load_failures = 0
        """Loads since the last start that led to nothing by themselves."""
        self.load_failing_since_s = math.inf
        """When the first of them did, or one that was killed from outside."""
        self.preload_failed = False
        self.infeasible_since_s = math.inf

    def set_cost(self, cost: ModelCost) -> None:
        """For a model without memory: what it holds is counted with the costs of its load."""
        self.weights_mb = math.ceil(cost.weights_mb)
        self.slot_mb = math.ceil(cost.kv_mb + cost.activation_mb)
        self.load_s = max(cost.load_s, 1e-3)
        self.max_slots = cost.max_slots
        self.keep_alive_s = cost.keep_alive_s

    def forget_load_failures(self) -> None:
        self.load_failures, self.load_failing_since_s = 0, math.inf

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded and nobody asks it."""
        return self.state is ModelState.READY and not self.active and not self.waiting

    @property
    def need_mb(self) -> int:
        """Weights and one slot: the least with which the model is of use."""
        return self.weights_mb + self.slot_mb

    @property
    def reserved_mb(self) -> int:
        """What it needs for what it does now: weights, and a slot for each generation or for the load."""
        if self.state is ModelState.LOADING:
            return self.need_mb
        return 0 if self.state is ModelState.ABSENT else self.weights_mb + self.slot_mb * len(self.active)

    @property
    def next_slot_mb(self) -> int:
        """What one generation more puts on the device."""
        return self.slot_mb if len(self.active) >= self.warm_slots else 0

    def head(self) -> RequestEntry | None:
        """The next request of the queue; cancelled ones are dropped on the way."""
        queue = self.queue
        while queue:
            entry = queue[0][2]
            if entry.state is RequestState.QUEUED:
                return entry
            heappop(queue)
        return None


class ModelStatus(Struct, frozen=True):
    """One model as `coe ps` shows it."""

    name: str
    state: str
    running: int
    max_slots: int
    waiting: int
    reserved_mb: int
    kv_reserved_mb: int
    """The part of it that is not weights: caches and activations."""
    idle_s: float | None
    preloaded: bool
    held_mb: int
    """What it keeps until its process ends: weights and each slot opened since the load."""
    waits_for: str
    """Why its waiting requests wait; empty where none does."""
    expires_in_s: float | None = None
    """An idle model is unloaded then; None where it is not."""


class Snapshot(Struct, frozen=True):
    """The whole pool at one moment. ``reserved_mb`` is what its models hold; ``measured_mb`` is None when nothing was measured."""

    models: list[ModelStatus]
    level: str
    pressure: float
    usage_mb: float
    reserved_mb: float
    measured_mb: float | None
    lost_mb: float
    pool_mb: float
    running: int
    max_concurrent_slots: int
    queue_length: int
    draining: bool
    loads: int
    preloads: int
    evictions: int
    retries: int
    refusals: int
