"""The engine on this machine: a client of a college, which it feeds model by model.

On a graphics card the rows of one model are run before those of the next, in all slots at once. On the CPU each slot is a
worker of its own with its part of the cores (``core.batch.batch_order``). A row more than can run is always waiting, so that a
worker is never idle between two rows and the next model is loaded while the last rows of the one before are written, where
both have room. Rows are of low priority: whoever asks meanwhile goes first.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from msgspec import Struct, structs

from coe_cli.core.batch.batch_order import next_turn, order_models, places
from coe_cli.core.batch.batch_progress import EngineStatus
from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.memory.pressure import admission_share
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.names import compared_sizes, size_words
from coe_cli.core.providers import on_host
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig, pool_from_profile
from coe_cli.errors import Busy, CoeError, DoesNotFit
from coe_cli.providers.settings import worker_threads
from coe_cli.runtime.batch.batch_engine import PreparedRow, RowFailure, RowResult, RowSource
from coe_cli.runtime.client.client import Client
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.collecting import Collector, broken_off
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.server.http_errors import name_field

LOW_PRIORITY = -60
"""Ten minutes of waiting, in steps of ten seconds: who asks goes before a row, and no row waits for ever."""

_WAKE_S = 0.2
_STATUS_EVERY_S = 0.5
_AHEAD = 1
_BUSY_S = 1.0


CostOf = Callable[[ModelSpec], tuple[ModelCost, int]]


class Lanes(Struct, frozen=True):
    """How rows are run: ``count`` models side by side, ``slots`` rows of each at once."""

    count: int
    slots: int


def lanes_for(rows: RowSource, pool: PoolConfig, cost_of: CostOf, side_by_side: int | None) -> Lanes:
    """``side_by_side``: so many workers of one slot may share the cores, where that is best; None: all slots in one."""
    if side_by_side is None:
        return Lanes(1, pool.max_concurrent_slots)
    turns = _Turns(rows, pool, cost_of)
    return Lanes(places(rows.remaining(), turns.need_mb, turns.room_mb, side_by_side), 1)


@dataclass(eq=False)
class _Lane:
    """Where the rows of one model are run after one another; ``running`` of them have not ended."""

    model: str | None = None
    running: int = 0


class ClientEngine:
    """See ``batch_engine.Engine``. The client is closed with it.

    ``retries``: so often the college starts a row again. ``pool`` and ``cost_of`` are the college's, for the order of the
    models.
    """

    def __init__(self, client: Client, lanes: Lanes, pool: PoolConfig, cost_of: CostOf, *, retries: int = 2) -> None:
        self._client, self._lanes_wanted, self._retries = client, lanes, retries
        self._pool, self._cost_of = pool, cost_of
        self._results: queue.SimpleQueue[tuple[_Lane, RowResult]] = queue.SimpleQueue()
        self._lanes: list[_Lane] = []
        self._stopping = False
        self._closed = threading.Event()
        self._completion_tokens = 0
        self._loaded: set[int] = set()
        self._pressure = ""
        threading.Thread(target=self._observe, name="batch", daemon=True).start()

    def run(self, source: RowSource) -> Iterator[RowResult]:
        """See ``Engine.run``."""
        self._turns = _Turns(source, self._pool, self._cost_of)
        self._lanes = [_Lane() for _ in range(self._lanes_wanted.count)]
        while True:
            yield from self._hand_out(source)
            if not any(lane.running for lane in self._lanes):
                return
            try:
                # Woken now and then, since a wait without an end does not see Ctrl-C on Windows.
                lane, result = self._results.get(timeout=_WAKE_S)
            except queue.Empty:
                continue
            lane.running -= 1
            yield result

    def stop(self) -> None:
        """See ``Engine.stop``."""
        self._stopping = True

    def status(self) -> EngineStatus:
        """See ``Engine.status``."""
        lanes = [lane for lane in self._lanes if lane.running]
        return EngineStatus(
            models=list(dict.fromkeys(lane.model for lane in lanes if lane.model is not None)),
            pressure=self._pressure,
            loads=len(self._loaded),
            completion_tokens=self._completion_tokens,
        )

    def close(self) -> None:
        """See ``Engine.close``."""
        self._stopping = True
        self._closed.set()
        self._client.close()

    def _hand_out(self, source: RowSource) -> Iterator[RowResult]:
        """Give every lane its rows, each its first before any its second; rows that cannot be run are given back."""
        slots = self._lanes_wanted.slots
        for depth in range(1, slots + _AHEAD + 1):
            for lane in self._lanes:
                while lane.running < depth and not self._stopping:
                    if depth > slots and self._last_of_its_model(lane, source):
                        break
                    row = self._next_row(lane, source)
                    if row is None:
                        break
                    if isinstance(row, RowResult):
                        yield row
                        continue
                    lane.running += 1
                    threading.Thread(target=self._answer, args=(row, lane), daemon=True).start()

    def _last_of_its_model(self, lane: _Lane, source: RowSource) -> bool:
        """Whether what is left of the lane's model had better go to whichever of its workers is free first."""
        workers = sum(other.model == lane.model for other in self._lanes)
        return lane.model is not None and 0 < source.remaining().get(lane.model, 0) < workers

    def _next_row(self, lane: _Lane, source: RowSource) -> PreparedRow | RowResult | None:
        """The next row of the lane's model, or the first of the model that it takes up now."""
        row = source.take(lane.model) if lane.model is not None else None
        if row is None:
            others = [other.model for other in self._lanes if other is not lane and other.running]
            lane.model = self._turns.next([model for model in others if model is not None])
            row = source.take(lane.model) if lane.model is not None else None
        return row

    def _answer(self, row: PreparedRow, lane: _Lane) -> None:
        # Held back until it is whole, so that the college may start it again however far it was.
        request = structs.replace(row.request, buffered=True, priority=LOW_PRIORITY, retries=self._retries)
        while True:
            collector, answer = Collector(splits_thinking=row.splits_thinking), None
            try:
                with contextlib.closing(self._client.ask(request)) as events:
                    for event in events:
                        if isinstance(event, ce.PrefillStarted) and event.load_s is not None:
                            self._loaded.add(event.worker_pid)
                        answer = collector.feed(event)
                if answer is None:
                    raise broken_off()
                self._completion_tokens += answer.usage.completion_tokens
                result = RowResult(row.line, row.model, row.expert, answer)
            except Exception as error:
                if isinstance(error, Busy) and error.code == Busy.code and not self._stopping:
                    time.sleep(min(_BUSY_S, error.retry_after_s or _BUSY_S))  # others fill the queue: no attempt
                    continue
                if isinstance(error, CoeError):
                    name_field(error, row.request, {})
                result = RowResult(row.line, row.model, row.expert, failure=RowFailure.of(error))
            break
        self._results.put((lane, result))

    def _observe(self) -> None:
        while not self._closed.wait(_STATUS_EVERY_S):
            with contextlib.suppress(CoeError, RuntimeError):
                self._pressure = self._client.pressure()


