"""A worker process under measurement: its load on this process's clock, its answers on its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from coe_cli.core.bench.bench_figures import MeasuredAnswer
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import DeviceLost, from_code
from coe_cli.runtime.college.one_shot import begin_loading, wait_until_loaded
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_process import WorkerProcess


class BenchWorker:
    """One model in a new process, or in a ``process`` that is ready; use as a context manager, the process ends with it.

    ``load_s`` is the time from the request to load, made when ONNX Runtime GenAI is imported, to a model that is ready.

    Raises:
        CoeError: the model cannot be loaded; TimedOut after ``timeout_s`` without a word.
    """

    def __init__(self, spec: ModelSpec, slots: int, timeout_s: float, process: WorkerProcess | None = None) -> None:
        self._timeout_s = timeout_s
        self._process = process or ready_process(timeout_s)
        try:
            begin = time.perf_counter()
            begin_loading(self._process, spec, slots)
            wait_until_loaded(self._process, timeout_s)
            self.load_s = time.perf_counter() - begin
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self, prompts: Sequence[list[int]], gen_tokens: int, max_length: int) -> list[MeasuredAnswer]:
        """Answer all ``prompts`` (token ids) at once, ``gen_tokens`` each, greedily.

        Raises:
            CoeError: what the worker says, or how it ended; TimedOut after ``timeout_s`` without a word.
        """
        for number, ids in enumerate(prompts):
            self._process.send(
                protocol.Generate(
                    request_id=number,
                    context_length=max_length,
                    max_tokens=gen_tokens,
                    sampling=protocol.Sampling(temperature=0.0),
                    prompt_ids=ids,
                    measured=True,
                )
            )
        reused: dict[int, int] = {}
        answers: dict[int, MeasuredAnswer] = {}
        while len(answers) < len(prompts):
            message = self._process.receive(self._timeout_s)
            if isinstance(message, protocol.Failed):
                raise from_code(message.code, message.message, message.hint)
            if isinstance(message, protocol.Started):
                reused[message.request_id] = message.reused_tokens
            elif isinstance(message, protocol.Done):
                answers[message.request_id] = _measured(message, reused[message.request_id])
        return [answers[number] for number in range(len(prompts))]


def ready_process(timeout_s: float) -> WorkerProcess:
    """A worker that has imported ONNX Runtime GenAI and waits for a model.

    Raises:
        CoeError: what the worker says, or how it ended; TimedOut after ``timeout_s`` without a word.
    """
    process = WorkerProcess()
    try:
        message = process.receive(timeout_s)
        if isinstance(message, protocol.Failed):
            raise from_code(message.code, message.message, message.hint)
        if not isinstance(message, protocol.Hello) or message.protocol_version != protocol.PROTOCOL_VERSION:
            raise DeviceLost("the worker does not speak this protocol", "Install coe-cli again.")
    except BaseException:
        process.kill()
        raise
    return process


def _measured(done: protocol.Done, reused_tokens: int) -> MeasuredAnswer:
    return MeasuredAnswer(
        began_s=done.token_at_s[0] - done.first_token_s,
        token_at_s=tuple(done.token_at_s),
        new_prompt_tokens=done.prompt_tokens - reused_tokens,
    )
