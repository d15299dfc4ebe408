"""Which request runs on which loaded model, as a pure state machine: events in, decisions out; rules in docs/scheduling.md."""

from __future__ import annotations

import math

from coe_cli.core.names import compared_sizes, share_words, size_words
from coe_cli.core.scheduling.admission import Admission
from coe_cli.core.scheduling.pool_memory import Level
from coe_cli.core.scheduling.scheduler_events import (
    Cancelled,
    Decision,
    Done,
    Drain,
    Event,
    Evicted,
    Expected,
    Loaded,
    LoadFailed,
    MeasuredUsage,
    Notice,
    Refuse,
    Request,
    Retry,
    Stop,
    Tick,
    Tokens,
    Unload,
    Wait,
    WorkerDied,
)
from coe_cli.core.scheduling.scheduler_state import (
    ModelCost,
    ModelEntry,
    ModelState,
    ModelStatus,
    PoolConfig,
    RequestEntry,
    RequestState,
    Snapshot,
)


class Scheduler(Admission):
    """Admission, pressure, preload, eviction and retry for one pool."""

    def __init__(self, config: PoolConfig, costs: dict[str, ModelCost]) -> None:
        """
        Raises:
            DoesNotFit, ValueError: as ``PoolConfig.check``.
        """
        config.check()
        super().__init__(config, costs)
        self._now_s = -math.inf
        self._seq = 0

    def set_cost(self, name: str, cost: ModelCost) -> bool:
        """Make a model known, or change what one costs that takes no memory now; False where it takes some."""
        model = self._models.get(name)
        if model is None:
            self._models[name] = ModelEntry(name, cost)
        elif model.state in (ModelState.LOADING, ModelState.READY):
            return False
        else:
            model.set_cost(cost)
        return True

    def handle(self, event: Event, now_s: float) -> list[Decision]:
        """Take one event at ``now_s`` (seconds, never falling) and decide what follows.

        Raises:
            ValueError: time ran backwards, or a request's id is in use.
        """
        if now_s < self._now_s:
            raise ValueError(f"time ran backwards: {now_s} after {self._now_s}")
        self._now_s = now_s
        out: list[Decision] = []
        kind = type(event)
        # the two frequent ones first; a match statement tries its cases in turn
        if kind is Request:
            self._on_request(event, now_s, out)  # type: ignore[arg-type]
        elif kind is Done:
            self._on_done(event, now_s, out)  # type: ignore[arg-type]
        else:
            self._on_other(event, now_s, out)
        return out

    def _on_other(self, event: Event, now_s: float, out: list[Decision]) -> None:
        match event:
            case Tokens():
                entry = self._requests.get(event.request_id)
                if entry is not None and entry.state is RequestState.RUNNING and event.count > 0:
                    entry.delivered = True
                return
            case Expected():
                self._on_expected(event, now_s, out)
            case Loaded():
                self._on_loaded(event, now_s)
            case LoadFailed():
                self._on_load_failed(event, now_s, out)
            case Cancelled():
                self._on_cancelled(event, out)
            case WorkerDied():
                self._on_worker_died(event, now_s, out)
            case Evicted():
                self._on_evicted(event, out)
            case MeasuredUsage():
                self._measure(event.used_mb, out)
            case Tick():
                self._unload_expired(now_s, out)
            case Unload():
                model = self._models.get(event.model)
                if model is not None and model.state in (ModelState.READY, ModelState.LOADING):
                    model.unload_wanted = self._unload_wanted = True
            case Drain():
                self._draining = True
        self._settle(now_s, out)

    def next_wakeup_s(self) -> float | None:
        """When, after the last event, time alone can change something: send a ``Tick`` then, or now if it has passed.

        None when only events can change anything.
        """
        config = self.config
        times = [self._delayed[0][0]] if self._delayed else []
        expiries: list[float] = []
        claimed = self._head is not None and self._head.state is RequestState.QUEUED
        for model in self._models.values():
            if model.state is ModelState.READY:
                if claimed and model.waiting and not model.speculative:
                    times.append(model.loaded_s + config.min_residency_s)
                if not model.active and not model.waiting and (expires_s := self._expires_s(model)) < math.inf:
                    expiries.append(expires_s)
            if model.waiting:
                times += (model.infeasible_since_s + config.give_up_s, model.not_before_s)
        if claimed and self._head is not None:
            times.append(self._head.blocked_since_s + config.max_bypass_s)
        # what had come by the last settling changed all that it could; only a Tick heeds keep_alive
        expiries += (time_s for time_s in times if self._settled_s < time_s < math.inf)
        return min(expiries, default=None)

    # --- requests

    def _on_request(self, event: Request, now_s: float, out: list[Decision]) -> None:
        request_id = event.request_id
        if request_id in self._requests:
            raise ValueError(f"request {request_id!r} is not finished")
        model = self._models.get(event.model)
        refusal = self._refusal(event, model)
        if refusal is not None or model is None:
            if refusal is not None:
                self.refusals += 1
                out.append(refusal)
            return
        config = self.config
        if config.preload_enabled:
            self._next_model.observe(model.name)
            self._preload_due = True
        model.speculative = False
        self._seq += 1
        entry = RequestEntry(
            request_id, model, now_s - event.priority * config.priority_step_s, self._seq, event.retries
        )
        entry.evictions = config.max_evictions if event.guided else 0
        self._requests[request_id] = entry
        if (
            not self._waiting
            and model.state is ModelState.READY
            and not model.unload_wanted
            and len(model.active) < model.max_slots
            and self._running < config.max_concurrent_slots
            and self._slot_fits(model)
        ):
            self._start(entry, now_s, out)
            if self._preload_due:
                self._consider_preload(now_s, out)
            return
        ahead = self._waiting + self._delayed_count
        others_wait = model.waiting > 0
        self._enqueue(entry)
        if not others_wait:  # else its model's oldest request, which could not start either, decides
            self._settle(now_s, out)
        if entry.state is RequestState.QUEUED:
            out.append(Wait(request_id, model.name, self._wait_reason(model, now_s), ahead))

    def _refusal(self, event: Request, model: ModelEntry | None) -> Refuse | None:
        """Why the request cannot even be queued."""
        config = self.config
        if model is None:
            return Refuse(
                event.request_id,
                "model_missing",
                f"the plan has no model `{event.model}`",
                "Run `coe models list` to see the models.",
            )
        if self._draining:
            return Refuse(
                event.request_id, "draining", "the college is stopping", "Try again when it has restarted.", 5.0
            )
        if model.need_mb > self.memory.critical_mb:
            needed, most = compared_sizes(model.need_mb, self.memory.critical_mb)
            return Refuse(
                event.request_id,
                "does_not_fit",
                f"`{model.name}` needs {needed} ({size_words(model.weights_mb)} weights and {size_words(model.slot_mb)} for one slot);"
                f" at most {most} may be used ({config.thresholds.critical:.0%} of"
                f" a budget of {size_words(config.vram_budget_mb)} less {size_words(config.fixed_mb)} fixed)",
                "Run `coe vram plan --solve context`, or choose a profile with a larger budget.",
            )
        if self._waiting + self._delayed_count >= config.max_queue:
            after_s = self._service_s * (self._waiting + self._running) / config.max_concurrent_slots
            return Refuse(
                event.request_id,
                "queue_full",
                f"{config.max_queue} requests are waiting already",
                "Try again later.",
                float(max(1, math.ceil(after_s))),
            )
        return None

    def _on_done(self, event: Done, now_s: float, out: list[Decision]) -> None:
        entry = self._requests.get(event.request_id)
        if entry is None or entry.request_id not in entry.model.active:
            return
        model = entry.model
        del model.active[event.request_id]
        self._running -= 1
        if not model.active:
            model.idle_since_s = now_s
        self._service_s += 0.1 * (now_s - entry.started_s - self._service_s)
        entry.state = RequestState.ENDED
        del self._requests[event.request_id]
        self._settle(now_s, out)

    def _on_cancelled(self, event: Cancelled, out: list[Decision]) -> None:
        entry = self._requests.get(event.request_id)
        if entry is None or entry.state is RequestState.STOPPING:
            return
        if entry.state is RequestState.RUNNING:
            entry.state = RequestState.STOPPING
            out.append(Stop(entry.request_id, entry.model.name))
        else:
            self._end(entry)

    # --- models

    def _on_loaded(self, event: Loaded, now_s: float) -> None:
        model = self._models.get(event.model)
        if model is None or model.state is not ModelState.LOADING:
            return
        self._loading = None
        self.memory.load_ended()
        model.state = ModelState.READY
        model.loaded_s = model.idle_since_s = now_s
        model.preload_failed = False
        if event.used_mb is not None:
            self.memory.measure(event.used_mb)

    def _on_load_failed(self, event: LoadFailed, now_s: float, out: list[Decision]) -> None:
        model = self._models.get(event.model)
        if model is None or model.state is not ModelState.LOADING:
            return
        model.preload_failed = model.preload_failed or model.speculative
        self._removed(model, event.used_mb)
        self._load_failure(model, event, now_s, out)

    def _on_worker_died(self, event: WorkerDied, now_s: float, out: list[Decision]) -> None:
        model = self._models.get(event.model)
        if model is None or model.state not in (ModelState.READY, ModelState.LOADING):
            return
        text = event.message or f"the worker of `{model.name}` died"
        entries: list[RequestEntry] = []
        had_active = bool(model.active)
        if model.state is ModelState.READY:
            entries = self._take_off(model)
        else:
            model.preload_failed = model.preload_failed or model.speculative
        self._removed(model, event.used_mb)
        if not had_active:
            self._load_failure(model, LoadFailed(model.name, event.code, text, killed=event.killed), now_s, out)
        for entry in entries:
            if entry.delivered or entry.deaths >= entry.retries:
                hint = "Ask again; `coe doctor` tells what is wrong if it happens often."
                self._refuse(entry, event.code, text, hint, out, 1.0)
            else:
                entry.deaths += 1
                self.retries += 1
                self._enqueue(entry)
                out.append(Retry(entry.request_id, now_s, text))

    def _on_evicted(self, event: Evicted, out: list[Decision]) -> None:
        model = self._models.get(event.model)
        if model is None or model.state is not ModelState.EVICTING:
            return
        expected_mb = model.held_mb if model.warm_slots >= 0 else 0
        self._removed(model, event.used_mb)
        if event.reclaimed_mb is None:
            return
        shortfall_mb = expected_mb - max(0.0, event.reclaimed_mb)
        if event.used_mb is not None:  # a plan that was too high is no shortfall: what is not in use is not lost
            shortfall_mb = min(shortfall_mb, event.used_mb - self.memory.held_mb - self.memory.lost_mb)
        if shortfall_mb > self.config.shortfall_tolerance_mb:
            self.memory.lose(shortfall_mb)
            text = (
                f"evicting `{model.name}` reclaimed {share_words(event.reclaimed_mb, expected_mb)};"
                f" {size_words(shortfall_mb)} are kept out of the budget"
            )
            out.append(Notice("shortfall", text))

    # --- what it looks like

    def waits(self, model: str) -> list[Wait]:
        """Those who are queued for a model, in their order, each with how many are queued for it before."""
        entry = self._models[model]
        queued = sorted(item for item in entry.queue if item[2].state is RequestState.QUEUED)
        reason = self._wait_reason(entry, self._now_s)
        return [Wait(request.request_id, model, reason, ahead) for ahead, (_, _, request) in enumerate(queued)]

    def snapshot(self) -> Snapshot:
        """The pool as of the last event, for ``coe ps`` and the metrics."""
        memory, now_s = self.memory, self._now_s
        models = []
        for model in self._models.values():
            loaded = model.state is ModelState.READY
            status = ModelStatus(
                name=model.name,
                state=model.state.value,
                running=len(model.active),
                max_slots=model.max_slots,
                waiting=model.waiting,
                reserved_mb=model.reserved_mb,
                kv_reserved_mb=max(0, model.reserved_mb - model.weights_mb),
                idle_s=round(now_s - model.idle_since_s, 1) if loaded and not model.active else None,
                preloaded=model.speculative,
                held_mb=model.held_mb,
                waits_for=self._wait_reason(model, now_s) if model.waiting else "",
                expires_in_s=self._expires_in_s(model, now_s),
            )
            models.append(status)
        return Snapshot(
            models=models,
            level=Level(memory.level).name.lower(),
            pressure=memory.usage_mb / memory.pool_mb,
            usage_mb=memory.usage_mb,
            reserved_mb=memory.held_mb,
            measured_mb=memory.measured_mb if memory.measured_mb > -math.inf else None,
            lost_mb=memory.lost_mb,
            pool_mb=memory.pool_mb,
            running=self._running,
            max_concurrent_slots=self.config.max_concurrent_slots,
            queue_length=self._waiting + self._delayed_count,
            draining=self._draining,
            loads=self.loads,
            preloads=self.preloads,
            evictions=self.evictions,
            retries=self.retries,
            refusals=self.refusals,
        )
