"""One question, one worker, one answer: what `coe ask --no-serve` does between the command line and the sink."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from coe_cli.core.answer import ANSWER_SCHEMA_VERSION, Answer, Timing, Usage, tokens_per_s
from coe_cli.core.model_spec import ModelSpec
from coe_cli.core.selection import Choice
from coe_cli.core.thinking import ThinkingSplitter
from coe_cli.errors import DeviceLost, from_code
from coe_cli.runtime import protocol
from coe_cli.runtime.providers import default_provider_options, default_session_options
from coe_cli.runtime.worker_process import WorkerProcess


class Question(NamedTuple):
    """What to ask of which model; ``context_length`` bounds prompt and answer together."""

    choice: Choice
    spec: ModelSpec
    profile: str
    messages: list[protocol.ChatMessage]
    context_length: int
    max_tokens: int | None
    sampling: protocol.Sampling
    timeout_s: float


class Listener(Protocol):
    """Hears of an answer while it is made."""

    def phase(self, name: str, worker_pid: int) -> None: ...

    def piece(self, text: str, *, is_thinking: bool) -> None: ...


def begin_loading(worker: WorkerProcess, spec: ModelSpec) -> None:
    """Tell the worker to load; it answers when it has, so the caller can go on meanwhile."""
    worker.send(
        protocol.Load(
            folder=str(spec.folder),
            provider=spec.provider,
            session_options=default_session_options(spec.provider),
            provider_options=default_provider_options(spec.provider),
        )
    )


def answer(worker: WorkerProcess, question: Question, listener: Listener, clock: Callable[[], float]) -> Answer:
    """Ask a worker that is loading; every piece goes to ``listener`` as it comes, and the whole is returned.

    Raises:
        PromptTooLong, ModelDamaged, OutOfMemory, DeviceLost, TimedOut: as the worker says, or by how it ends.
    """
    begin = clock()
    listener.phase("loading", worker.pid)
    load_s = _wait_until_loaded(worker, question.timeout_s)
    worker.send(
        protocol.Generate(
            request_id=1,
            messages=question.messages,
            context_length=question.context_length,
            max_tokens=question.max_tokens,
            template=question.choice.template,
            sampling=question.sampling,
        )
    )
    listener.phase("reading the prompt", worker.pid)
    splitter = ThinkingSplitter()
    text: dict[bool, list[str]] = {False: [], True: []}

    def deliver(pieces: list[tuple[str, bool]]) -> None:
        for piece, is_thinking in pieces:
            text[is_thinking].append(piece)
            listener.piece(piece, is_thinking=is_thinking)

    while True:
        message = worker.receive(question.timeout_s)
        if isinstance(message, protocol.Token):
            deliver(list(splitter.feed(message.text)))
        elif isinstance(message, protocol.Started):
            splitter = ThinkingSplitter(in_thinking=message.in_thinking)
        elif isinstance(message, protocol.Failed):
            raise from_code(message.code, message.message, message.hint)
        elif isinstance(message, protocol.Done):
            deliver(list(splitter.finish()))
            break
    return Answer(
        schema_version=ANSWER_SCHEMA_VERSION,
        answer="".join(text[False]).strip("\n"),
        thinking="".join(text[True]).strip(),
        expert=question.choice.expert,
        model=question.spec.name,
        provider=question.spec.provider,
        profile=question.profile,
        finish_reason=message.finish_reason,
        usage=Usage(message.prompt_tokens, message.completion_tokens),
        timing=Timing(
            load_s=load_s,
            first_token_s=message.first_token_s,
            decode_s=message.decode_s,
            total_s=clock() - begin,
            tokens_per_s=tokens_per_s(message.completion_tokens, message.decode_s),
        ),
        warnings=list(question.choice.notes),
    )


def _wait_until_loaded(worker: WorkerProcess, timeout_s: float) -> float:
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


def monotonic() -> float:
    """Seconds of a clock that never goes back."""
    return time.monotonic()
