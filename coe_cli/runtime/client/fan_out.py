"""Several experts asked at once. How many of them run side by side is the college's decision: each has its request."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from coe_cli.core.routing.synthesis import Draft, draft_of, failed_draft
from coe_cli.errors import CoeError
from coe_cli.runtime.client.client import Client
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.collecting import collect
from coe_cli.runtime.parallel import outcomes


class Job(NamedTuple):
    """One request to one expert; ``problem`` is set where it cannot even be asked. ``model`` is the one it was to have."""

    expert: str
    model: str
    provider: str
    request: ChatRequest
    problem: CoeError | None = None


class DraftRenderer(Protocol):
    """Hears of all drafts while they are made, from several threads; ``number`` is the job's place."""

    def phase(self, number: int, name: str, worker_pid: int) -> None: ...

    def wrote(self, number: int, tokens: int) -> None: ...

    def delta(self, number: int, text: str, *, is_thinking: bool) -> None: ...

    def done(self, number: int, draft: Draft) -> None: ...


def fan_out(jobs: Sequence[Job], client: Client, renderer: DraftRenderer) -> list[Draft]:
    """Every job's draft, in the order of ``jobs``; a job that fails gives a draft with its error.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was running has been cancelled.
    """
    try:
        # In a function of its own: an interrupt at the jump back to a loop's head may miss the handlers around the loop.
        return _gather([partial(_draft, number, job, client, renderer) for number, job in enumerate(jobs)], renderer)
    except BaseException:
        client.close()
        raise


def _gather(tasks: Sequence[Callable[[], Draft]], renderer: DraftRenderer) -> list[Draft]:
    drafts: dict[int, Draft] = {}
    for number, draft in outcomes(tasks, len(tasks)):
        drafts[number] = draft
        renderer.done(number, draft)
    return [drafts[number] for number in range(len(tasks))]


def _draft(number: int, job: Job, client: Client, renderer: DraftRenderer) -> Draft:
    try:
        if job.problem is not None:
            raise job.problem
        with contextlib.closing(client.ask(job.request)) as events:
            return draft_of(collect(events, None, _OneDraft(renderer, number)))
    except CoeError as error:
        return failed_draft(job.expert, job.model, job.provider, error)


class _OneDraft:
    def __init__(self, renderer: DraftRenderer, number: int) -> None:
        self._renderer, self._number = renderer, number

    def phase(self, name: str, worker_pid: int) -> None:
        self._renderer.phase(self._number, name, worker_pid)

    def wrote(self, tokens: int) -> None:
        self._renderer.wrote(self._number, tokens)

    def delta(self, text: str, *, is_thinking: bool) -> None:
        self._renderer.delta(self._number, text, is_thinking=is_thinking)
