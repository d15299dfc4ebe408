"""Which models hold memory: loads begun, processes gone, victims for room, relief at critical pressure, failed loads.

The rules are in ``core.scheduling.scheduler``; who starts and for whom something is loaded is decided in ``core.scheduling.admission``.
"""

from __future__ import annotations

import math
from heapq import heappush

from coe_cli.core.names import share_words, size_words
from coe_cli.core.scheduling.pool_memory import Level, PoolMemory
from coe_cli.core.scheduling.request_queues import RequestQueues
from coe_cli.core.scheduling.scheduler_events import Decision, Evict, EvictReason, LoadFailed, Notice, Retry
from coe_cli.core.scheduling.scheduler_state import (
    ModelCost,
    ModelEntry,
    ModelState,
    PoolConfig,
    RequestEntry,
    RequestState,
)

_PERMANENT = frozenset({"does_not_fit", "model_damaged", "model_missing", "profile_invalid", "usage"})
"""Codes of a failed load that loading again does not fix."""


class Residency(RequestQueues):
    """The models of one pool and their memory."""

    def __init__(self, config: PoolConfig, costs: dict[str, ModelCost]) -> None:
        super().__init__()
        self.config = config
        self.memory = PoolMemory(config.pool_mb, config.thresholds)
        self._models = {name: ModelEntry(name, cost) for name, cost in costs.items()}
        self._running = 0
        self._loading: ModelEntry | None = None
        self._evicting = 0
        self._unload_wanted = False
        self.evictions = self.retries = 0

    def _refresh(self, out: list[Decision]) -> None:
        memory = self.memory
        if memory.refresh():
            text = f"memory pressure is {memory.level.name.lower()}: {share_words(memory.usage_mb, memory.pool_mb)}"
            out.append(Notice("pressure", text))

    # --- loading

    def _load(self, model: ModelEntry, now_s: float) -> None:
        model.state = ModelState.LOADING
        model.loaded_s = now_s
        model.held_mb = model.need_mb
        model.warm_slots = 1  # the first slot is opened right after the load
        model.infeasible_since_s = math.inf
        self.memory.place(model.need_mb, loading=True)
        self._loading = model

    def _load_failure(self, model: ModelEntry, failure: LoadFailed, now_s: float, out: list[Decision]) -> None:
        """A load led to no start: it is tried again after idle models made room, or the model's queue is refused.

        A load that failed by itself is tried once more. One that was ``killed`` from outside says nothing about the model
        and is tried again for ``give_up_s``: those who wait have had no attempt yet.
        """
        if not model.waiting:
            model.forget_load_failures()
            return
        code, killed, hint = failure.code, failure.killed, failure.hint
        model.load_failures += not killed
        model.load_failing_since_s = min(model.load_failing_since_s, now_s)
        killed_for_long = killed and now_s >= model.load_failing_since_s + self.config.give_up_s
        text = failure.message or f"`{model.name}` could not be loaded"
        if model.load_failures > 1 or killed_for_long or code in _PERMANENT:
            model.forget_load_failures()
            if code == "out_of_memory":
                hint = "Run `coe vram plan` and choose a smaller context or model."
            hint = hint or "Run `coe doctor` to see what is wrong with the device or the model."
            self._refuse_queue(model, code, text, hint, out, None)
            return
        victims = []
        if code == "out_of_memory" and self.memory.level is not Level.CRITICAL:  # there the largest consumer goes
            victims = [victim for victim in self._idle_models(now_s) if victim is not model and not victim.waiting]
            for victim in victims:
                self._evict(victim, "out_of_memory", now_s, out)
        if not victims:
            model.not_before_s = now_s + self.config.retry_delay_s
        out.append(Notice("load_retry", f"{text}; loading it again"))

    # --- eviction

    def _idle_models(self, now_s: float) -> list[ModelEntry]:
        """Models that may be evicted to make room, the least valuable first: longest idle ÷ cost to load again."""
        idle = [
            model
            for model in self._models.values()
            if model.state is ModelState.READY and not model.active and not self._is_protected(model, now_s)
        ]
        idle.sort(key=lambda model: (not model.speculative, -(now_s - model.idle_since_s) / model.load_s, model.name))
        return idle

    def _relieve(self, now_s: float, out: list[Decision]) -> None:
        """Critical pressure: the largest consumer goes, whatever it is doing. One at a time, measured in between."""
        candidates = [m for m in self._models.values() if m.state in (ModelState.READY, ModelState.LOADING)]
        if not candidates:
            return
        by_cache = self.config.target == "largest_kv_cache"

        def size(model: ModelEntry) -> tuple[int, int, bool, float]:
            first_mb = model.warm_slots * model.slot_mb if by_cache else model.held_mb
            return first_mb, model.held_mb, not model.active, -model.idle_since_s

        model = max(candidates, key=size)
        had_active = bool(model.active)
        self._evict(model, "critical", now_s, out)
        model.not_before_s = now_s + self.config.retry_delay_s
        if not had_active:
            text = f"`{model.name}` was evicted under critical memory pressure before it could answer"
            self._load_failure(model, LoadFailed(model.name, message=text), now_s, out)

    def _evict(self, model: ModelEntry, reason: EvictReason, now_s: float, out: list[Decision]) -> None:
        if model is self._loading:
            self._loading = None
            self.memory.load_ended()
            model.warm_slots = -1  # how much of it has been allocated is not known: no shortfall can be told
        model.state = ModelState.EVICTING
        model.speculative = model.unload_wanted = False
        self._evicting += 1
        self.evictions += 1
        out.append(Evict(model.name, reason))
        for entry in self._take_off(model):
            if entry.delivered or entry.evictions >= self.config.max_evictions:
                text = f"`{model.name}` was evicted under critical memory pressure while it answered"
                hint = "Ask again with fewer models at work or a smaller context; see `coe ps`."
                self._refuse(entry, "out_of_memory", text, hint, out, self.config.retry_delay_s)
            else:
                entry.evictions += 1
                entry.state = RequestState.DELAYED
                self._delayed_count += 1
                self.retries += 1
                at_s = now_s + self.config.retry_delay_s
                heappush(self._delayed, (at_s, entry.seq, entry))
                out.append(Retry(entry.request_id, at_s, "evicted under critical memory pressure"))

    def _take_off(self, model: ModelEntry) -> list[RequestEntry]:
        """End every generation of a model whose process goes; the requests that somebody still wants."""
        entries = list(model.active.values())
        model.active.clear()
        self._running -= len(entries)
        for entry in entries:
            if entry.state is RequestState.STOPPING:
                del self._requests[entry.request_id]
        return [entry for entry in entries if entry.state is RequestState.RUNNING]

    def _removed(self, model: ModelEntry, used_mb: float | None) -> None:
        """The model's process is gone."""
        if model is self._loading:
            self._loading = None
            self.memory.load_ended()
        if model.state is ModelState.EVICTING:
            self._evicting -= 1
        self.memory.remove(model.held_mb, used_mb)
        model.state = ModelState.ABSENT
        model.held_mb = model.warm_slots = 0
        model.speculative = model.unload_wanted = False

    def _unload_idle(self, now_s: float, out: list[Decision]) -> None:
        wanted = [model for model in self._models.values() if model.unload_wanted]
        for model in wanted:
            if model.state is ModelState.READY and not model.active:
                self._evict(model, "asked", now_s, out)
        self._unload_wanted = any(model.unload_wanted for model in wanted)

    def _is_protected(self, model: ModelEntry, now_s: float) -> bool:
        """Whether a model that others wait for is too young to go for one that others wait for too."""
        return (
            model.state is ModelState.READY
            and model.waiting > 0
            and not model.speculative
            and now_s < model.loaded_s + self.config.min_residency_s
        )

    def _measure(self, used_mb: float, out: list[Decision]) -> None:
        self.memory.measure(used_mb)
        if self.memory.lost_mb and self._loading is None and not self._evicting:
            back_mb = self.memory.settle_lost(used_mb)
            if back_mb:
                out.append(Notice("reclaimed", f"{size_words(back_mb)} of evicted models are back"))

    def _expires_s(self, model: ModelEntry) -> float:
        """When an idle model is unloaded: after its own time, or the pool's."""
        keep_alive_s = self.config.keep_alive_s if model.keep_alive_s is None else model.keep_alive_s
        return math.inf if keep_alive_s is None else model.idle_since_s + keep_alive_s

    def _expires_in_s(self, model: ModelEntry, now_s: float) -> float | None:
        """In how many seconds ``model`` is unloaded if nobody asks it; None where it is not."""
        in_s = self._expires_s(model) - now_s
        return round(max(0.0, in_s), 1) if model.is_idle and in_s < math.inf else None

    def _unload_expired(self, now_s: float, out: list[Decision]) -> None:
        for model in self._models.values():
            if model.is_idle and now_s >= self._expires_s(model):
                self._evict(model, "idle", now_s, out)
