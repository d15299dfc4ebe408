"""One model in a worker process of coe's own, for what measures or proves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, TypeVar

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import DeviceLost, from_code
from coe_cli.providers.settings import default_provider_options, default_session_options
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_process import WorkerProcess

M = TypeVar("M", bound=protocol.Message)


def load_message(
    spec: ModelSpec,
    slots: int = 1,
    *,
    threads: int | None = None,
    warm_context_length: int | None = None,
    context_length: int | None = None,
) -> protocol.Load:
    """What has a worker load ``spec`` with this machine's options for its provider."""
    return protocol.Load(
        folder=str(spec.folder),
        provider=spec.provider,
        session_options=default_session_options(spec.provider, threads),
        provider_options=default_provider_options(spec.provider),
        slots=slots,
        warm_context_length=warm_context_length,
        context_length=context_length,
    )


class SingleWorker:
    """A new process, which imports ONNX Runtime GenAI; use it as a context manager, it ends with that.

    Every method raises what the worker says, or how it ended; TimedOut after ``timeout_s`` without a word.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._hello: protocol.Hello | None = None
        self.process = WorkerProcess()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def receive(self) -> protocol.FromWorker:
        message = self.process.receive(self._timeout_s)
        if isinstance(message, protocol.Failed):
            raise from_code(message.code, message.message, message.hint)
        return message

    def wait_for(self, kind: type[M]) -> M:
        """The next message of a kind; others are passed over."""
        while not isinstance(message := self.receive(), kind):
            pass
        return message

    def hello(self) -> protocol.Hello:
        """What it says of itself once the runtime is imported."""
        if self._hello is None:
            self._hello = self.wait_for(protocol.Hello)
        if self._hello.protocol_version != protocol.PROTOCOL_VERSION:
            raise wrong_protocol(self._hello)
        return self._hello

    def load(self, spec: ModelSpec, slots: int = 1, context_length: int | None = None) -> None:
        self.hello()
        self.process.send(load_message(spec, slots, context_length=context_length))
        self.wait_for(protocol.Loaded)

    def generate(
        self, number: int, prompt_ids: Sequence[int], context_length: int, max_tokens: int, *, measured: bool = False
    ) -> None:
        """Begin a greedy answer."""
        greedy = protocol.Sampling(temperature=0.0)
        ids = list(prompt_ids)
        self.process.send(
            protocol.Generate(number, ids, context_length, max_tokens, sampling=greedy, measured=measured)
        )


def wrong_protocol(hello: protocol.Hello) -> DeviceLost:
    return DeviceLost(
        f"the worker speaks protocol {hello.protocol_version}, coe speaks {protocol.PROTOCOL_VERSION}",
        "Two versions of coe-cli are mixed: install it again.",
    )
