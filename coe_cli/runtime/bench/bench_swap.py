"""How long it takes until another model answers where only one has room: what an eviction costs the one who asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from coe_cli.core.bench.bench_figures import summarise
from coe_cli.core.bench.bench_grid import prompt_ids
from coe_cli.core.bench.bench_rows import SwapTime
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import CoeError
from coe_cli.runtime.bench.bench_worker import BenchWorker

_PROMPT_TOKENS = 16


class Swaps:
    """Goes round the models (spec and context length of each): each in turn is ended and the next one answers.

    A swap is the end of the loaded one's process, the load in a process that is ready, as the college keeps one, and the first
    token after a prompt of 16.
    """

    def __init__(self, models: Sequence[tuple[ModelSpec, int]], timeout_s: float) -> None:
        self._models = models
        self._timeout_s = timeout_s
        self._loaded: BenchWorker | None = None

    def measure(self, repeats: int, on_stage: Callable[[str], None]) -> list[SwapTime]:
        """Median of ``repeats`` rounds for each pair of neighbours; with two models both directions."""
        count = len(self._models)
        times: list[list[float]] = [[] for _ in range(count)]
        errors: list[str | None] = [None] * count
        try:
            self._bring(0)
            for number in range(repeats * count):
                pair, target = number % count, (number + 1) % count
                on_stage("swaps")
                try:
                    times[pair].append(self._bring(target))
                except CoeError as error:
                    errors[pair] = f"{error.code}: {error.message}"
        except CoeError as error:
            errors = [f"{error.code}: {error.message}"] * count
        finally:
            self._end()
        return [self._result(pair, times[pair], errors[pair]) for pair in range(count)]

    def _bring(self, target: int) -> float:
        """Seconds until the model ``target`` has written a token, the end of the loaded one included."""
        spec, max_length = self._models[target]
        warm = BenchWorker(self._timeout_s)
        try:
            warm.hello()
        except BaseException:
            warm.process.kill()
            raise
        begin = time.perf_counter()
        self._end()
        self._loaded = warm
        warm.load(spec)
        warm.answer([prompt_ids(spec.shape.vocab_size, _PROMPT_TOKENS, "swap")], 1, max_length)
        return time.perf_counter() - begin

    def _end(self) -> None:
        if self._loaded is not None:
            self._loaded.process.kill()

    def _result(self, pair: int, times: Sequence[float], error: str | None) -> SwapTime:
        median = summarise(times, 4)
        return SwapTime(
            from_model=self._models[pair][0].name,
            to_model=self._models[(pair + 1) % len(self._models)][0].name,
            repeats=len(times),
            swap_s=None if median is None or error is not None else median.median,
            range_s=None if median is None or error is not None else median.range,
            error=error,
        )
