"""The client interface: a request in, the events of its answer out, without an event loop on the caller's side."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Literal, Protocol

import msgspec

from coe_cli.errors import DeviceLost, UsageError
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import ChatRequest, Needed, Resolved

Events = Generator[ce.CollegeEvent, None, None]


class Client(Protocol):
    """Answers requests, several at a time from several threads."""

    @property
    def kind(self) -> Literal["college", "coe"]:
        """Who answered last: the running college, or this process."""
        ...

    def ask(self, request: ChatRequest) -> Events:
        """``Resolved`` and the events of one answer, ending with ``Finished``; see ``college.answering``.

        Closing the iterator cancels the answer.

        Raises:
            CoeError: why there is no (whole) answer; TimedOut where nothing happened for the client's time limit.
        """
        ...

    def pressure(self) -> str:
        """The level of the college's memory pressure, or an empty text where there is none.

        Raises:
            CoeError, TimeoutError: it cannot be told.
        """
        ...

    def close(self) -> None:
        """End what is still running and give back what is held; from any thread, safe to call more than once."""
        ...


def resolve(client: Client, request: ChatRequest) -> Resolved:
    """Who would answer, without asking.

    Raises:
        CoeError: nobody could.
    """
    with contextlib.closing(client.ask(msgspec.structs.replace(request, resolve_only=True))) as events:
        for event in events:
            if isinstance(event, Resolved):
                return event
            if isinstance(event, Needed):
                raise UsageError(f"{event.what} {event.name} is not there", event.reason)
    raise DeviceLost("the college did not say who answers", "Ask again.")
