"""Who starts and for whom something is loaded, decided anew after each event. The rules are in ``core.scheduling.scheduler``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import heappop

from coe_cli.core.names import share_words, size_words
from coe_cli.core.scheduling.pool_memory import Level
from coe_cli.core.scheduling.residency import Residency
from coe_cli.core.scheduling.scheduler_events import Decision, Expected, Load, Preload, Start, WaitReason
from coe_cli.core.scheduling.scheduler_state import (
    ModelCost,
    ModelEntry,
    ModelState,
    PoolConfig,
    RequestEntry,
    RequestState,
)


class Admission(Residency):
    """The decisions that give slots and loads to requests."""

    def __init__(self, config: PoolConfig, costs: dict[str, ModelCost]) -> None:
        super().__init__(config, costs)
        self._draining = False
        self._next_model = NextModel()
        self._preload_due = False
        self._service_s = 1.0
        self._settled_s = -math.inf
        self.loads = self.preloads = 0

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

    # --- admission

    def _admit_next(self, now_s: float, out: list[Decision]) -> bool:
        """Start at most one request; True when one started and the order must be looked at again.

        The oldest request that waits for memory becomes the head of line: memory for loads goes to it first, and what
        starts before it bypasses it.
        """
        self._head = None
        full = self._running >= self.config.max_concurrent_slots
        if full and not self._load_may_begin():
            return False
        holding_back_helps: bool | None = None
        oldest = [(first.key, first.seq, first) for model in self._queued.values() if (first := model.head())]
        oldest.sort()
        for _, _, entry in oldest:
            model = entry.model
            state = model.state
            if state is ModelState.LOADING:
                continue
            if state is ModelState.READY:
                if full or model.unload_wanted or len(model.active) >= model.max_slots:
                    continue
                head: RequestEntry | None = self._head
                if head is not None:
                    if holding_back_helps is None:
                        holding_back_helps = self._holding_back_helps(head, now_s)
                    if holding_back_helps and self._bypassed_enough(head, now_s):
                        continue
                if self._slot_fits(model):
                    if head is not None and holding_back_helps:
                        head.bypassed += 1
                    heappop(model.queue)
                    self._left_queue(model)
                    self._start(entry, now_s, out)
                    return True
            if self._memory_is_taken(model, now_s, out):
                continue
            if self._head is None:
                self._take_memory_for(entry, now_s, out)
        return False

    def _load_may_begin(self) -> bool:
        """Whether a load can be decided while every slot is taken."""
        if self._evicting or (self._loading is not None and not self._loading.speculative):
            return False
        return any(model.state is ModelState.ABSENT for model in self._queued.values())

    def _take_memory_for(self, entry: RequestEntry, now_s: float, out: list[Decision]) -> None:
        """Make ``entry`` the head of line until its model loads."""
        self._head, model = entry, entry.model
        if model.state is ModelState.ABSENT:
            self._load_for(entry, now_s, out)
        elif model.state is ModelState.READY:
            self._make_room(entry, model.next_slot_mb, now_s, out)
        if model.state is ModelState.LOADING:
            self._head = None

    def _slot_fits(self, model: ModelEntry) -> bool:
        return self.memory.fits(model.next_slot_mb, alone=self._running == 0 and self._loading is None)

    def _start(self, entry: RequestEntry, now_s: float, out: list[Decision]) -> None:
        model = entry.model
        entry.state = RequestState.RUNNING
        entry.started_s = now_s
        entry.blocked_since_s = math.inf
        model.active[entry.request_id] = entry
        model.forget_load_failures()
        self._running += 1
        if len(model.active) > model.warm_slots:
            model.warm_slots += 1
            model.held_mb += model.slot_mb
            self.memory.place(model.slot_mb)
        out.append(Start(entry.request_id, model.name, 1 + entry.deaths + entry.evictions))
        self._refresh(out)

    def _holding_back_helps(self, head: RequestEntry, now_s: float) -> bool:
        """Whether the head could be served if nothing else started: else holding back only wastes the card."""
        model = head.model
        if self._evicting or self._loading is not None or now_s < model.not_before_s:
            return False
        protected_mb = 0
        for other in self._models.values():
            if other is not model and self._is_protected(other, now_s):
                protected_mb += other.held_mb
        if not self.memory.could_fit(model.need_mb + protected_mb):
            return False
        if head.blocked_since_s == math.inf:
            head.blocked_since_s = now_s
        return True

    def _bypassed_enough(self, head: RequestEntry, now_s: float) -> bool:
        config = self.config
        return head.bypassed >= config.max_bypasses or now_s >= head.blocked_since_s + config.max_bypass_s

    def _memory_is_taken(self, model: ModelEntry, now_s: float, out: list[Decision]) -> bool:
        """Whether memory that is not coe's keeps the model out; after ``give_up_s`` of that its queue is refused."""
        memory = self.memory
        if memory.could_fit(model.need_mb):
            model.infeasible_since_s = math.inf
            return False
        if model.infeasible_since_s == math.inf:
            model.infeasible_since_s = now_s
        if now_s >= model.infeasible_since_s + self.config.give_up_s:
            hint = "Close other programs that use the device, then try again."
            message = (
                f"`{model.name}` needs {size_words(model.need_mb)}, and {share_words(memory.external_mb, memory.critical_mb)}"
                f" that may be used are taken by other programs or beyond the plan"
            )
            self._refuse_queue(model, "out_of_memory", message, hint, out, self.config.give_up_s)
        return True

    # --- loading

    def _load_for(self, entry: RequestEntry, now_s: float, out: list[Decision]) -> None:
        model = entry.model
        loading = self._loading
        if loading is not None:
            if loading.speculative:
                self._evict(loading, "preload", now_s, out)
            return
        if self._evicting or now_s < model.not_before_s:
            return
        if self.memory.fits(model.need_mb, alone=self._running == 0 and self._loading is None):
            self._load(model, now_s)
            self.loads += 1
            out.append(Load(model.name))
            self._refresh(out)
        else:
            self._make_room(entry, model.need_mb, now_s, out)

    def _on_expected(self, event: Expected, now_s: float, out: list[Decision]) -> None:
        model = self._models.get(event.model)
        if model is None or model.state is not ModelState.ABSENT or self._draining or self._waiting:
            return
        if self._loading is not None or self._evicting or now_s < model.not_before_s:
            return
        if self.memory.fits(model.need_mb, alone=self._running == 0):
            model.speculative = True
            self._load(model, now_s)
            self.loads += 1
            out.append(Load(model.name))

    def _make_room(self, head: RequestEntry, new_mb: int, now_s: float, out: list[Decision]) -> None:
        """Evict idle models so that the head fits, or none if that is not enough."""
        loading = self._loading
        if loading is not None and loading.speculative:
            self._evict(loading, "preload", now_s, out)
            return
        if self._evicting or loading is not None:
            return
        alone = self._running == 0 and self._loading is None
        patient = not (self._holding_back_helps(head, now_s) and self._bypassed_enough(head, now_s))
        chosen: list[ModelEntry] = []

        def enough(victims: list[ModelEntry]) -> bool:
            return self.memory.fits(new_mb, alone=alone, freed_mb=sum(victim.held_mb for victim in victims))

        for victim in self._idle_models(now_s):
            if victim is head.model:
                continue
            waiting = victim.head()
            if waiting is not None and (patient or (waiting.key, waiting.seq) < (head.key, head.seq)):
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

    def _consider_preload(self, now_s: float, out: list[Decision]) -> None:
        if self._loading is not None or self._evicting or self._delayed or self._draining:
            return
        if self.memory.level is not Level.NORMAL or self._head is not None:
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
            model.speculative = True
            self._load(model, now_s)
            self.preloads += 1
            out.append(Preload(name))
            self._refresh(out)

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
        if any(other is not model and self._is_protected(other, now_s) for other in self._models.values()):
            return "min_resident"
        return "memory"


