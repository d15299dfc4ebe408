"""Who starts, who loads and who goes: the half of the scheduler that decides. The rules are in ``core.scheduler``."""

from __future__ import annotations

import math
from heapq import heappop, heappush

from coe_cli.core.pool_memory import Level, PoolMemory
from coe_cli.core.preload import NextModel
from coe_cli.core.request_queues import RequestQueues
from coe_cli.core.scheduler_events import (
    Decision,
    Evict,
    EvictReason,
    Load,
    Notice,
    Preload,
    Retry,
    Start,
    WaitReason,
)
from coe_cli.core.scheduler_state import ModelCost, ModelEntry, ModelState, PoolConfig, RequestEntry, RequestState

_PERMANENT = frozenset({"does_not_fit", "model_damaged", "model_missing", "profile_invalid", "usage"})
"""Codes of a failed load that loading again does not mend."""


class Admission(RequestQueues):
    """State of one pool and the decisions that need nothing but that state."""

    def __init__(self, config: PoolConfig, costs: dict[str, ModelCost]) -> None:
        super().__init__()
        self.config = config
        self.memory = PoolMemory(config.pool_mb, config.thresholds)
        self._models = {name: ModelEntry(name, cost) for name, cost in costs.items()}
        self._running = 0
        self._loading: ModelEntry | None = None
        self._evicting = 0
        self._unload_wanted = False
        self._draining = False
        self._next_model = NextModel()
        self._preload_due = False
        self._service_s = 1.0
        self._settled_s = -math.inf
        self.loads = self.preloads = self.evictions = self.retries = 0

    # --- the fixed point after each event

    def _settle(self, now_s: float, out: list[Decision]) -> None:
        """Carry on until nothing more can be decided at this moment."""
        self._settled_s = now_s
        self._refresh(out)
        if self.memory.level is Level.CRITICAL and not self._evicting:
            self._relieve(now_s, out)
        if self._delayed:
            self._release_delayed(now_s)
        if self._waiting:
            while self._queued and self._admit_next(now_s, out):
                pass
        if self._unload_wanted:
            self._unload_idle(now_s, out)
        if self._preload_due:
            self._consider_preload(now_s, out)

    def _refresh(self, out: list[Decision]) -> None:
        memory = self.memory
        if memory.refresh():
            text = f"memory pressure is {memory.level.name.lower()}: {memory.usage_mb:.0f} of {memory.pool_mb:.0f} MB"
            out.append(Notice("pressure", text))

    # --- admission

    def _admit_next(self, now_s: float, out: list[Decision]) -> bool:
        """Start at most one request; True when one started and the order must be looked at again.

        The oldest request that waits for memory becomes the claimant: memory for loads goes to it first, and what
        starts before it counts as overtaking.
        """
        self._claimant = None
        full = self._running >= self.config.max_concurrent_slots
        if full:  # then only a load can be decided
            if self._evicting or (self._loading is not None and not self._loading.unasked):
                return False
            if not any(model.state is ModelState.ABSENT for model in self._queued.values()):
                return False
        holding_back_helps: bool | None = None
        heads = [(head.key, head.seq, head) for model in self._queued.values() if (head := model.head())]
        heads.sort()
        for _, _, entry in heads:
            model = entry.model
            state = model.state
            if state is ModelState.LOADING:
                continue
            if state is ModelState.READY:
                if full or len(model.active) >= model.max_slots:
                    continue
                claimant: RequestEntry | None = self._claimant
                if claimant is not None:
                    if holding_back_helps is None:
                        holding_back_helps = self._holding_back_helps(claimant, now_s)
                    if holding_back_helps and self._overtaken_enough(claimant, now_s):
                        continue
                if self._slot_fits(model):
                    if claimant is not None and holding_back_helps:
                        claimant.overtaken += 1
                    heappop(model.queue)
                    self._left_queue(model)
                    self._start(entry, now_s, out)
                    return True
            if self._memory_is_taken(model, now_s, out):
                continue
            if self._claimant is None:
                self._claimant = entry
                if state is ModelState.ABSENT:
                    self._load_for(entry, now_s, out)
                elif state is ModelState.READY:
                    new_mb = model.slot_mb if len(model.active) >= model.warm_slots else 0
                    self._make_room(entry, model.slot_mb, new_mb, now_s, out)
                if model.state is ModelState.LOADING:
                    self._claimant = None
        return False

    def _slot_fits(self, model: ModelEntry) -> bool:
        new_mb = model.slot_mb if len(model.active) >= model.warm_slots else 0
        return self.memory.fits(model.slot_mb, new_mb, alone=self._running == 0 and self._loading is None)

    def _start(self, entry: RequestEntry, now_s: float, out: list[Decision]) -> None:
        model, memory = entry.model, self.memory
        entry.state = RequestState.RUNNING
        entry.started_s = now_s
        entry.blocked_since_s = math.inf
        model.active[entry.request_id] = entry
        model.setbacks = 0
        self._running += 1
        model.reserved_mb += model.slot_mb
        memory.reserved_mb += model.slot_mb
        if len(model.active) > model.warm_slots:
            model.warm_slots += 1
            model.footprint_mb += model.slot_mb
            memory.place(model.slot_mb)
        out.append(Start(entry.request_id, model.name, 1 + entry.deaths + entry.evictions))
        self._refresh(out)

    def _holding_back_helps(self, claimant: RequestEntry, now_s: float) -> bool:
        """Whether the claimant could be served if nothing else started: else holding back only wastes the card."""
        model = claimant.model
        if self._evicting or self._loading is not None or now_s < model.not_before_s:
            return False
        young_mb = 0
        for other in self._models.values():
            if other is not model and self._is_young(other, now_s):
                young_mb += other.footprint_mb
        if not self.memory.could_fit(model.need_mb + young_mb):
            return False
        if claimant.blocked_since_s == math.inf:
            claimant.blocked_since_s = now_s
        return True

    def _overtaken_enough(self, claimant: RequestEntry, now_s: float) -> bool:
        config = self.config
        return claimant.overtaken >= config.max_overtakes or now_s >= claimant.blocked_since_s + config.max_overtake_s

    def _is_young(self, model: ModelEntry, now_s: float) -> bool:
        return (
            model.state is ModelState.READY
            and not model.unasked
            and now_s < model.loaded_s + self.config.min_resident_s
        )

    def _memory_is_taken(self, model: ModelEntry, now_s: float, out: list[Decision]) -> bool:
        """Whether memory that is not coe's keeps the model out; after ``give_up_s`` of that its queue is refused."""
        memory = self.memory
        if memory.could_fit(model.need_mb):
            model.infeasible_since_s = math.inf
            return False
        if model.infeasible_since_s == math.inf:
            model.infeasible_since_s = now_s
        if now_s >= model.infeasible_since_s + self.config.give_up_s:
            message = (
                f"`{model.name}` needs {model.need_mb} MB, and {memory.external_mb:.0f} of the {memory.critical_mb:.0f} MB"
                " that may be used are taken by other programs or beyond the plan"
            )
            hint = "Close other programs that use the device, then try again."
            self._refuse_queue(model, "out_of_memory", message, hint, out, self.config.give_up_s)
        return True

    # --- loading

    def _load_for(self, entry: RequestEntry, now_s: float, out: list[Decision]) -> None:
        model = entry.model
        loading = self._loading
        if loading is not None:
            if loading.unasked:
                self._evict(loading, "preload", now_s, out)
            return
        if self._evicting or now_s < model.not_before_s:
            return
        if self.memory.fits(model.need_mb, model.need_mb, alone=self._running == 0 and self._loading is None):
            self._load(model, model.slot_mb, now_s, out)
            self.loads += 1
            out.append(Load(model.name))
            self._refresh(out)
        else:
            self._make_room(entry, model.need_mb, model.need_mb, now_s, out)

    def _load(self, model: ModelEntry, held_mb: int, now_s: float, out: list[Decision]) -> None:
        memory = self.memory
        model.state = ModelState.LOADING
        model.loaded_s = now_s
        model.held_mb = held_mb
        model.reserved_mb = model.weights_mb + held_mb
        model.footprint_mb = model.need_mb
        model.warm_slots = 1  # the first slot is opened right after the load
        model.infeasible_since_s = math.inf
        memory.reserved_mb += model.reserved_mb
        memory.place(model.need_mb, loading=True)
        self._loading = model

    def _consider_preload(self, now_s: float, out: list[Decision]) -> None:
        if self._loading is not None or self._evicting or self._delayed or self._draining:
            return
        if self.memory.level is not Level.NORMAL or self._claimant is not None:
            return
        if any(model.state is not ModelState.READY for model in self._queued.values()):
            return
        self._preload_due = False
        name = self._next_model.likeliest(
            model.name
            for model in self._models.values()
            if model.state is ModelState.ABSENT and not model.preload_failed and self.memory.fits_normal(model.need_mb)
        )
        if name is not None:
            model = self._models[name]
            model.unasked = True
            self._load(model, 0, now_s, out)
            self.preloads += 1
            out.append(Preload(name))
            self._refresh(out)

    def _setback(self, model: ModelEntry, code: str, message: str, now_s: float, out: list[Decision]) -> None:
        """A load led to no start. Once it is tried again, after idle models made room; then its queue is refused."""
        if not model.waiting:
            model.setbacks = 0
            return
        model.setbacks += 1
        text = message or f"`{model.name}` could not be loaded"
        if model.setbacks > 1 or code in _PERMANENT:
            model.setbacks = 0
            hint = (
                "Run `coe vram plan` and choose a smaller context or model."
                if code == "out_of_memory"
                else "Run `coe doctor` to see what is wrong with the device or the model."
            )
            self._refuse_queue(model, code, text, hint, out, None)
            return
        victims = []
        if code == "out_of_memory" and self.memory.level is not Level.CRITICAL:  # there the largest consumer goes
            victims = [victim for victim in self._idle_models(now_s) if victim is not model and not victim.waiting]
            for victim in victims:
                self._evict(victim, "out_of_memory", now_s, out)
        if not victims:
            model.not_before_s = now_s + self.config.retry_delay_s
        out.append(Notice("load_retry", f"{text}; loading it once more"))

    # --- eviction

    def _idle_models(self, now_s: float) -> list[ModelEntry]:
        """Models that may be evicted to make room, the least valuable first: longest idle ÷ cost to load again."""
        idle = [
            model
            for model in self._models.values()
            if model.state is ModelState.READY and not model.active and not self._is_young(model, now_s)
        ]
        idle.sort(key=lambda model: (not model.unasked, -(now_s - model.idle_since_s) / model.load_s, model.name))
        return idle

    def _make_room(self, claimant: RequestEntry, need_mb: int, new_mb: int, now_s: float, out: list[Decision]) -> None:
        """Evict idle models so that the claimant fits, or none if that is not enough."""
        loading = self._loading
        if loading is not None and loading.unasked:
            self._evict(loading, "preload", now_s, out)
            return
        if self._evicting or loading is not None:
            return
        alone = self._running == 0 and self._loading is None
        patient = not (self._holding_back_helps(claimant, now_s) and self._overtaken_enough(claimant, now_s))
        chosen: list[ModelEntry] = []

        def enough(victims: list[ModelEntry]) -> bool:
            return self.memory.fits(
                need_mb,
                new_mb,
                alone=alone,
                freed_mb=sum(victim.reserved_mb for victim in victims),
                freed_physical_mb=sum(victim.footprint_mb for victim in victims),
            )

        for victim in self._idle_models(now_s):
            if victim is claimant.model:
                continue
            waiting = victim.head()
            if waiting is not None and (patient or (waiting.key, waiting.seq) < (claimant.key, claimant.seq)):
                continue
            chosen.append(victim)
            if enough(chosen):
                break
        else:
            return
        for victim in chosen[:-1]:
            rest = [other for other in chosen if other is not victim]
            if enough(rest):
                chosen = rest
        for victim in chosen:
            self._evict(victim, "room", now_s, out)

    def _relieve(self, now_s: float, out: list[Decision]) -> None:
        """Critical pressure: the largest consumer goes, whatever it is doing. One at a time, measured in between."""
        candidates = [m for m in self._models.values() if m.state in (ModelState.READY, ModelState.LOADING)]
        if not candidates:
            return
        by_cache = self.config.target == "largest_kv_cache"

        def size(model: ModelEntry) -> tuple[int, int, bool, float]:
            total_mb = max(model.reserved_mb, model.footprint_mb)
            first_mb = model.warm_slots * model.slot_mb if by_cache else total_mb
            return first_mb, total_mb, not model.active, -model.idle_since_s

        model = max(candidates, key=size)
        had_active = bool(model.active)
        self._evict(model, "critical", now_s, out)
        model.not_before_s = now_s + self.config.retry_delay_s
        if not had_active:
            text = f"`{model.name}` was evicted under critical memory pressure before it could answer"
            self._setback(model, "out_of_memory", text, now_s, out)

    def _evict(self, model: ModelEntry, reason: EvictReason, now_s: float, out: list[Decision]) -> None:
        if model is self._loading:
            self._loading = None
            self.memory.load_ended()
            model.warm_slots = -1  # how much of it has been allocated is not known: no shortfall can be told
        model.state = ModelState.EVICTING
        model.unasked = model.unload_wanted = False
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
        self.memory.remove(model.reserved_mb, model.footprint_mb, used_mb)
        model.state = ModelState.ABSENT
        model.reserved_mb = model.footprint_mb = model.held_mb = model.warm_slots = 0
        model.unasked = model.unload_wanted = False

    def _unload_idle(self, now_s: float, out: list[Decision]) -> None:
        wanted = [model for model in self._models.values() if model.unload_wanted]
        for model in wanted:
            if model.state is ModelState.READY and not model.active and not model.waiting:
                self._evict(model, "asked", now_s, out)
        self._unload_wanted = any(model.unload_wanted for model in wanted)

    def _wait_reason(self, model: ModelEntry, now_s: float) -> WaitReason:
        if model.state is ModelState.LOADING:
            return "loading"
        if self._evicting:
            return "evicting"
        if self._loading is not None and model.state is ModelState.ABSENT:
            return "queue"
        if model.state is ModelState.READY and (
            len(model.active) >= model.max_slots or self._running >= self.config.max_concurrent_slots
        ):
            return "slots"
        if self.memory.level >= Level.HIGH:
            return "pressure"
        if any(other is not model and self._is_young(other, now_s) for other in self._models.values()):
            return "min_resident"
        return "memory"
