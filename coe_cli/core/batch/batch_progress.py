"""How far a batch is and how fast it goes: counts and times in, rates and what is left out. Times are seconds."""

from __future__ import annotations

from collections import deque

from msgspec import Struct

_WINDOW_S = 60.0
_SAMPLE_EVERY_S = 1.0


class EngineStatus(Struct, frozen=True):
    """What the engine that runs the rows does. ``pressure`` is a level's name, or empty where it is not known."""

    models: list[str] = []
    pressure: str = ""
    loads: int = 0
    completion_tokens: int = 0


class Progress(Struct, frozen=True):
    """A batch at one moment.

    ``done`` counts every row with a line in the output, ``earlier`` those of earlier runs among them, ``failed`` those
    with an error. Rates and ``left_s`` are None until they are known.
    """

    total: int
    done: int
    failed: int
    earlier: int
    elapsed_s: float
    rows_per_s: float | None = None
    left_s: float | None = None
    tokens_per_s: float | None = None
    answered_by: tuple[str, ...] = ()
    """The models that have answered rows of this run."""
    engine: EngineStatus = EngineStatus()


class Pace:
    """The rate of the last minute, so that a slow start or another model does not spoil what is left."""

    def __init__(self, now_s: float, done: int) -> None:
        self._samples = deque([(now_s, done)])

    def rows_per_s(self, now_s: float, done: int) -> float | None:
        """Rows a second; None before the first row."""
        samples = self._samples
        if now_s - samples[-1][0] >= _SAMPLE_EVERY_S:
            samples.append((now_s, done))
        while len(samples) > 1 and samples[1][0] <= now_s - _WINDOW_S:
            samples.popleft()
        since_s, before = samples[0]
        return (done - before) / (now_s - since_s) if done > before and now_s > since_s else None


def left_s(total: int, done: int, rows_per_s: float | None) -> float | None:
    """Seconds until the last row, at this rate."""
    return (total - done) / rows_per_s if rows_per_s else None
