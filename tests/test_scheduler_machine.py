"""The scheduler against a world that answers, misbehaves and changes at random; the world keeps its own books."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from coe_cli.core.scheduling.scheduler import Scheduler
from coe_cli.core.scheduling.scheduler_events import (
    Cancelled,
    Done,
    Event,
    Evict,
    Evicted,
    Load,
    Loaded,
    LoadFailed,
    MeasuredUsage,
    Preload,
    Refuse,
    Request,
    RequestId,
    Retry,
    Start,
    Stop,
    Tick,
    Tokens,
    Unload,
    Wait,
    WorkerDied,
)
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig

POOL_MB = 10_000
ELEVATED_MB, HIGH_MB, CRITICAL_MB, FALL_MB = 8_000, 9_000, 9_500, 200
COSTS = {
    "small": ModelCost(weights_mb=1_000, kv_mb=50, load_s=1, max_slots=3),
    "medium": ModelCost(weights_mb=3_000, kv_mb=400, activation_mb=100, load_s=3, max_slots=2),
    "large": ModelCost(weights_mb=5_000, kv_mb=1_000, load_s=5, max_slots=2),
    "huge": ModelCost(weights_mb=8_500, kv_mb=800, load_s=8, max_slots=1),
    "never": ModelCost(weights_mb=9_000, kv_mb=600, load_s=8, max_slots=1),
}
SLOT_MB = {name: cost.kv_mb + cost.activation_mb for name, cost in COSTS.items()}
NAMES = sorted(COSTS)


@dataclass
class Process:
    """One model's process as the world sees it."""

    state: str  # loading, ready, evicting
    asked: bool
    loaded_s: float
    slots: int = 0
    """Generations."""
    warm: int = 0
    """Slots that were opened since the load, the first with the load itself; their memory stays until the end."""

    def held_mb(self, name: str) -> float:
        return COSTS[name].weights_mb + SLOT_MB[name] * self.warm


