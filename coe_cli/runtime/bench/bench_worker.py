"""A worker process under measurement: its load on this process's clock, its answers on its own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from coe_cli.core.bench.bench_figures import MeasuredAnswer
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.single_worker import SingleWorker


class BenchWorker(SingleWorker):
    """``load_s`` is the time from the request to load, made when ONNX Runtime GenAI is imported, to a model that is ready."""

    load_s = 0.0

    def load(self, spec: ModelSpec, slots: int = 1) -> None:
        self.hello()  # its imports are no part of the load
        begin = time.perf_counter()
        super().load(spec, slots)
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
