"""The running college by HTTP: found or started anew for each answer, since it may have ended meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Literal

from coe_cli.errors import CoeError, Draining
from coe_cli.runtime.client.client import Client, Events
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.server.college_client import CollegeClient, CollegeGone, reach, running, wait_until_gone
from coe_cli.runtime.server.serve_options import ServeOptions

_END_S = 60.0


class RemoteClient:
    """One connection a request, so that closing it cancels that request.

    Where there can be no college with these settings, ``instead`` makes another client, once, and ``note`` is told why.
    ``timeout_s``: an answer without a sign of life for so many seconds is given up. ``leaves_college`` false: a college that
    this client has started ends with it, as soon as it has answered others; and one that ends is waited for.
    """

    def __init__(
        self,
        options: ServeOptions,
        instead: Callable[[], Client],
        note: Callable[[str], None],
        timeout_s: float | None = None,
        *,
        leaves_college: bool = True,
    ) -> None:
        self._options, self._instead, self._note, self._timeout_s = options, instead, note, timeout_s
        self._leaves_college, self._started = leaves_college, False
        self._other: Client | None = None
        self._open: set[CollegeClient] = set()
        self._lock = threading.Lock()

    @property
    def kind(self) -> Literal["college", "coe"]:
        """See ``Client.kind``."""
        return "college" if self._other is None else self._other.kind

    def ask(self, request: ChatRequest) -> Events:
        """See ``Client.ask``."""
        while True:
            connection = self._connect(proven=False)
            try:
                yield from self._ask(request, connection)
                return
            except Draining:  # it ends: then another one, or this process
                if self._leaves_college:
                    break
            except CollegeGone as error:
                if not request.buffered:
                    raise
                yield ce.Restarted(error.message)  # nothing of it was seen
            if connection is not None and not self._leaves_college:
                wait_until_gone(_END_S, connection.state)
        yield from self._ask(request, self._connect(proven=True))

    def _ask(self, request: ChatRequest, connection: CollegeClient | None) -> Events:
        if connection is None:
            assert self._other is not None
            yield from self._other.ask(request)
            return
        with self._lock:
            self._open.add(connection)
        try:
            yield from connection.ask(request, self._timeout_s)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _connect(self, *, proven: bool) -> CollegeClient | None:
        with self._lock:
            if self._other is None:
                connection, why_not = reach(self._options, proven=proven)
                if connection is not None:
                    self._started = self._started or connection.started
                    return connection
                self._note(f"{why_not}; answering without it")
                self._other = self._instead()
        return None

    def pressure(self) -> str:
        """See ``Client.pressure``."""
        if self._other is not None:
            return self._other.pressure()
        college = running()
        if college is None:
            return ""
        with contextlib.closing(college):
            line = college.snapshot().pressure
        return line.level if line is not None else ""

    def close(self) -> None:
        """See ``Client.close``; the college stays, where it is not to end with its client."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.abort()
        if self._other is not None:
            self._other.close()
        if self._started and not self._leaves_college and (college := running()) is not None:
            self._started = False
            with contextlib.closing(college), contextlib.suppress(CoeError):
                college.stop(drain=True)
