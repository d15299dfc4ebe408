"""One question to one worker of coe's own: what `coe ask --no-serve` does. Its events are those of a college."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from coe_cli.core.model_spec import ModelSpec
from coe_cli.errors import DeviceLost, from_code
from coe_cli.providers.settings import default_provider_options, default_session_options
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college import translation
from coe_cli.runtime.prompts import prompts
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_process import WorkerProcess

if TYPE_CHECKING:
    from coe_cli.runtime.college.recorder import Recorder


def begin_loading(worker: WorkerProcess, spec: ModelSpec, slots: int = 1) -> None:
    """Tell the worker to load; it answers when it has, so the caller can go on meanwhile."""
    worker.send(
        protocol.Load(
            folder=str(spec.folder),
            provider=spec.provider,
            slots=slots,
            session_options=default_session_options(spec.provider),
            provider_options=default_provider_options(spec.provider),
        )
    )


def events(
    worker: WorkerProcess,
    spec: ModelSpec,
    ask: ce.AskByName,
    context_length: int,
    timeout_s: float,
    recorder: Recorder,
) -> Iterator[ce.CollegeEvent]:
    """Events of one answer of a worker that is loading ``spec``, ending with ``Finished``.

    Raises:
        PromptTooLong, ModelDamaged, UsageError: there is no prompt.
        OutOfMemory, DeviceLost, TimedOut: as the worker says, or by how it ends.
    """
    making = prompts.own().submit(translation.to_prepare(ask, spec, context_length))
    yield ce.Loading()
    load_s = wait_until_loaded(worker, timeout_s)
    prompt = prompts.result(making)
    recorder.loaded(spec, worker.pid)
    recorder.begun(worker.pid, beside=False)
    worker.send(translation.to_worker(1, ask, prompt, context_length))
    while True:
        message = worker.receive(timeout_s)
        if isinstance(message, protocol.Token):
            yield translation.piece(message)
        elif isinstance(message, protocol.Started):
            yield translation.reading(message, prompt, load_s, worker.pid)
        elif isinstance(message, protocol.Failed):
            raise from_code(message.code, message.message, message.hint)
        elif isinstance(message, protocol.Done):
            recorder.answered(spec, worker.pid, context_length, message.prompt_tokens)
            yield translation.finished(message)
            return


def wait_until_loaded(worker: WorkerProcess, timeout_s: float) -> float:
    """Seconds of the load as the worker measured them.

    Raises:
        CoeError: what the worker says, or how it ended; TimedOut after ``timeout_s`` without a word.
    """
    while True:
        message = worker.receive(timeout_s)
        if isinstance(message, protocol.Loaded):
            return message.load_s
        if isinstance(message, protocol.Failed):
            raise from_code(message.code, message.message, message.hint)
        if isinstance(message, protocol.Hello) and message.protocol_version != protocol.PROTOCOL_VERSION:
            raise DeviceLost(
                f"the worker speaks protocol {message.protocol_version}, coe speaks {protocol.PROTOCOL_VERSION}",
                "Two versions of coe-cli are mixed: install it again.",
            )
