"""Who answers a conversation: the resident college, one in this process, or anything that gives the same events."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from coe_cli.runtime.college.college import College, CollegeSettings
from coe_cli.runtime.college.college_events import Ask, CollegeEvent
from coe_cli.runtime.college.meter import Meter
from coe_cli.runtime.server.college_client import reach
from coe_cli.runtime.server.serve_options import ServeOptions

_LOOK_UP_S = 0.2


class Answerer(Protocol):
    """Gives answers one at a time, without an event loop on the caller's side."""

    def answer(self, ask: Ask) -> Iterator[CollegeEvent]:
        """The events of one answer, ending with ``Finished``; closing the iterator cancels the answer.

        Raises:
            CoeError: why there is no (whole) answer.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class ResidentAnswerer:
    """The resident college, found or started anew for each answer, since it may have ended meanwhile.

    Where there can be none, ``instead`` makes another answerer, once, and ``note`` is told why.
    """

    def __init__(
        self,
        options: ServeOptions,
        instead: Callable[[], Answerer],
        note: Callable[[str], None],
        timeout_s: float | None = None,
    ) -> None:
        self._options, self._instead, self._note, self._timeout_s = options, instead, note, timeout_s
        self._other: Answerer | None = None

    def answer(self, ask: Ask) -> Iterator[CollegeEvent]:
        """See ``Answerer.answer``."""
        client, why_not = (None, "") if self._other is not None else reach(self._options)
        if client is None:
            if self._other is None:
                self._note(f"{why_not}; answering without it")
                self._other = self._instead()
            yield from self._other.answer(ask)
            return
        with contextlib.closing(client):
            yield from client.stream_chat(ask.by_name(), self._timeout_s)

    def close(self) -> None:
        """End what stood in for the college; the college stays."""
        if self._other is not None:
            self._other.close()


class CollegeAnswerer:
    """A college of its own, driven by a thread, so that Ctrl-C reaches the caller and not the middle of a decision."""

    def __init__(self, settings: CollegeSettings, meter: Meter) -> None:
        self._college = College(settings, meter)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="college", daemon=True)
        self._thread.start()

    def answer(self, ask: Ask) -> Iterator[CollegeEvent]:
        """See ``Answerer.answer``."""
        events: queue.SimpleQueue[CollegeEvent | BaseException | None] = queue.SimpleQueue()
        driving = asyncio.run_coroutine_threadsafe(self._drive(ask, events), self._loop)
        try:
            while True:
                try:
                    # Woken now and then, since a wait without an end does not see Ctrl-C on Windows.
                    event = events.get(timeout=_LOOK_UP_S)
                except queue.Empty:
                    continue
                if event is None:
                    return
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            driving.cancel()

    def close(self) -> None:
        """End every worker and the thread; safe to call more than once."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._college.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _drive(self, ask: Ask, events: queue.SimpleQueue[CollegeEvent | BaseException | None]) -> None:
        try:
            async with contextlib.aclosing(self._college.ask(ask)) as answer:
                async for event in answer:
                    events.put(event)
        except Exception as error:
            events.put(error)
        finally:
            events.put(None)
