"""One model in one process: load, generate, cancel between tokens; unloading is the end of the process.

The private channel is what stdin and stdout were at the start. File descriptor 1 is pointed at stderr before ONNX Runtime
GenAI is imported, because native code prints there. When the channel closes, the parent is gone and so is the worker.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from typing import Any, BinaryIO, NoReturn

from coe_cli.core.providers import all_specs, expected_on
from coe_cli.errors import CoeError
from coe_cli.interrupts import on_interrupt
from coe_cli.package import install_command
from coe_cli.runtime.private_channel import die_with_parent, take_standard_streams
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.generation import Generation, PreparedModel
from coe_cli.runtime.worker.oga_errors import from_oga


class Worker:
    """Serves one channel: messages come through ``inbox``, answers leave through ``channel``."""

    def __init__(
        self, inbox: queue.SimpleQueue[protocol.ToWorker | protocol.Failed], channel: BinaryIO, oga: Any
    ) -> None:
        self._inbox = inbox
        self._channel = channel
        self._oga = oga
        self._model: PreparedModel | None = None
        self._running: deque[tuple[Generation, _Unsent]] = deque()

    def serve(self) -> NoReturn:
        """Handle messages until the channel ends; running generations take turns, one token each."""
        while True:
            message = self._next_message()
            if isinstance(message, protocol.Load):
                self._load(message)
            elif isinstance(message, protocol.Generate):
                self._start(message)
            elif isinstance(message, protocol.Cancel):
                self._cancel(message.request_id)
            elif isinstance(message, protocol.Failed):
                self._send(message)
            elif self._running:
                self._step()

    def _next_message(self) -> protocol.ToWorker | protocol.Failed | None:
        try:
            return self._inbox.get(block=not self._running)
        except queue.Empty:
            return None

    def _load(self, message: protocol.Load) -> None:
        begin = time.perf_counter()
        try:
            self._model = PreparedModel(self._oga, message)
        except Exception as error:
            name = os.path.basename(message.folder)  # noqa: PTH119 - importing pathlib costs start-up time
            self._fail(from_oga(error, model=name, provider=message.provider, loading=True))
            return
        self._send(protocol.Loaded(load_s=time.perf_counter() - begin))

    def _start(self, message: protocol.Generate) -> None:
        if self._model is None:
            self._send(protocol.Failed("unexpected", "generate before load", request_id=message.request_id))
            return
        generation = Generation(self._model, message)
        try:
            self._send(generation.prepare())
        except Exception as error:
            generation.release(reusable=False)
            self._fail(self._explain(error), message.request_id)
            return
        self._running.append((generation, _Unsent(message.flush_s)))

    def _step(self) -> None:
        generation, unsent = self._running.popleft()
        try:
            text = generation.step()
        except Exception as error:
            generation.release(reusable=False)
            self._fail(self._explain(error), generation.request_id)
            return
        if text is None:
            self._running.append((generation, unsent))
            return
        reason = generation.finish_reason
        tokens = unsent.add(text, last=reason is not None)
        logprobs = generation.take_logprobs() if tokens or reason is not None else []
        if tokens or logprobs:
            self._send(protocol.Token(generation.request_id, unsent.take(), tokens, logprobs))
        if reason is None:
            self._running.append((generation, unsent))
        else:
            generation.release()
            self._send(generation.done(reason))

    def _cancel(self, request_id: int) -> None:
        for running in list(self._running):
            generation, _ = running
            if generation.request_id == request_id:
                self._running.remove(running)
                generation.release()
                self._send(generation.done("cancelled"))

    def _explain(self, error: Exception) -> CoeError:
        assert self._model is not None
        return from_oga(error, model=self._model.name, provider=self._model.provider, loading=False)

    def _fail(self, error: CoeError, request_id: int | None = None) -> None:
        self._send(protocol.Failed(error.code, error.message, error.hint, request_id))

    def _send(self, message: protocol.Message) -> None:
        protocol.write(self._channel, message)


class _Unsent:
    """Text of one answer that has not been sent. Each message costs the reader's side time that the model would have used."""

    def __init__(self, flush_s: float) -> None:
        self._flush_s = flush_s
        self._due_at = 0.0
        self._parts: list[str] = []
        self._tokens = 0

    def add(self, text: str, *, last: bool) -> int:
        """Take in one token's text; of how many tokens text is to be sent now."""
        self._parts.append(text)
        self._tokens += 1
        now = time.perf_counter()
        if not (last or now >= self._due_at) or not any(self._parts):
            return 0
        self._due_at = now + self._flush_s
        tokens, self._tokens = self._tokens, 0
        return tokens

    def take(self) -> str:
        """The text, which is then no longer unsent."""
        text = "".join(self._parts)
        self._parts.clear()
        return text


def main() -> None:
    """Run a worker on this process's stdin and stdout."""
    on_interrupt(signal.SIG_IGN)
    channel_in, channel_out = take_standard_streams()
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    inbox: queue.SimpleQueue[protocol.ToWorker | protocol.Failed] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel_in, inbox), daemon=True).start()
    try:
        import onnxruntime_genai as oga
    except ImportError as error:
        protocol.write(
            channel_out,
            protocol.Failed(
                "device_lost",
                f"onnxruntime_genai cannot be imported: {error}",
                f"Install a runtime (one of {', '.join(spec.extra for spec in all_specs())}): "
                + install_command(expected_on(sys.platform).extra),
            ),
        )
        return
    die_with_parent()
    version = str(getattr(oga, "__version__", "unknown"))
    try:
        protocol.write(channel_out, protocol.Hello(protocol.PROTOCOL_VERSION, version, os.getpid()))
        Worker(inbox, channel_out, oga).serve()
    except (BrokenPipeError, OSError):
        pass
    finally:
        sys.stderr.flush()
        # Not sys.exit: destructors of a large model take seconds and can hang in a driver; the system frees faster.
        os._exit(0)


def _listen(channel: BinaryIO, inbox: queue.SimpleQueue[protocol.ToWorker | protocol.Failed]) -> None:
    try:
        while (message := protocol.read_to_worker(channel)) is not None:
            inbox.put(message)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
