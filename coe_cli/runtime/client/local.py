"""A college inside this process: `--no-serve`, and where no college can be started."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from msgspec import structs

from coe_cli.core.hardware.profile import HardwareProfile, RoutingSettings
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.scheduling.scheduler_state import pool_from_profile
from coe_cli.errors import TimedOut
from coe_cli.runtime.client.client import Events
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.answering import answer
from coe_cli.runtime.college.calibration_recorder import CalibrationRecorder
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.memory_probe import MemoryProbe, memory_probe_for
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import folders
from coe_cli.runtime.prompts.prompts import PromptSource, own
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.runtime.server.running_college import low_memory_warning
from coe_cli.runtime.worker.worker_process import check_interrupted

_PRESSURE_WITHIN_S = 5.0
_WAKE_S = 0.2
"""A wait without an end does not see Ctrl-C on Windows."""


class LocalClient:
    """A college driven by a thread, so that Ctrl-C reaches the caller and not the middle of a decision.

    ``timeout_s``: an answer without an event for so many seconds is given up.
    """

    kind: Literal["college", "coe"] = "coe"

    def __init__(
        self,
        settings: CollegeSettings,
        memory_probe: MemoryProbe,
        resolver: RequestResolver,
        timeout_s: float | None = None,
    ) -> None:
        self.college = College(settings, memory_probe)
        self._resolver, self._timeout_s = resolver, timeout_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="college", daemon=True)
        self._thread.start()
        self._closing = threading.Lock()

    def ask(self, request: ChatRequest) -> Events:
        """See ``Client.ask``."""
        events: queue.SimpleQueue[ce.CollegeEvent | BaseException | None] = queue.SimpleQueue()
        driving = asyncio.run_coroutine_threadsafe(self._drive(request, events), self._loop)
        return self._events(events, driving.cancel)

    def _events(
        self, events: queue.SimpleQueue[ce.CollegeEvent | BaseException | None], cancel: Callable[[], bool]
    ) -> Events:
        heard_at = time.monotonic()
        try:
            while True:
                check_interrupted()
                try:
                    event = events.get(timeout=_WAKE_S)
                except queue.Empty:
                    if self._timeout_s is not None and time.monotonic() - heard_at > self._timeout_s:
                        raise TimedOut(
                            f"the worker said nothing for {self._timeout_s:g} s",
                            "Allow more time with --timeout, or use a smaller model.",
                        ) from None
                    continue
                if event is None:
                    return
                if isinstance(event, BaseException):
                    raise event
                yield event
                heard_at = time.monotonic()
        finally:
            cancel()

    def pressure(self) -> str:
        """See ``Client.pressure``."""

        async def level() -> str:
            return self.college.snapshot().level

        return asyncio.run_coroutine_threadsafe(level(), self._loop).result(_PRESSURE_WITHIN_S)

    def close(self) -> None:
        """End every worker and the thread; safe to call more than once."""
        with self._closing:
            if self._loop.is_closed():
                return
            asyncio.run_coroutine_threadsafe(self.college.close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _drive(
        self, request: ChatRequest, events: queue.SimpleQueue[ce.CollegeEvent | BaseException | None]
    ) -> None:
        try:
            async with contextlib.aclosing(answer(self.college, self._resolver, request)) as answering:
                async for event in answering:
                    events.put(event)
        except Exception as error:
            events.put(error)
        finally:
            events.put(None)


class LocalOptions(NamedTuple):
    """``timeout_s`` as in ``LocalClient``, the others as in ``CollegeSettings``.

    ``batch``: the order of the requests is known, so no model is kept or loaded for those who might ask for it next.
    """

    timeout_s: float | None = None
    batch: bool = False
    replicas: int | None = None
    worker_command: list[str] | None = None
    prompts: PromptSource | None = None


def local_client(
    catalog: Catalog,
    profile: HardwareProfile,
    routing: RoutingSettings = RoutingSettings(),
    options: LocalOptions = LocalOptions(),
) -> LocalClient:
    """A client with a college of its own under ``profile``."""
    where, pool = folders(), pool_from_profile(profile)
    if options.batch:
        pool = structs.replace(pool, min_residency_s=0.0, preload_enabled=False, keep_alive_s=None)
    settings = CollegeSettings(
        pool,
        cost_in(profile, catalog),
        worker_command=options.worker_command,
        recorder=CalibrationRecorder(),
        replicas=options.replicas,
        prompts=options.prompts or own(),
    )
    resolver = RequestResolver(
        catalog,
        where.models,
        profile,
        SharedRouter(catalog, where, profile.provider),
        routing=routing,
        memory_warning=lambda spec: low_memory_warning(spec, profile),
    )
    return LocalClient(settings, memory_probe_for(profile), resolver, options.timeout_s)