class World(RuleBasedStateMachine):
    steps: ClassVar[int] = 0
    seen: ClassVar[set[str]] = set()

    @initialize(
        slots=st.integers(1, 4),
        min_residency_s=st.sampled_from([0.0, 60.0]),
        keep_alive_s=st.sampled_from([None, 30.0, 300.0]),
        preload=st.booleans(),
        max_queue=st.sampled_from([3, 50]),
        measures=st.sampled_from([True, True, False]),
        loaded=st.sets(st.sampled_from(["small", "medium", "large"])),
    )
    def begin(
        self,
        slots: int,
        min_residency_s: float,
        keep_alive_s: float | None,
        preload: bool,
        max_queue: int,
        measures: bool,
        loaded: set[str],
    ) -> None:
        self.config = PoolConfig(
            vram_budget_mb=POOL_MB + 2_000,
            fixed_mb=2_000,
            max_concurrent_slots=slots,
            min_residency_s=min_residency_s,
            keep_alive_s=keep_alive_s,
            preload_enabled=preload,
            max_queue=max_queue,
        )
        self.scheduler = Scheduler(self.config, COSTS)
        self.measures = measures
        self.now_s = 0.0
        self.count = 0
        self.external_mb = 0.0
        self.leaked_mb = 0.0
        self.measured_mb: float | None = None
        self.processes: dict[str, Process] = {}
        self.waiting: dict[RequestId, str] = {}
        self.running: dict[RequestId, str] = {}
        self.stopping: dict[RequestId, str] = {}
        self.delivered: set[RequestId] = set()
        self.starts: dict[RequestId, int] = {}
        self.ended: set[RequestId] = set()
        self.lost_by_death: set[RequestId] = set()
        for name in sorted(loaded):
            self.ask(name, 0, 1)
            self.answer_everything(0.0)
        self.now_s += 70

    # --- the world's books

    def used_mb(self) -> float | None:
        """What a measurement would show now."""
        if not self.measures:
            return None
        return self.held_mb() + self.external_mb + self.leaked_mb

    def held_mb(self) -> float:
        return sum(p.held_mb(name) for name, p in self.processes.items())

    def usage_mb(self) -> float:
        """A claim may be used in full beside what an eviction has not given back, though no measurement shows both yet."""
        lost_mb = self.scheduler.snapshot().lost_mb
        return max(self.held_mb() + lost_mb, self.measured_mb or 0.0)

    def in_state(self, *states: str) -> list[str]:
        return sorted(name for name, p in self.processes.items() if p.state in states)

    def busy(self) -> bool:
        return bool(self.running or self.stopping or self.in_state("loading"))

    def generating(self, name: str) -> list[RequestId]:
        return [i for table in (self.running, self.stopping) for i, m in table.items() if m == name]

    def end(self, request_id: RequestId) -> None:
        assert request_id not in self.ended, f"{request_id} ended twice"
        self.ended.add(request_id)
        self.waiting.pop(request_id, None)
        self.running.pop(request_id, None)

    # --- events and decisions

    def send(self, event: Event) -> None:
        World.steps += 1
        before = self.scheduler.snapshot()
        if isinstance(event, Loaded | LoadFailed | WorkerDied | Evicted) and event.used_mb is not None:
            self.measured_mb = event.used_mb
        if isinstance(event, MeasuredUsage):
            self.measured_mb = event.used_mb
        decisions = self.scheduler.handle(event, self.now_s)
        # the books show the event's own effect, what came back with it too, and a level falls back only below 8800 MB
        barred = before.level in ("high", "critical") and self.usage_mb() >= HIGH_MB - FALL_MB
        owed: set[RequestId] = set()  # taken off a slot: a Retry or Refuse must follow
        if isinstance(event, WorkerDied):
            owed = set(self.lost_by_death)
        for decision in decisions:
            World.seen.add(type(decision).__name__)
            match decision:
                case Load() | Preload():
                    self.on_load(decision, barred)
                case Start():
                    self.on_start(decision, barred)
                case Evict():
                    owed |= self.on_evict(decision)
                case Retry():
                    assert decision.request_id in owed
                    assert decision.request_id not in self.delivered, "an answer would be joined from two"
                    assert decision.at_s >= self.now_s
                    owed.discard(decision.request_id)
                case Refuse():
                    owed.discard(decision.request_id)
                    if decision.request_id in self.waiting:
                        self.check_refusal(decision)
                        self.end(decision.request_id)
                    else:
                        raise AssertionError(f"{decision} for a request that does not wait")
                case Wait():
                    assert decision.request_id in self.waiting
                case Stop():
                    assert isinstance(event, Cancelled)
        assert not owed, "a request was taken off its slot and forgotten"
        self.check_books()

    def on_load(self, decision: Load | Preload, barred: bool) -> None:
        name = decision.model
        assert name not in self.processes, "loaded twice"
        assert not self.in_state("loading"), "two loads at once"
        alone = not self.busy()
        asked = isinstance(decision, Load)
        if asked:
            assert name in self.waiting.values(), "a load that nobody waits for"
        self.processes[name] = Process("loading", asked=asked, loaded_s=self.now_s, warm=1)
        if self.measured_mb is not None:
            self.measured_mb += self.processes[name].held_mb(name)
        limit_mb = CRITICAL_MB if alone and asked else HIGH_MB - 1 if asked else ELEVATED_MB - 1
        assert self.usage_mb() <= limit_mb
        assert alone or not barred

    def on_start(self, decision: Start, barred: bool) -> None:
        name, request_id = decision.model, decision.request_id
        process = self.processes[name]
        alone = not self.busy()
        assert process.state == "ready"
        assert self.waiting.pop(request_id) == name
        assert len(self.generating(name)) < COSTS[name].max_slots
        assert len(self.running) + len(self.stopping) < self.config.max_concurrent_slots
        self.running[request_id] = name
        self.starts[request_id] = self.starts.get(request_id, 0) + 1
        assert decision.attempt == self.starts[request_id]
        process.slots += 1
        if process.slots > process.warm:
            process.warm += 1
            if self.measured_mb is not None:
                self.measured_mb += SLOT_MB[name]
        assert self.usage_mb() <= (CRITICAL_MB if alone else HIGH_MB - 1), "started at high pressure"
        assert alone or not barred, "started at high pressure"

    def on_evict(self, decision: Evict) -> set[RequestId]:
        name = decision.model
        process = self.processes[name]
        World.seen.add(f"evict-{decision.reason}")
        if decision.reason == "critical":
            assert self.usage_mb() >= CRITICAL_MB - FALL_MB
            alive = self.in_state("ready", "loading")
            assert not self.in_state("evicting"), "more than one at a time at critical pressure"
            sizes = {n: self.processes[n].held_mb(n) for n in alive}
            assert sizes[name] == max(sizes.values()), "not the largest consumer"
        elif decision.reason == "preload":
            assert process.state == "loading"
            assert not process.asked
        else:
            assert process.state == "ready"
            assert not self.generating(name), "evicted a running model"
            if decision.reason == "room" and process.asked and name in self.waiting.values():
                assert self.now_s >= process.loaded_s + self.config.min_residency_s, (
                    "evicted a young model that others wait for"
                )
        process.state = "evicting"
        return self.take_off(name)

    def take_off(self, name: str) -> set[RequestId]:
        """The generations of a process that goes: those that somebody still wants go back to the waiting ones."""
        for request_id in [i for i, m in self.stopping.items() if m == name]:
            del self.stopping[request_id]
        taken = {i for i, m in self.running.items() if m == name}
        for request_id in taken:
            self.waiting[request_id] = self.running.pop(request_id)
        return taken

    def check_refusal(self, refusal: Refuse) -> None:
        World.seen.add(f"refuse-{refusal.code}")
        assert (refusal.code == "does_not_fit") == (self.waiting[refusal.request_id] == "never")
        assert refusal.message
        assert refusal.hint

    def check_books(self) -> None:
        shown = self.scheduler.snapshot()
        assert shown.reserved_mb == self.held_mb()
        assert shown.reserved_mb <= POOL_MB
        assert shown.running == len(self.running) + len(self.stopping)
        assert shown.queue_length == len(self.waiting) <= self.config.max_queue + self.config.max_concurrent_slots * 2
        states = {status.name: status.state for status in shown.models if status.state != "absent"}
        assert states == {name: p.state for name, p in self.processes.items()}
        if self.usage_mb() > CRITICAL_MB and self.processes:
            assert shown.level == "critical"
            assert self.in_state("evicting"), "critical and nothing is evicted"

    # --- rules: somebody asks

    @rule(model=st.sampled_from(NAMES), priority=st.integers(-1, 2), repeat=st.integers(1, 3))
    def ask(self, model: str, priority: int, repeat: int) -> None:
        for _ in range(repeat):
            self.count += 1
            self.waiting[self.count] = model
            if model in self.processes:
                self.processes[model].asked |= len(self.waiting) <= self.config.max_queue and model != "never"
            self.send(Request(self.count, model, priority))

    @precondition(lambda self: self.waiting or self.running)
    @rule(pick=st.integers(0, 1_000))
    def cancel(self, pick: int) -> None:
        requests = [*self.waiting, *self.running]
        request_id = requests[pick % len(requests)]
        if request_id in self.running:
            self.stopping[request_id] = self.running[request_id]
        self.end(request_id)
        self.send(Cancelled(request_id))

    @rule(model=st.sampled_from(NAMES))
    def unload(self, model: str) -> None:
        self.send(Unload(model))

    # --- rules: the world answers

    @precondition(lambda self: self.in_state("loading"))
    @rule(fraction=st.floats(0, 1))
    def measure_in_mid_load(self, fraction: float) -> None:
        used_mb = self.used_mb()
        if used_mb is not None:
            (name,) = self.in_state("loading")
            self.send(MeasuredUsage(used_mb - fraction * COSTS[name].weights_mb))

    @precondition(lambda self: self.in_state("loading"))
    @rule()
    def load_succeeds(self) -> None:
        (name,) = self.in_state("loading")
        process = self.processes[name]
        process.state, process.loaded_s = "ready", self.now_s
        self.send(Loaded(name, self.used_mb()))

    @precondition(lambda self: self.in_state("loading"))
    @rule(code=st.sampled_from(["out_of_memory", "device_lost", "timed_out", "model_damaged", "killed"]))
    def load_fails(self, code: str) -> None:
        (name,) = self.in_state("loading")
        del self.processes[name]
        killed = code == "killed"
        self.send(LoadFailed(name, "device_lost" if killed else code, used_mb=self.used_mb(), killed=killed))

    @precondition(lambda self: self.in_state("ready", "loading"))
    @rule(pick=st.integers(0, 1_000), killed=st.booleans())
    def die(self, pick: int, killed: bool) -> None:
        alive = self.in_state("ready", "loading")
        name = alive[pick % len(alive)]
        self.lost_by_death = self.take_off(name)
        del self.processes[name]
        self.send(WorkerDied(name, used_mb=self.used_mb(), killed=killed))

    @precondition(lambda self: self.in_state("evicting"))
    @rule(pick=st.integers(0, 1_000), back=st.sampled_from([1.0, 1.0, 0.6, 0.0]))
    def evict(self, pick: int, back: float = 1.0) -> None:
        names = self.in_state("evicting")
        name = names[pick % len(names)]
        held_mb = self.processes.pop(name).held_mb(name)
        if not self.measures:
            self.send(Evicted(name))
            return
        self.leaked_mb += (1 - back) * held_mb
        self.send(Evicted(name, back * held_mb, self.used_mb()))

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 1_000))
    def tokens(self, pick: int) -> None:
        request_id = sorted(self.running)[pick % len(self.running)]
        self.delivered.add(request_id)
        self.send(Tokens(request_id))

    @precondition(lambda self: self.running or self.stopping)
    @rule(pick=st.integers(0, 1_000))
    def done(self, pick: int) -> None:
        requests = [*self.running, *self.stopping]
        request_id = requests[pick % len(requests)]
        name = self.running.get(request_id) or self.stopping.pop(request_id)
        if request_id in self.running:
            self.end(request_id)
        self.processes[name].slots -= 1
        self.send(Done(request_id))

    # --- rules: time and other programs

    @rule(step_s=st.sampled_from([0.0, 0.5, 4.0, 20.0, 70.0]))
    def time_passes(self, step_s: float) -> None:
        self.now_s += step_s
        self.send(Tick())

    @rule()
    def wake_up(self) -> None:
        wake_s = self.scheduler.next_wakeup_s()
        if wake_s is not None:
            self.now_s = max(self.now_s, wake_s)
            self.send(Tick())

    @rule(external_mb=st.sampled_from([0.0, 500.0, 2_000.0, 6_000.0]), leak_stays=st.booleans())
    def others_use_memory(self, external_mb: float, leak_stays: bool) -> None:
        if self.measures and not self.in_state("loading"):
            self.external_mb = external_mb
            self.leaked_mb *= leak_stays
            self.send(MeasuredUsage(self.used_mb() or 0.0))

    @precondition(lambda self: self.measures and len(self.processes) > 1 and not self.in_state("loading"))
    @rule(used_mb=st.sampled_from([8_850.0, 9_100.0, 9_600.0]))
    def others_fill_the_card(self, used_mb: float) -> None:
        self.external_mb = max(0.0, self.external_mb + used_mb - (self.used_mb() or 0.0))
        self.send(MeasuredUsage(self.used_mb() or 0.0))

    @precondition(lambda self: self.measures and "small" in self.in_state("ready") and self.running)
    @rule()
    def ask_when_pressure_has_fallen_a_little(self) -> None:
        """Below the threshold of high, but not by 0.02 of the pool."""
        if not self.in_state("loading"):
            self.others_fill_the_card(9_100.0)
            self.others_fill_the_card(8_850.0)
        self.ask("small", 0, 1)

    @rule(step_s=st.sampled_from([0.0, 70.0]))
    def answer_everything(self, step_s: float) -> None:
        for _ in range(20):
            if not self.answer():
                break
        self.now_s += step_s

    def answer(self) -> bool:
        """One proper answer to what the scheduler asked for; False when nothing is owed."""
        if self.in_state("loading"):
            self.load_succeeds()
        elif self.in_state("evicting"):
            self.evict(0, 1.0)
        elif self.running or self.stopping:
            self.done(0)
        else:
            return False
        return True

    # --- when the world is quiet and keeps answering, everything ends

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(60 + 12 * (len(self.waiting) + len(self.running))):
            if self.answer():
                continue
            if not self.waiting:
                break
            wake_s = self.scheduler.next_wakeup_s()
            assert wake_s is not None, "requests wait and nothing will ever wake the scheduler"
            self.now_s = max(self.now_s, wake_s)
            self.send(Tick())
        assert not self.waiting, "livelock"
        assert not self.running, "livelock"
        assert self.ended == set(range(1, self.count + 1))


def walk(examples: int) -> None:
    """Walk at least half of the steps that ``examples`` may have: by chance many may be short."""
    World.steps, World.seen, steps = 0, set(), 25 * examples
    while World.steps < steps:
        run_state_machine_as_test(
            World,
            settings=settings(max_examples=examples, stateful_step_count=50, suppress_health_check=list(HealthCheck)),
        )
        examples *= 2  # and not the same ones again, as a seed would have it


def test_a_thousand_steps_in_a_world_that_misbehaves() -> None:
    walk(40)


@pytest.mark.long
def test_ten_thousand_steps_in_a_world_that_misbehaves() -> None:
    walk(400)
    # the walk was wide enough to mean something
    assert World.seen >= {
        *("Load", "Preload", "Start", "Wait", "Evict", "Retry", "Refuse", "Stop", "Notice"),
        *("evict-critical", "evict-room", "evict-idle"),
        *("refuse-does_not_fit", "refuse-queue_full", "refuse-out_of_memory"),
    }
