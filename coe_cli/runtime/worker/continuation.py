"""What a model says next: load it in a worker of its own and continue texts, greedily and without a template."""

from __future__ import annotations

from collections.abc import Sequence

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import OutOfMemory, from_code
from coe_cli.runtime.college.one_shot import begin_loading
from coe_cli.runtime.prompts.prompt_messages import RAW_TEMPLATE, Prepare
from coe_cli.runtime.prompts.prompts import own
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_process import WorkerProcess

_CONTEXT = 512


def continue_prompts(
    spec: ModelSpec, prompts: Sequence[str], *, max_tokens: int, timeout_s: float = 600.0
) -> tuple[str, list[list[str]]]:
    """OGA's version, and for each prompt the pieces of text, one a token, that the model continues it with.

    Raises:
        ModelDamaged, OutOfMemory, DeviceLost, TimedOut: as the worker says, or by how it ends.
    """
    worker = WorkerProcess()
    try:
        begin_loading(worker, spec)
        version = "unknown"
        while not isinstance(message := worker.receive(timeout_s), protocol.Loaded):
            if isinstance(message, protocol.Failed):
                raise from_code(message.code, message.message, message.hint)
            if isinstance(message, protocol.Hello):
                version = message.oga_version
        context = min(_CONTEXT, spec.context_length)
        prompted = [_ids(spec, prompt, context) for prompt in prompts]
        pieces = [_continue(worker, number, ids, context, max_tokens, timeout_s) for number, ids in enumerate(prompted)]
        return version, pieces
    except OutOfMemory as error:
        from coe_cli.runtime.server.running_college import out_of_memory_hint

        raise OutOfMemory(error.message, out_of_memory_hint(error.hint)) from error
    finally:
        worker.kill()


def _ids(spec: ModelSpec, prompt: str, context: int) -> list[int]:
    messages = [protocol.ChatMessage("user", prompt)]
    return own().prepare(Prepare(spec.name, str(spec.folder), messages, context, RAW_TEMPLATE)).ids


def _continue(
    worker: WorkerProcess, number: int, ids: list[int], context: int, max_tokens: int, timeout_s: float
) -> list[str]:
    worker.send(
        protocol.Generate(
            request_id=number,
            prompt_ids=ids,
            context_length=context,
            max_tokens=max_tokens,
            sampling=protocol.Sampling(temperature=0.0),
        )
    )
    pieces: list[str] = []
    while not isinstance(message := worker.receive(timeout_s), protocol.Done):
        if isinstance(message, protocol.Failed):
            raise from_code(message.code, message.message, message.hint)
        if isinstance(message, protocol.Token):
            pieces.append(message.text)
    return pieces
