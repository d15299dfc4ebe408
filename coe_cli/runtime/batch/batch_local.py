"""The engine on this machine: a college of its own in this process, fed model by model.

On a graphics card the rows of one model are run before those of the next, in all slots at once. On the CPU each slot is a
worker of its own with its part of the cores (``core.batch_order``): two workers with a thread each write a quarter more
than one with two. A row more than can run is always waiting, so that a worker is never idle between two rows and the next
model is loaded while the last rows of the one before are written, where both have room.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from msgspec import structs

from coe_cli.core.batch_order import next_turn, order_models, places
from coe_cli.core.model_spec import ModelSpec
from coe_cli.core.scheduler_state import ModelCost
from coe_cli.errors import CoeError, from_code
from coe_cli.providers.settings import worker_threads
from coe_cli.runtime.batch.batch_engine import (
    EngineStatus,
    PreparedRow,
    RowFailure,
    RowResult,
    RowSource,
    worth_retrying,
)
from coe_cli.runtime.college.collecting import About, Collector, broken_off
from coe_cli.runtime.college.college import College, CollegeSettings
from coe_cli.runtime.college.meter import Meter

_LOOK_UP_S = 0.2
_STATUS_EVERY_S = 0.5
_AHEAD = 1


@dataclass(eq=False)
class _Place:
    """Where the rows of one model are run after one another; ``running`` of them have not ended.

    ``copy`` tells several workers of one model apart.
    """

    model: str | None = None
    copy: int = 0
    running: int = 0


class LocalEngine:
    """See ``batch_engine.Engine``. ``retries``: so often a row is tried again after a failure that may pass.

    The settings' ``max_concurrent_slots`` is how many rows are written at once; ``profile`` is named in the answers.
    ``side_by_side``: a worker for each slot instead of all slots in one, as is best on the CPU.
    """

    def __init__(
        self, settings: CollegeSettings, meter: Meter, *, profile: str, retries: int = 2, side_by_side: bool = False
    ) -> None:
        self._settings, self._meter = settings, meter
        self._profile = profile
        self._retries = retries
        self._side_by_side = side_by_side
        self._college: College | None = None
        self._results: queue.SimpleQueue[tuple[_Place, RowResult]] = queue.SimpleQueue()
        self._stopping = False
        self._completion_tokens = 0
        self._status = EngineStatus()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="batch", daemon=True)
        self._thread.start()
        self._observing = asyncio.run_coroutine_threadsafe(self._observe(), self._loop)

    def run(self, source: RowSource) -> Iterator[RowResult]:
        """See ``Engine.run``."""
        pool = self._settings.pool
        self._turns = _Turns(source, self._settings)
        count = min(pool.max_concurrent_slots, worker_threads()) if self._side_by_side else 1
        count = places(source.remaining(), self._turns.need_mb, self._turns.room_mb, count)
        at_once = 1 if self._side_by_side else pool.max_concurrent_slots
        college = self._college = self._new_college(count)
        self._places = [_Place() for _ in range(count)]
        while True:
            yield from self._hand_out(source, college, at_once)
            if not any(place.running for place in self._places):
                return
            try:
                # Woken now and then, since a wait without an end does not see Ctrl-C on Windows.
                place, result = self._results.get(timeout=_LOOK_UP_S)
            except queue.Empty:
                continue
            place.running -= 1
            yield result

    def stop(self) -> None:
        """See ``Engine.stop``."""
        self._stopping = True

    def status(self) -> EngineStatus:
        """See ``Engine.status``."""
        return self._status

    def close(self) -> None:
        """See ``Engine.close``."""
        if self._loop.is_closed():
            return
        self._stopping = True
        self._observing.cancel()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _hand_out(self, source: RowSource, college: College, at_once: int) -> Iterator[RowResult]:
        """Give every place its rows, each its first before any its second; rows that cannot be run are given back."""
        for depth in range(1, at_once + _AHEAD + 1):
            for place in self._places:
                while place.running < depth and not self._stopping:
                    if depth > at_once and self._last_of_its_model(place, source):
                        break
                    row = self._next_row(place, source)
                    if row is None:
                        break
                    if isinstance(row, RowResult):
                        yield row
                        continue
                    place.running += 1
                    asyncio.run_coroutine_threadsafe(self._answer(college, row, place, place.copy), self._loop)

    def _last_of_its_model(self, place: _Place, source: RowSource) -> bool:
        """Whether what is left of the place's model had better go to whichever of its workers is free first."""
        workers = sum(other.model == place.model for other in self._places)
        return place.model is not None and 0 < source.remaining().get(place.model, 0) < workers

    def _next_row(self, place: _Place, source: RowSource) -> PreparedRow | RowResult | None:
        """The next row of the place's model, or the first of the model that it takes up now."""
        row = source.take(place.model) if place.model is not None else None
        if row is None:
            others = [other for other in self._places if other is not place and other.running]
            place.model = self._turns.next([other.model for other in others if other.model is not None])
            if place.model is not None:
                taken = {other.copy for other in others if other.model == place.model}
                place.copy = next(number for number in range(len(self._places)) if number not in taken)
                row = source.take(place.model)
        return row

    def _new_college(self, workers: int) -> College:
        """On the CPU with a worker for each place, and its part of the cores."""
        settings = self._settings
        if self._side_by_side:
            cost_of = settings.cost_of

            def one_slot(spec: ModelSpec) -> tuple[ModelCost, int]:
                cost, context_length = cost_of(spec)
                return structs.replace(cost, max_slots=1), context_length

            pool = structs.replace(settings.pool, max_concurrent_slots=workers)
            threads = max(1, worker_threads() // workers)
            settings = replace(settings, pool=pool, cost_of=one_slot, worker_threads=threads)
        return College(settings, self._meter)

    async def _answer(self, college: College, row: PreparedRow, place: _Place, copy: int) -> None:
        model = row.ask.model
        about = About(row.expert, model.name, model.provider, self._profile, row.notes)
        spec = structs.replace(model, name=f"{model.name} ({copy + 1})") if copy else model
        # Held back until it is whole, so that the college may start it again however far it was.
        ask = structs.replace(row.ask, model=spec, whole=True)
        attempts = 0
        while True:
            attempts += 1
            try:
                collector = Collector(about, splits_thinking=row.splits_thinking)
                async with contextlib.aclosing(college.ask(ask)) as events:
                    async for event in events:
                        answer = collector.feed(event)
                if answer is None:
                    raise broken_off()
                result = RowResult(row.line, model.name, row.expert, answer, None, attempts)
                self._completion_tokens += answer.usage.completion_tokens
                break
            except CoeError as error:
                failure = error
            except Exception as error:  # a bug must cost this row and not the batch
                failure = from_code("unexpected", f"{type(error).__name__}: {error}", "Please report it.")
            if attempts > self._retries or self._stopping or not worth_retrying(failure):
                result = RowResult(row.line, model.name, row.expert, None, RowFailure.of(failure), attempts)
                break
        self._results.put((place, result))

    async def _observe(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_STATUS_EVERY_S)

    def _look(self) -> None:
        if self._college is None:
            return
        now = self._college.snapshot()
        self._status = EngineStatus(
            models=[model.name for model in now.models if model.running],
            running=now.running,
            pressure=now.level,
            loads=now.loads,
            completion_tokens=self._completion_tokens,
            notices=list(self._college.notices),
        )

    async def _end(self) -> None:
        self._look()
        if self._college is not None:
            await self._college.close()


class _Turns:
    """Whose turn it is, by what models cost in the pool."""

    def __init__(self, source: RowSource, settings: CollegeSettings) -> None:
        self._source = source
        rows = source.remaining()
        self.need_mb: Mapping[str, float] = {model: settings.cost_of(source.spec(model))[0].need_mb() for model in rows}
        self.room_mb = settings.pool.pool_mb * settings.pool.thresholds.high
        self._order = order_models(rows, self.need_mb, self.room_mb)
        self._total = sum(rows.values())

    def next(self, busy: list[str]) -> str | None:
        return next_turn(self._order, self._source.remaining(), busy, self.need_mb, self.room_mb, self._total)
