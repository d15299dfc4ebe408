"""The engine on this machine: a college of its own in this process, fed model by model.

The rows of one model are run before those of the next, so that each model is loaded once. One row more than there are
slots is always waiting: a slot that becomes free is taken at once, and the next model begins to load while the last rows
of the one before are written, where both have room.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterator

from coe_cli.core.batch_order import order_models
from coe_cli.errors import CoeError, from_code
from coe_cli.runtime.batch_engine import (
    EngineStatus,
    PreparedRow,
    RowFailure,
    RowResult,
    RowSource,
    worth_retrying,
)
from coe_cli.runtime.collecting import About, Collector, broken_off
from coe_cli.runtime.college import College, CollegeSettings
from coe_cli.runtime.meter import Meter

_LOOK_UP_S = 0.2
_STATUS_EVERY_S = 0.5
_AHEAD = 1


class LocalEngine:
    """See ``batch_engine.Engine``. ``retries``: so often a row is tried again after a failure that may pass.

    The settings' ``max_concurrent_slots`` is how many rows are written at once; ``profile`` is named in the answers.
    """

    def __init__(self, settings: CollegeSettings, meter: Meter, *, profile: str, retries: int = 2) -> None:
        self._settings = settings
        self._profile = profile
        self._retries = retries
        self._college = College(settings, meter)
        self._results: queue.SimpleQueue[RowResult] = queue.SimpleQueue()
        self._stopping = False
        self._completion_tokens = 0
        self._status = EngineStatus()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="batch", daemon=True)
        self._thread.start()
        self._observing = asyncio.run_coroutine_threadsafe(self._observe(), self._loop)

    def run(self, source: RowSource) -> Iterator[RowResult]:
        """See ``Engine.run``."""
        window = self._settings.pool.max_concurrent_slots + _AHEAD
        rows = self._in_order(source)
        running, exhausted = 0, False
        while True:
            while not exhausted and not self._stopping and running < window:
                row = next(rows, None)
                if row is None:
                    exhausted = True
                elif isinstance(row, RowResult):
                    yield row
                else:
                    asyncio.run_coroutine_threadsafe(self._answer(row), self._loop)
                    running += 1
            if running == 0:
                return
            try:
                # Woken now and then, since a wait without an end does not see Ctrl-C on Windows.
                result = self._results.get(timeout=_LOOK_UP_S)
            except queue.Empty:
                continue
            running -= 1
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
        asyncio.run_coroutine_threadsafe(self._college.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _in_order(self, source: RowSource) -> Iterator[PreparedRow | RowResult]:
        rows = source.remaining()
        need_mb = {}
        for model in rows:
            cost, _ = self._settings.cost_of(source.spec(model))
            need_mb[model] = cost.weights_mb + cost.kv_mb + cost.activation_mb
        for model in order_models(rows, need_mb, self._settings.pool.pool_mb):
            while (row := source.take(model)) is not None:
                yield row

    async def _answer(self, row: PreparedRow) -> None:
        model = row.ask.model
        about = About(row.expert, model.name, model.provider, self._profile, row.notes)
        attempts = 0
        while True:
            attempts += 1
            try:
                collector = Collector(about)
                async with contextlib.aclosing(self._college.ask(row.ask)) as events:
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
        self._results.put(result)

    async def _observe(self) -> None:
        while True:
            now = self._college.snapshot()
            self._status = EngineStatus(
                models=[model.name for model in now.models if model.running],
                running=now.running,
                pressure=now.level,
                loads=now.loads,
                completion_tokens=self._completion_tokens,
                notices=list(self._college.notices),
            )
            await asyncio.sleep(_STATUS_EVERY_S)
