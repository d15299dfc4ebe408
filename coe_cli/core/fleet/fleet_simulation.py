"""Discrete-event simulation of one node: the real scheduler (``core.scheduling.scheduler``) over the service model (``core.fleet.fleet_device``).

Nodes do not know of each other, so a fleet is as many of these simulations. The same jobs give the same result.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

from msgspec import Struct, field

from coe_cli.core.fleet.fleet_device import Device, Job, ServiceTimes
from coe_cli.core.scheduling import scheduler_events as ev
from coe_cli.core.scheduling.scheduler import Scheduler
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig


class SimulatedModel(Struct, frozen=True):
    """One model of the node, as its scheduler and its device know it."""

    name: str
    cost: ModelCost
    times: ServiceTimes


class SimulatedNode(Struct, frozen=True):
    """What a node is made of. ``keep``: models that are loaded at the beginning, by index."""

    pool: PoolConfig
    models: tuple[SimulatedModel, ...]
    parallel_speedup: tuple[float, ...] = (1.0,)
    keep: tuple[int, ...] = ()


class Stream(Struct, frozen=True):
    """Requests of one kind that arrive at a node: ``per_s`` on average, with mean device-seconds of prefill and decode.

    ``nodes`` > 1: a balancer gives this node every so manieth request of a Poisson stream, which comes more evenly.
    """

    kind: int
    model: int
    per_s: float
    overhead_s: float
    prefill_s: float
    decode_s: float
    nodes: int = 1


class Samples(Struct):
    """What the counted requests of simulated nodes met with, in order of their ends. Arrays of equal lengths.

    Times are seconds from a request's arrival, inf for one that was refused; ``span_s`` is that of all nodes together.
    """

    nodes: int = 0
    kinds: array[int] = field(default_factory=lambda: array("i"))
    waiting_s: array[float] = field(default_factory=lambda: array("d"))
    first_token_s: array[float] = field(default_factory=lambda: array("d"))
    latency_s: array[float] = field(default_factory=lambda: array("d"))
    loads: int = 0
    busy_s: float = 0.0
    span_s: float = 0.0

    def add(self, other: Samples) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def jobs(streams: Sequence[Stream], span_s: float, spread: float, rng: random.Random) -> list[Job]:
    """Requests of ``streams`` up to ``span_s``, in order of arrival; tokens vary by ``spread`` (gamma distribution)."""
    found: list[Job] = []
    shape = 1 / spread**2 if spread else 0.0

    def drawn(mean: float) -> float:
        return rng.gammavariate(shape, mean / shape) if shape and mean else mean

    for stream in streams:
        at_s = 0.0
        if stream.nodes > 1:
            at_s = -rng.random() / stream.per_s  # the balancer's round began some time ago
        while True:
            if stream.nodes > 1:
                at_s += rng.gammavariate(stream.nodes, 1 / (stream.nodes * stream.per_s))
            else:
                at_s += rng.expovariate(stream.per_s)
            if at_s >= span_s:
                break
            prefill_s = stream.overhead_s + drawn(stream.prefill_s)
            found.append(Job(max(at_s, 0.0), stream.model, prefill_s, drawn(stream.decode_s), stream.kind))
    found.sort(key=lambda job: job.at_s)
    return found


def simulate(node: SimulatedNode, arrivals: Iterable[Job], count_from_s: float = 0.0) -> Samples:
    """Play ``arrivals`` (in order) on a node until every one has its answer; those before ``count_from_s`` do not count."""
    return _Simulation(node).run(arrivals, count_from_s)


class _Request:
    """One request on its way; the moments are those of the simulation, nan until they come."""

    __slots__ = ("counts", "job", "read_s", "started_s")

    def __init__(self, job: Job, counts: bool) -> None:
        self.job = job
        self.counts = counts
        self.started_s = self.read_s = math.nan


class _Simulation:
    """One run. Requests are numbered from 1 in order of their arrival; those that only load a model have numbers below."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node
        self._names = [model.name for model in node.models]
        self._times = {model.name: model.times for model in node.models}
        self._scheduler = Scheduler(node.pool, {model.name: model.cost for model in node.models})
        self._device = Device([model.times for model in node.models], self._names, node.parallel_speedup)
        self._timers: list[tuple[float, int, ev.Event]] = []
        self._timer_seq = 0
        self._loading: dict[str, int] = {}
        """Model → number of the timer that ends its load; another timer's Loaded is of a load that was broken off."""
        self._requests: dict[int, _Request] = {}
        self._waiting: set[int] = set()
        self._begin_s = 0.0
        self._now_s = 0.0
        self._result = Samples(nodes=1)

    def run(self, arrivals: Iterable[Job], count_from_s: float) -> Samples:
        self._warm()
        result, device, names = self._result, self._device, self._names
        begin_s = self._begin_s
        coming = iter(arrivals)
        job = next(coming, None)
        number = 0
        counting = False
        busy_before_s = span_before_s = 0.0
        while True:
            arrival_s = begin_s + job.at_s if job is not None else math.inf
            if not self._step(arrival_s):
                if job is None:
                    break
                now_s = self._now_s
                number += 1
                counts = job.at_s >= count_from_s
                if counts and not counting:
                    counting = True
                    busy_before_s, span_before_s = device.busy_s, now_s
                    result.loads = 0
                self._requests[number] = _Request(job, counts)
                self._waiting.add(number)
                self._tell(ev.Request(number, names[job.model]), now_s)
                job = next(coming, None)
                if job is None:
                    result.busy_s, result.span_s = device.busy_s - busy_before_s, now_s - span_before_s
        return result

    def _warm(self) -> None:
        """Load what the node keeps, long enough ago that none of it is too young to be evicted."""
        for number, model in enumerate(self._node.keep):
            self._requests[-number] = _Request(Job(0.0, model, 0.0, 0.0), counts=False)
            self._waiting.add(-number)
            self._tell(ev.Request(-number, self._names[model]), self._now_s)
            while self._step(math.inf):
                pass
        self._begin_s = self._now_s + self._node.pool.min_residency_s
        while self._step(self._begin_s):
            pass

    def _step(self, until_s: float) -> bool:
        """Let the next thing happen that is due before ``until_s``; False when it is ``until_s``, or nothing is left."""
        device, timers, now_s = self._device, self._timers, self._now_s
        work_s = device.next_s(now_s)
        at_s = work_s if work_s < until_s else until_s
        timer_due = bool(timers) and timers[0][0] < at_s
        if timer_due:
            at_s = timers[0][0]
        tick_due = False
        if self._waiting:
            wake_s = self._scheduler.next_wakeup_s()
            if wake_s is not None and wake_s < at_s:
                at_s, tick_due = max(wake_s, now_s), True
        if at_s == math.inf:
            return False
        if at_s > now_s:
            device.advance(at_s - now_s)
            self._now_s = at_s
        if tick_due:
            self._tell(ev.Tick(), at_s)
        elif timer_due:
            self._timer_ended(at_s)
        elif work_s < until_s:
            self._work_ended(at_s)
        else:
            return False
        return True

    def _tell(self, event: ev.Event, now_s: float) -> None:
        for decision in self._scheduler.handle(event, now_s):
            if isinstance(decision, ev.Start) and isinstance(decision.request_id, int):
                number = decision.request_id
                request = self._requests[number]
                request.started_s = now_s
                self._waiting.discard(number)
                self._device.start(decision.model, number, request.job)
            elif not isinstance(decision, ev.Wait):
                self._carry_out(decision, now_s)

    def _carry_out(self, decision: ev.Decision, now_s: float) -> None:
        match decision:
            case ev.Load(model=model) | ev.Preload(model=model):
                self._result.loads += 1
                times = self._times[model]
                if times.load_shares_device:
                    self._device.load(model, times.load_s)
                else:
                    self._loading[model] = self._set_timer(now_s + times.load_s, ev.Loaded(model))
            case ev.Evict(model=model):
                self._loading.pop(model, None)
                self._device.end(model)
                self._set_timer(now_s + self._times[model].evict_s, ev.Evicted(model))
            case ev.Retry(request_id=int(number)):
                self._waiting.add(number)
            case ev.Refuse(request_id=int(number)):
                self._waiting.discard(number)
                self._note(self._requests.pop(number), math.inf, refused=True)

    def _set_timer(self, at_s: float, event: ev.Event) -> int:
        self._timer_seq += 1
        heappush(self._timers, (at_s, self._timer_seq, event))
        return self._timer_seq

    def _timer_ended(self, now_s: float) -> None:
        _, number, event = heappop(self._timers)
        if isinstance(event, ev.Loaded) and self._loading.pop(event.model, None) != number:
            return
        self._tell(event, now_s)

    def _work_ended(self, now_s: float) -> None:
        loaded, read, written = self._device.ended()
        for number in read:
            self._requests[number].read_s = now_s
        for number in written:
            self._note(self._requests.pop(number), now_s)
            self._tell(ev.Done(number), now_s)
        for model in loaded:
            self._tell(ev.Loaded(model), now_s)

    def _note(self, request: _Request, ended_s: float, *, refused: bool = False) -> None:
        if not request.counts:
            return
        result, job = self._result, request.job
        arrived_s = self._begin_s + job.at_s
        result.kinds.append(job.kind)
        result.waiting_s.append(math.inf if refused else request.started_s - arrived_s)
        result.first_token_s.append(math.inf if refused else request.read_s - arrived_s)
        result.latency_s.append(ended_s - arrived_s)