_HALVE_AT = 256
"""A row of counts is halved when it reaches this total, so that habits of long ago fade."""


class NextModel:
    """First-order transition counts with overall frequency as the fallback. Deterministic; no clock."""

    def __init__(self) -> None:
        self._followers: dict[str, dict[str, float]] = {}
        self._frequency: dict[str, float] = {}
        self._last: str | None = None

    def observe(self, model: str) -> None:
        if self._last is not None:
            _count(self._followers.setdefault(self._last, {}), model)
        _count(self._frequency, model)
        self._last = model

    def likeliest(self, candidates: Iterable[str]) -> str | None:
        """The candidate most likely to be asked for next; None when none of them was ever asked for."""
        followers = self._followers.get(self._last, {}) if self._last is not None else {}
        best, best_score = None, (0.0, 0.0)
        for name in candidates:
            score = (followers.get(name, 0.0), self._frequency.get(name, 0.0))
            if score > best_score:
                best, best_score = name, score
        return best


def _count(row: dict[str, float], model: str) -> None:
    total = row.get("", 0.0) + 1  # the row's total is kept under a name that no model has
    row[model] = row.get(model, 0.0) + 1
    if total >= _HALVE_AT:
        for name in row:
            row[name] /= 2
        total /= 2
    row[""] = total
