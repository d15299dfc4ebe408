"""Load a model in one worker of coe's own, for what measures or proves it."""

from __future__ import annotations

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import DeviceLost, from_code
from coe_cli.providers.settings import default_provider_options, default_session_options
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_process import WorkerProcess


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
