"""A worker process under measurement: its load on this process's clock, its answers on its own, and swaps between two."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from coe_cli.core.bench.bench_figures import MeasuredAnswer, summarise
from coe_cli.core.bench.bench_grid import prompt_ids
from coe_cli.core.bench.bench_rows import SwapTime
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import CoeError
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.single_worker import SingleWorker

_PROMPT_TOKENS = 16


class BenchWorker(SingleWorker):
    """``load_s`` is the time from the request to load, made when ONNX Runtime GenAI is imported, to a model that is ready."""

    load_s = 0.0

    def load(self, spec: ModelSpec, slots: int = 1, context_length: int | None = None) -> None:
        self.hello()  # its imports are no part of the load
        begin = time.perf_counter()
        super().load(spec, slots, context_length)
        self.load_s = time.perf_counter() - begin

    def answer(self, prompts: Sequence[list[int]], gen_tokens: int, max_length: int) -> list[MeasuredAnswer]:
        """Answer all ``prompts`` (token ids) at once, ``gen_tokens`` each, greedily."""
        for number, ids in enumerate(prompts):
            self.generate(number, ids, max_length, gen_tokens, measured=True)
        reused: dict[int, int] = {}
        answers: dict[int, MeasuredAnswer] = {}
        while len(answers) < len(prompts):
            message = self.receive()
            if isinstance(message, protocol.Started):
                reused[message.request_id] = message.reused_tokens
            elif isinstance(message, protocol.Done):
                answers[message.request_id] = MeasuredAnswer(
                    began_s=message.token_at_s[0] - message.first_token_s,
                    token_at_s=tuple(message.token_at_s),
                    new_prompt_tokens=message.prompt_tokens - reused[message.request_id],
                )
        return [answers[number] for number in range(len(prompts))]


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
        warm.load(spec, context_length=max_length)
        warm.answer([prompt_ids(spec.shape.vocab_size, _PROMPT_TOKENS, "swap")], 1, max_length)
        return time.perf_counter() - begin

    def _end(self) -> None:
        if self._loaded is not None:
            self._loaded.process.kill()

    def _result(self, pair: int, times: Sequence[float], error: str | None) -> SwapTime:
        took = summarise(times if error is None else [], 4)
        first, then = (self._models[place % len(self._models)][0].name for place in (pair, pair + 1))
        return SwapTime(first, then, len(times), took.median, took.range, error)
