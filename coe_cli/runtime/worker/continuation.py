"""What a model says next: load it in a worker of its own and continue texts, greedily and without a template."""

from __future__ import annotations

from collections.abc import Sequence

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import OutOfMemory
from coe_cli.runtime.prompts.prompt_messages import RAW_TEMPLATE, Prepare
from coe_cli.runtime.prompts.prompts import own
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.single_worker import SingleWorker

_CONTEXT = 512


def continue_prompts(
    spec: ModelSpec, prompts: Sequence[str], *, max_tokens: int, timeout_s: float = 600.0
) -> tuple[str, list[list[str]]]:
    """OGA's version, and for each prompt the pieces of text, one a token, that the model continues it with.

    Raises:
        ModelDamaged, OutOfMemory, DeviceLost, TimedOut: as the worker says, or by how it ends.
    """
    try:
        with SingleWorker(timeout_s) as worker:
            version = worker.hello().oga_version
            worker.load(spec)
            context = min(_CONTEXT, spec.context_length)
            pieces = []
            for number, prompt in enumerate(prompts):
                worker.generate(number, _ids(spec, prompt, context), context, max_tokens)
                pieces.append(_pieces(worker))
            return version, pieces
    except OutOfMemory as error:
        from coe_cli.runtime.server.running_college import out_of_memory_hint

        raise OutOfMemory(error.message, out_of_memory_hint(error.hint)) from error


def _ids(spec: ModelSpec, prompt: str, context: int) -> list[int]:
    messages = [protocol.ChatMessage("user", prompt)]
    return own().prepare(Prepare(spec.name, str(spec.folder), messages, context, RAW_TEMPLATE)).ids


def _pieces(worker: SingleWorker) -> list[str]:
    pieces: list[str] = []
    while not isinstance(message := worker.receive(), protocol.Done):
        if isinstance(message, protocol.Token):
            pieces.append(message.text)
    return pieces
