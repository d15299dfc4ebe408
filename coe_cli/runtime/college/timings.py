"""What answers waited for, as histograms for each model and expert."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from coe_cli.errors import CoeError
from coe_cli.runtime.college import college_events as ce

BOUNDS_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
)
"""Upper ends of a histogram's ranges: those of vLLM."""


@dataclass
class Histogram:
    """Seconds by range; the last range has no end."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


@dataclass
class Timings:
    """Of the complete answers of one model to one expert: what each waited for, and its tokens.

    ``written`` counts the tokens of unfinished answers too.
    """

    queue: Histogram = field(default_factory=Histogram)
    first_token: Histogram = field(default_factory=Histogram)
    between_tokens: Histogram = field(default_factory=Histogram)
    whole: Histogram = field(default_factory=Histogram)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0
    written: int = 0
    ended: Counter[str] = field(default_factory=Counter)


class Stopwatch:
    """Times one answer for the figures of its model."""

    def __init__(self, timings: Timings, begin_s: float) -> None:
        self._timings, self._begin_s = timings, begin_s
        self._queued_s = self._reused = 0.0

    def hear(self, event: ce.CollegeEvent | CoeError, now_s: float) -> None:
        """Take in an event at this time."""
        timings, passed_s = self._timings, now_s - self._begin_s
        if isinstance(event, ce.PrefillStarted):
            self._queued_s, self._reused = passed_s, event.reused_tokens
        elif isinstance(event, ce.Delta):
            timings.written += event.tokens
        elif isinstance(event, ce.Finished):
            timings.queue.add(self._queued_s)
            timings.first_token.add(min(self._queued_s + event.first_token_s, passed_s))  # both count the way back
            if event.completion_tokens > 1:
                timings.between_tokens.add(event.decode_s / (event.completion_tokens - 1))
            timings.whole.add(passed_s)
            timings.prompt_tokens += event.prompt_tokens
            timings.reused_tokens += int(self._reused)
            timings.completion_tokens += event.completion_tokens
            timings.ended[event.finish_reason] += 1
