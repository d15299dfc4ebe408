"""Where a batch's rows are run: the interface that every engine has, and the values that pass through it.

The rows' prompts stay on disk. An engine takes them one at a time, of the model that it wants next, and never holds more
than it is running; what it gives back are whole answers or errors, in whatever order they are ready.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from msgspec import Struct

from coe_cli.core.answers.answer import Answer
from coe_cli.core.batch.batch_progress import EngineStatus
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import CoeError
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college_events import Ask


class PreparedRow(Struct, frozen=True):
    """A row that is ready to be asked; ``line`` (from 1, in the input) is what it is known by.

    ``request`` is for a college, which resolves it again; ``ask`` is what came of it here, for a worker elsewhere.
    ``splits_thinking`` as in ``AnswerDeltas``.
    """

    line: int
    request: ChatRequest
    ask: Ask
    expert: str | None = None
    notes: list[str] = []
    splits_thinking: bool = True

    @property
    def model(self) -> str:
        """The model that it was settled on."""
        return self.ask.model.name


class RowFailure(Struct, frozen=True):
    """Why a row has no answer, in the words of a ``CoeError``."""

    code: str
    message: str
    hint: str = ""
    param: str = ""

    @classmethod
    def of(cls, error: Exception) -> RowFailure:
        """A bug too costs its row and not the batch."""
        if isinstance(error, CoeError):
            return cls(error.code, error.message, error.hint, error.param or "")
        return cls("unexpected", f"{type(error).__name__}: {error}", "Please report it.")


class RowResult(Struct, frozen=True):
    """A row's end: ``answer`` or ``failure``."""

    line: int
    model: str
    expert: str | None = None
    answer: Answer | None = None
    failure: RowFailure | None = None


class RowSource(Protocol):
    """The rows that are still to be run, by model. Not safe for threads: it belongs to whoever iterates ``Engine.run``."""

    def remaining(self) -> Mapping[str, int]:
        """Model → rows of it that nobody has taken yet; models without any are left out."""
        ...

    def spec(self, model: str) -> ModelSpec:
        """What is on disk under that name."""
        ...

    def take(self, model: str) -> PreparedRow | RowResult | None:
        """The next row of ``model`` in the input's order, or None when all are taken.

        A row that turns out to be unusable now (its model was removed, the input changed) comes back as a failed result.
        """
        ...


class Engine(Protocol):
    """Runs the rows of one batch; made for it and closed after it."""

    def run(self, source: RowSource) -> Iterator[RowResult]:
        """Exactly one result for each row that was taken, until ``source`` is empty or ``stop`` was called.

        A row's error is a result and never raised; the college has started it again as often as it may.

        Raises:
            CoeError: nothing can be run at all.
        """
        ...

    def stop(self) -> None:
        """Take no more rows; ``run`` ends when those that are running have ended. May be called from a signal handler."""
        ...

    def status(self) -> EngineStatus:
        """As of a moment ago; may be called from any thread."""
        ...

    def close(self) -> None:
        """Drop what is running and give everything back; safe to call more than once."""
        ...
