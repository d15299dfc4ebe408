"""The service model: how fast answers come along on one node, given what runs there. Pure; time is an argument.

It is that of ``runtime.worker``. A model's worker does one thing at a time: prompts first, one after the other in order
of their start, while its other answers stand still; then one token of each answer in turn. So k answers of one model get
1/k of what its worker writes, which is ``decode_totals[k]`` tokens a second. The workers of a node share its device
evenly: with n of them at work each gets ``parallel_speedup[n]`` ÷ n of its speed alone. A load takes its share of a CPU
too, since it packs weights there; on a GPU it runs beside the answers.

Work is counted in device-seconds: seconds that it would take alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

from msgspec import Struct

_ROUNDING_S = 1e-9


class ServiceTimes(Struct, frozen=True):
    """One model on one node. ``decode_factors[k - 1]``: tokens a second of k answers together ÷ those of one alone."""

    load_s: float
    evict_s: float = 0.0
    decode_factors: tuple[float, ...] = (1.0,)
    load_shares_device: bool = False


class Job(Struct, frozen=True, gc=False):
    """One request: seconds since the begin, index of its model, and its device-seconds of prefill and of decode."""

    at_s: float
    model: int
    prefill_s: float
    decode_s: float
    kind: int = 0
    """The caller's own mark, such as the index of the expert."""


class _Worker:
    """The worker of one model while it has something to do. ``remaining_s`` device-seconds are left until its next event.

    ``written_s`` is what each of its answers has written, in device-seconds of an answer alone; an answer ends when that
    reaches the mark it was given at its beginning.
    """

    __slots__ = ("answers", "factors", "loading", "name", "prompts", "remaining_s", "written_s")

    def __init__(self, name: str, factors: Sequence[float]) -> None:
        self.name = name
        self.factors = factors
        self.loading = False
        self.prompts: deque[tuple[int, Job]] = deque()
        self.answers: list[tuple[float, int]] = []
        self.written_s = 0.0
        self.remaining_s = math.inf

    def cost_of_writing(self) -> float:
        """Device-seconds of the worker for one second's worth of each of its answers."""
        count = len(self.answers)
        factors = self.factors
        return count / factors[count - 1 if count <= len(factors) else -1]

    def pause(self) -> None:
        """Note how far the answers have come before something else goes first."""
        if self.answers and not self.prompts and not self.loading:
            self.written_s = self.answers[0][0] - self.remaining_s / self.cost_of_writing()

    def resume(self) -> None:
        """Find the next event."""
        if self.prompts:
            self.remaining_s = self.prompts[0][1].prefill_s
        elif self.answers:
            self.remaining_s = max(0.0, (self.answers[0][0] - self.written_s) * self.cost_of_writing())
        else:
            self.written_s = 0.0
            self.remaining_s = math.inf


class Device:
    """All workers of one node. Call ``advance`` up to each moment before anything is started or ended there."""

    def __init__(self, times: Sequence[ServiceTimes], names: Sequence[str], parallel_speedup: Sequence[float]) -> None:
        self._workers = {name: _Worker(name, time.decode_factors) for name, time in zip(names, times, strict=True)}
        self._busy: list[_Worker] = []
        self._speedup = parallel_speedup
        self._share = 1.0
        self.busy_s = 0.0
        """Seconds in which anything was at work."""

    def next_s(self, now_s: float) -> float:
        """When the next load, prompt or answer ends if nothing changes; inf when nothing is at work."""
        busy = self._busy
        if not busy:
            return math.inf
        if len(busy) == 1:
            return now_s + busy[0].remaining_s / self._share
        return now_s + min([worker.remaining_s for worker in busy]) / self._share

    def advance(self, duration_s: float) -> None:
        """Let ``duration_s`` pass, no further than ``next_s``."""
        busy = self._busy
        if busy:
            self.busy_s += duration_s
            work_s = duration_s * self._share
            for worker in busy:
                worker.remaining_s -= work_s

    def start(self, name: str, request_id: int, job: Job) -> None:
        """Queue the request's prompt at the worker."""
        worker = self._workers[name]
        if not worker.prompts:
            worker.pause()
            worker.prompts.append((request_id, job))
            if worker.remaining_s == math.inf:
                self._enter(worker)
            worker.resume()
        else:
            worker.prompts.append((request_id, job))

    def load(self, name: str, load_s: float) -> None:
        """Begin a load that takes its share of the device."""
        worker = self._workers[name]
        worker.loading = True
        worker.remaining_s = load_s
        self._enter(worker)

    def end(self, name: str) -> None:
        """The worker's process is ended; what it had is dropped."""
        worker = self._workers[name]
        if worker in self._busy:
            self._leave(worker)
        worker.loading = False
        worker.prompts.clear()
        worker.answers.clear()
        worker.written_s = 0.0
        worker.remaining_s = math.inf

    def ended(self) -> tuple[list[str], list[int], list[int]]:
        """What ends at ``next_s``, which is now: models loaded, requests whose prompt is read, requests answered."""
        loaded: list[str] = []
        read: list[int] = []
        written: list[int] = []
        until_s = min([worker.remaining_s for worker in self._busy], default=0.0) + _ROUNDING_S
        for worker in [worker for worker in self._busy if worker.remaining_s <= until_s]:
            if worker.loading:
                worker.loading = False
                loaded.append(worker.name)
            elif worker.prompts:
                request_id, job = worker.prompts.popleft()
                heappush(worker.answers, (worker.written_s + job.decode_s, request_id))
                read.append(request_id)
            else:
                mark_s, request_id = heappop(worker.answers)
                worker.written_s = mark_s
                written.append(request_id)
            worker.resume()
            if worker.remaining_s == math.inf:
                self._leave(worker)
        return loaded, read, written

    def _enter(self, worker: _Worker) -> None:
        self._busy.append(worker)
        self._share = self._share_of(len(self._busy))

    def _leave(self, worker: _Worker) -> None:
        self._busy.remove(worker)
        self._share = self._share_of(len(self._busy))

    def _share_of(self, count: int) -> float:
        """Speed of each of ``count`` workers, against its speed alone."""
        speedup = self._speedup
        return 1.0 if count <= 1 else speedup[min(count, len(speedup)) - 1] / count
