"""Several experts asked at once. How many of them run side by side is the college's decision: each has its request."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from coe_cli.core.answer import Answer
from coe_cli.core.model_spec import ModelSpec
from coe_cli.core.synthesis import Draft, draft_of, failed_draft
from coe_cli.errors import CoeError
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.answerer import CollegeAnswerer
from coe_cli.runtime.college.collecting import About, collect
from coe_cli.runtime.server.college_client import CollegeClient

_LOOK_UP_S = 0.2


class Job(NamedTuple):
    """One request to one expert; ``problem`` is set where it cannot even be asked."""

    about: About
    spec: ModelSpec
    ask: ce.AskByName
    problem: CoeError | None = None


class Board(Protocol):
    """Hears of all drafts while they are made, from several threads; ``number`` is the job's place."""

    def phase(self, number: int, name: str, worker_pid: int) -> None: ...

    def wrote(self, number: int, tokens: int) -> None: ...

    def piece(self, number: int, text: str, *, is_thinking: bool) -> None: ...

    def done(self, number: int, draft: Draft) -> None: ...


class Source(Protocol):
    """Answers requests, several at a time."""

    def events(self, job: Job) -> Iterator[ce.CollegeEvent]:
        """The events of one answer.

        Raises:
            CoeError: why there is none.
        """
        ...

    def close(self) -> None:
        """End what is still running and give back what is held."""
        ...


class ResidentSource:
    """The college that runs: one connection a request, so that closing it cancels that request."""

    def __init__(self, connect: Callable[[], CollegeClient], timeout_s: float) -> None:
        self._connect, self._timeout_s = connect, timeout_s
        self._open: set[CollegeClient] = set()
        self._lock = threading.Lock()

    def events(self, job: Job) -> Iterator[ce.CollegeEvent]:
        """See ``Source.events``."""
        client = self._connect()
        with self._lock:
            self._open.add(client)
        try:
            yield from client.stream_chat(job.ask, self._timeout_s)
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()

    def close(self) -> None:
        """See ``Source.close``."""
        with self._lock:
            clients = list(self._open)
        for client in clients:
            client.abort()


class OwnSource:
    """A college inside this process, for ``--no-serve``."""

    def __init__(self, answerer: CollegeAnswerer) -> None:
        self._answerer = answerer

    def events(self, job: Job) -> Iterator[ce.CollegeEvent]:
        """See ``Source.events``."""
        return self._answerer.answer(job.ask.of(job.spec))

    def close(self) -> None:
        """See ``Source.close``."""
        self._answerer.close()


def consult(jobs: Sequence[Job], source: Source, board: Board) -> list[Draft]:
    """Every job's draft, in the order of ``jobs``; a job that fails gives a draft with its error.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was running has been cancelled.
    """
    finished: queue.SimpleQueue[tuple[int, Draft | BaseException]] = queue.SimpleQueue()
    try:
        for number, job in enumerate(jobs):
            threading.Thread(target=_run, args=(number, job, source, board, finished), daemon=True).start()
        # In a function of its own: an interrupt at the jump back to a loop's head may miss the handlers around the loop.
        return _gather(len(jobs), finished, board)
    except BaseException:
        source.close()
        raise


def _gather(jobs: int, finished: queue.SimpleQueue[tuple[int, Draft | BaseException]], board: Board) -> list[Draft]:
    drafts: dict[int, Draft] = {}
    while len(drafts) < jobs:
        try:
            # Woken now and then, since a wait without an end does not see Ctrl-C on Windows.
            number, draft = finished.get(timeout=_LOOK_UP_S)
        except queue.Empty:
            continue
        if isinstance(draft, BaseException):
            raise draft
        drafts[number] = draft
        board.done(number, draft)
    return [drafts[number] for number in range(jobs)]


def _run(
    number: int, job: Job, source: Source, board: Board, finished: queue.SimpleQueue[tuple[int, Draft | BaseException]]
) -> None:
    try:
        if job.problem is not None:
            raise job.problem
        answer: Answer = collect(source.events(job), job.about, _Listener(board, number))
        finished.put((number, draft_of(answer)))
    except CoeError as error:
        about = job.about
        draft = failed_draft(about.expert or "", about.model, about.provider, error, list(about.notes))
        finished.put((number, draft))
    except BaseException as error:
        finished.put((number, error))


class _Listener:
    def __init__(self, board: Board, number: int) -> None:
        self._board, self._number = board, number

    def phase(self, name: str, worker_pid: int) -> None:
        self._board.phase(self._number, name, worker_pid)

    def wrote(self, tokens: int) -> None:
        self._board.wrote(self._number, tokens)

    def piece(self, text: str, *, is_thinking: bool) -> None:
        self._board.piece(self._number, text, is_thinking=is_thinking)