class _Turns:
    """Whose turn it is, by what models cost in the pool."""

    def __init__(self, source: RowSource, pool: PoolConfig, cost_of: CostOf) -> None:
        self._source = source
        rows = source.remaining()
        self.need_mb: Mapping[str, float] = {model: cost_of(source.spec(model))[0].need_mb() for model in rows}
        self.room_mb = pool.pool_mb * pool.thresholds.high
        self._order = order_models(rows, self.need_mb, self.room_mb)
        self._total = sum(rows.values())

    def next(self, busy: list[str]) -> str | None:
        return next_turn(self._order, self._source.remaining(), busy, self.need_mb, self.room_mb, self._total)


def client_engine(
    rows: RowSource,
    catalog: Catalog,
    profile: HardwareProfile,
    client_of: Callable[[int | None], tuple[Client, bool]],
    *,
    retries: int,
) -> ClientEngine:
    """An engine for ``rows``. ``client_of`` makes the client of a college that is to have so many replicas.

    It also says whether the college has them; one that runs already answers in all slots of its profile.

    Raises:
        DoesNotFit: not even the smallest model of the rows fits the profile.
    """
    cost_of, pool = cost_in(profile, catalog), pool_from_profile(profile)
    refuse_what_cannot_fit(rows, profile, cost_of)
    workers = min(profile.max_concurrent_slots, worker_threads()) if on_host(profile.provider) else None
    lanes = lanes_for(rows, pool, cost_of, workers)
    client, has_replicas = client_of(None if workers is None else lanes.count)
    if not has_replicas:
        lanes = lanes_for(rows, pool, cost_of, None)
    return ClientEngine(client, lanes, pool, cost_of, retries=retries)


def refuse_what_cannot_fit(rows: RowSource, profile: HardwareProfile, cost_of: CostOf) -> None:
    """
    Raises:
        DoesNotFit: not even the smallest model of the rows fits the profile.
    """
    costs = {model: cost_of(rows.spec(model))[0].need_mb() for model in rows.remaining()}
    critical_mb = admission_share(profile.pressure_thresholds, alone=True) * (profile.vram_budget_mb - profile.fixed_mb)
    name = min(costs, key=costs.__getitem__)
    if costs[name] > critical_mb:
        needed, allowed = compared_sizes(costs[name], critical_mb)
        raise DoesNotFit(
            f"no model of the batch fits: `{name}` needs {needed}, and profile {profile.name} allows {allowed}"
            f" (a budget of {size_words(profile.vram_budget_mb)} less {size_words(profile.fixed_mb)} fixed)",
            "Choose a profile with a larger budget (-p), or a smaller model.",
        )
