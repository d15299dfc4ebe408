"""The college: carries the scheduler's decisions out with real workers.

Everything happens in one asyncio loop. An event goes to the scheduler, each decision that comes back is carried out, and
what takes time (loads, ends of processes) runs as a task that ends in the next event.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.scheduling import scheduler_events as ev
from coe_cli.core.scheduling.scheduler import Scheduler
from coe_cli.core.scheduling.scheduler_state import Snapshot
from coe_cli.errors import Busy, CoeError, DeviceLost, OutOfMemory, explained, from_code
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college import translation
from coe_cli.runtime.college.college_requests import Counters, OpenRequest, OpenRequests
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.college.memory_probe import MemoryProbe
from coe_cli.runtime.college.reclaim import until_reclaimed
from coe_cli.runtime.college.warm_worker import WarmWorker
from coe_cli.runtime.college.worker_handle import WorkerHandle
from coe_cli.runtime.prompts.prompts import Prompts, PromptSource
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_process import KilledFromOutside

_MEASURE_EVERY_S = 2.0


class College:
    """Loaded models behind one budget. Use inside a running loop; ``close`` ends every worker."""

    def __init__(
        self, settings: CollegeSettings, memory_probe: MemoryProbe, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._memory_probe = memory_probe
        self._clock = clock
        self._scheduler = Scheduler(settings.pool_in_use(), {})
        self._specs: dict[str, ModelSpec] = {}
        self._newer: dict[str, ModelSpec] = {}
        self._contexts: dict[str, int] = {}
        self._workers: dict[str, WorkerHandle] = {}
        self._own_prompts = Prompts()  # starts no process before the first request
        self._prompts: PromptSource = settings.prompts or self._own_prompts
        self._warm_worker = WarmWorker(settings.worker_command, settings.threads)
        self._loads = 0
        self._expected_load_s: dict[str, float] = {}
        self._requests = OpenRequests()
        self.slots = self._requests.slots
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._decisions: deque[ev.Decision] = deque()
        self._carrying_out = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._housekeeper: asyncio.Task[None] | None = None
        self.notices: deque[str] = deque(maxlen=50)
        self.counters = Counters()

    # --- what one asks of it

    async def ask(self, ask: ce.Ask) -> AsyncGenerator[ce.CollegeEvent, None]:
        """Events of one answer, ending with ``Finished``. Closing the iterator cancels the answer.

        Raises:
            DoesNotFit, Busy, OutOfMemory, DeviceLost, PromptTooLong, ModelDamaged: why there is no (whole) answer.
        """
        if self._closed:
            raise _stopped()
        self._start_housekeeping()
        if self._settings.replicas is not None:
            ask = self._requests.to_replica(ask, self._settings.replicas, self._workers)
        self._know(ask.model)
        request_id, request = next(self._ids), OpenRequest(ask, ask.prompt)
        request.load_s = self._expected_load_s.pop(ask.model.name, None)
        self._requests[request_id] = request
        stopwatch = self.counters.stopwatch(ask.model.name, ask.expert, self._clock())
        try:
            if request.prompt is None:
                self._tell(ev.Expected(ask.model.name))
                asked = translation.to_prepare(ask, ask.model, self._contexts[ask.model.name])
                request.prompt = await self._prompts.prepared(asked)
            if self._closed:
                raise _stopped()
            self._tell(ev.Request(request_id, ask.model.name, ask.priority, guided=ask.guided, retries=ask.retries))
            while True:
                event = await request.events.get()
                self.counters.count(event)
                stopwatch.hear(event, self._clock())
                if isinstance(event, CoeError):
                    raise event
                yield event
                if isinstance(event, ce.Finished):
                    return
        finally:
            if self._requests.pop(request_id, None) is not None:
                self._tell(ev.Cancelled(request_id))
            if (
                self._settings.keep_warm_worker
                and self._loads > 1
                and not (self.busy or self._closed or self._warm_worker.there)
            ):
                self._spawn(self._warm_worker.prepare())

    def expect(self, spec: ModelSpec) -> None:
        """Load a model that is about to be asked for, if there is nothing else to do and room for it."""
        if not self._closed:
            self._start_housekeeping()
            self._know(spec)
            self._tell(ev.Expected(spec.name))

    def snapshot(self) -> Snapshot:
        """The pool as of now."""
        self._measure()
        return self._scheduler.snapshot()

    def workers(self) -> dict[str, tuple[int, float | None, int]]:
        """Model → (process id, measured MB or None, context length of its slots)."""
        return {
            name: (worker.pid, self._memory_probe.process_mb(worker.pid), self._contexts[name])
            for name, worker in self._with_process().items()
        }

    @property
    def loaded_models(self) -> list[str]:
        """Models that have a worker."""
        return list(self._with_process())

    def _with_process(self) -> dict[str, WorkerHandle]:
        return {name: worker for name, worker in self._workers.items() if worker.pid}

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self._requests)

    def unload(self, model: str) -> None:
        """Take a model out as soon as it is idle."""
        self._tell(ev.Unload(model))

    def drain(self) -> None:
        """Take no new requests; what is there is still answered."""
        self._tell(ev.Drain())

    async def close(self) -> None:
        """End every worker, and with them every request that is left; safe to call more than once."""
        self._closed = True
        for handle in (self._timer, self._housekeeper):
            if handle is not None:
                handle.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._own_prompts.close()
        await asyncio.gather(self._warm_worker.end(), *(worker.end() for worker in self._workers.values()))
        if self._settings.recorder is not None:
            await asyncio.to_thread(self._settings.recorder.wait)
        self._workers.clear()
        for request in self._requests.values():
            request.events.put_nowait(_stopped())

    # --- events in, decisions out

    def _tell(self, event: ev.Event) -> None:
        if self._closed:
            return
        self._decisions.extend(self._scheduler.handle(event, self._clock()))
        if self._carrying_out:  # in the middle of an earlier event's decisions: these come after them
            return
        self._carrying_out = True
        try:
            while self._decisions:
                self._carry_out(self._decisions.popleft())
        finally:
            self._carrying_out = False
        self._set_timer()

    def _carry_out(self, decision: ev.Decision) -> None:
        match decision:
            case ev.Load(model=model) | ev.Preload(model=model):
                worker = self._workers[model] = self._warm_worker.take()
                self._loads += 1
                self._spawn(self._load(model, worker, warm=isinstance(decision, ev.Preload)))
            case ev.Evict(model=model):
                doomed = self._workers.get(model)
                if doomed is not None:
                    doomed.ending = True  # from now on nothing that it says is heard: its requests are the scheduler's
                self._spawn(self._evict(model, doomed))
            case ev.Start():
                self._start(decision)
            case ev.Stop(request_id=request_id, model=model):
                self._workers[model].send(protocol.Cancel(int(request_id)))
            case ev.Wait():
                self._requests.inform(decision.request_id, ce.Waiting(decision.reason, decision.ahead))
            case ev.Retry(request_id=request_id):
                if (request := self._requests.get(int(request_id))) is not None:
                    request.again(decision.reason)
            case ev.Refuse():
                self._refuse(decision)
            case ev.Notice(message=message):
                self.notices.append(message)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at_s = self._scheduler.next_wakeup_s()
        loop = asyncio.get_running_loop()
        self._timer = (
            None if at_s is None else loop.call_later(max(0.0, at_s - self._clock()) + 0.001, self._tell, ev.Tick())
        )

    def _refuse(self, decision: ev.Refuse) -> None:
        error = from_code(decision.code, decision.message, decision.hint)
        if isinstance(error, Busy):
            error.retry_after_s = decision.retry_after_s
        self._requests.end(decision.request_id, error)

    # --- models

    def _know(self, spec: ModelSpec) -> None:
        """Take in what a model is. One whose files have become others answers nothing more, and is loaded anew."""
        if self._specs.get(spec.name) == spec:
            return
        if spec.name in self._specs:
            self._newer[spec.name] = spec
            self._tell(ev.Unload(spec.name))
        self._take_in(spec)

    def _take_in(self, spec: ModelSpec) -> None:
        """Know a model by ``spec``, unless its memory is still that of an older one."""
        cost, context_length = self._settings.cost(spec)
        if self._scheduler.set_cost(spec.name, cost):
            self._newer.pop(spec.name, None)
            self._specs[spec.name] = spec
            self._contexts[spec.name] = context_length

    async def _load(self, model: str, worker: WorkerHandle, *, warm: bool) -> None:
        """``warm``: open the first slot at once; a request that waits opens its own, and need not wait for another."""
        for request in self._requests.of(model):
            request.events.put_nowait(ce.Loading())
        worker.on_message = lambda message: self._on_message(model, worker, message)
        worker.on_exit = lambda: self._lose(model, worker, worker.death())
        try:
            await worker.load(
                self._specs[model],
                slots=self._settings.pool.max_concurrent_slots,
                context_length=self._contexts[model],
                warm=warm,
                timeout_s=self._settings.load_timeout_s,
            )
        except Exception as failure:  # whatever it is, the scheduler hears that the load is over
            if worker.ending:
                return
            worker.ending = True
            await worker.end()
            if self._forget(model, worker):
                error, killed = explained(failure), isinstance(failure, KilledFromOutside)
                self._tell(ev.LoadFailed(model, error.code, error.message, self._used_mb(), killed, error.hint))
            return
        if worker.ending:
            return
        if self._settings.recorder is not None and not warm:
            self._settings.recorder.loaded(self._specs[model], worker.pid)
        waiting = self._requests.of(model)
        for request in waiting:
            request.load_s = worker.load_s
        if not waiting and not warm:
            self._expected_load_s[model] = worker.load_s  # told to the first who asks
        self._tell(ev.Loaded(model, self._used_mb()))
        for wait in self._scheduler.waits(model):  # they were told of the load, and it is over
            self._carry_out(wait)

    async def _evict(self, model: str, worker: WorkerHandle | None) -> None:
        before_mb = self._used_mb()
        own_mb = self._memory_probe.process_mb(worker.pid) if worker is not None and worker.pid else None
        if worker is not None:
            await worker.end()
            self._forget(model, worker)
        reclaimed_mb, used_mb = await until_reclaimed(self._used_mb, before_mb, own_mb)
        if model in self._newer:
            self._take_in(self._newer[model])
        self._tell(ev.Evicted(model, reclaimed_mb, used_mb))

    def _lose(self, model: str, worker: WorkerHandle, error: CoeError) -> None:
        """A worker ended by itself, lost its device, ran out of memory or stopped making progress."""
        if not worker.ending:
            worker.ending = True
            self.notices.append(error.message)
            self._spawn(self._replace(model, worker, error))

    async def _replace(self, model: str, worker: WorkerHandle, error: CoeError) -> None:
        await worker.end()
        if self._forget(model, worker):
            killed = isinstance(error, KilledFromOutside)
            self._tell(ev.WorkerDied(model, error.code, error.message, self._used_mb(), killed))

    def _forget(self, model: str, worker: WorkerHandle) -> bool:
        """Strike the worker off; False if an eviction has done so meanwhile."""
        known = self._workers.get(model) is worker
        if known:
            del self._workers[model]
        return known

    # --- answers

    def _start(self, decision: ev.Start) -> None:
        request_id, model = int(decision.request_id), decision.model
        request = self._requests.get(request_id)
        worker = self._workers[model]
        if request is None or request.prompt is None:
            self._tell(ev.Done(request_id))
            return
        if self._settings.recorder is not None:
            self._settings.recorder.begun(worker.pid, beside=bool(worker.running))
        worker.begin(request_id)
        try:
            worker.send(translation.to_worker(request_id, request.ask, request.prompt, self._contexts[model]))
        except Exception as error:  # nothing of it was sent: the worker is sound and its slot is free again
            self._end_failed(worker, request_id, explained(error))

    def _on_message(self, model: str, worker: WorkerHandle, message: protocol.FromWorker) -> None:
        if worker.ending:
            return
        match message:
            case protocol.Token(request_id=request_id):
                request = self._requests.get(request_id)
                if request is not None and request.deliver(translation.delta(message)):
                    self._tell(ev.Tokens(request_id))
            case protocol.Started(request_id=request_id):
                request = self._requests.get(request_id)
                if request is not None and request.prompt is not None:
                    request.begin(translation.prefill_started(message, request.prompt, request.load_s, worker.pid))
            case protocol.Done(request_id=request_id):
                worker.running.discard(request_id)
                if self._settings.recorder is not None:
                    length = self._contexts[model]
                    self._settings.recorder.answered(self._specs[model], worker.pid, length, message.prompt_tokens)
                request = self._requests.get(request_id)
                if request is not None and request.prompt is not None:
                    self._requests.end(request_id, translation.finished(message, request.ask, request.prompt))
                self._tell(ev.Done(request_id))
            case protocol.Failed():
                self._failed(model, worker, message)

    def _failed(self, model: str, worker: WorkerHandle, message: protocol.Failed) -> None:
        error = from_code(message.code, message.message, message.hint)
        if isinstance(error, DeviceLost | OutOfMemory):
            # The process cannot be trusted any more: its requests are retried on a new one, or fail.
            self._lose(model, worker, error)
            return
        assert message.request_id is not None
        self._end_failed(worker, message.request_id, error)

    def _end_failed(self, worker: WorkerHandle, request_id: int, error: CoeError) -> None:
        worker.running.discard(request_id)
        self._requests.end(request_id, error)
        self._tell(ev.Done(request_id))

    # --- housekeeping

    def _start_housekeeping(self) -> None:
        if self._housekeeper is None:
            self._housekeeper = asyncio.create_task(self._keep_house())

    async def _keep_house(self) -> None:
        interval_s = min(_MEASURE_EVERY_S, self._settings.watchdog_s / 4)
        while True:
            await asyncio.sleep(interval_s)
            self._measure()
            for model, worker in list(self._workers.items()):
                if (stuck := worker.stuck(self._settings.watchdog_s)) is not None:
                    self._lose(model, worker, stuck)

    def _measure(self) -> None:
        used_mb = self._used_mb()
        if used_mb is not None:
            self._tell(ev.MeasuredUsage(used_mb))

    def _used_mb(self) -> float | None:
        return self._memory_probe.used_mb([worker.pid for worker in self._workers.values() if worker.alive])

    def _spawn(self, job: object) -> None:
        self._tasks.add(task := asyncio.ensure_future(job))  # type: ignore[call-overload]
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.notices.append(repr(failure))


def _stopped() -> CoeError:
    return from_code("draining", "the college was stopped", "Ask again.")
