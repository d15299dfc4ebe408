"""A worker as the college sees it: an asyncio process whose messages become callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from coe_cli.core.model_spec import ModelSpec
from coe_cli.errors import CoeError, DeviceLost, from_code
from coe_cli.providers.settings import default_provider_options, default_session_options
from coe_cli.runtime.job_object import end_with_us
from coe_cli.runtime.process_log import ProcessLog
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_death import worker_death
from coe_cli.runtime.worker.worker_process import kill_told, worker_command, worker_environment

_EXIT_WAIT_S = 10.0
_EXIT_LOOK_S = 0.2
_DRAIN_S = 0.5

OnMessage = Callable[[protocol.FromWorker], None]
OnExit = Callable[[], None]


class ResidentWorker:
    """One model in one process. ``on_message`` hears of answers, ``on_exit`` of an end that nobody asked for.

    ``start`` starts the process, which imports the runtime; ``load`` gives it its model, and starts it if need be.
    """

    def __init__(self, command: list[str] | None = None, threads: int | None = None) -> None:
        self._threads = threads
        self._name = "a spare worker"
        self.load_s = 0.0
        self.running: set[int] = set()
        self.progress_at = time.monotonic()
        self.ending = False
        self._command = command or worker_command()
        self._process: asyncio.subprocess.Process | None = None
        self._log = ProcessLog()
        self._told_pid: int | None = None
        self._started = asyncio.Event()
        self._loaded: asyncio.Future[protocol.Loaded] | None = None
        self._killed = False
        self._ended_by_itself = False
        self._broken: DeviceLost | None = None
        self._reader: asyncio.Task[None] | None = None
        self.on_message: OnMessage = lambda message: None
        self.on_exit: OnExit = lambda: None

    @property
    def pid(self) -> int:
        """The process that has the model (see ``WorkerProcess.pid``), or 0."""
        return self._told_pid or (self._process.pid if self._process is not None else 0)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process.

        Raises:
            DeviceLost: it cannot be started.
        """
        flags: dict[str, Any] = (
            {"creationflags": 0x00000200} if sys.platform == "win32" else {"start_new_session": True}
        )
        if self.ending:
            raise self.death()
        self._loaded = asyncio.get_running_loop().create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._log.file,
                env=worker_environment(),
                **flags,
            )
        except OSError as error:
            raise DeviceLost(
                f"{self._name} cannot be started: {error}",
                "Free memory and processes, then try again.",
            ) from None
        finally:
            self._started.set()
        end_with_us(self._process.pid)
        self._reader = asyncio.create_task(self._listen())

    async def load(self, spec: ModelSpec, *, slots: int, warm_context_length: int | None, timeout_s: float) -> None:
        """Load the model.

        Raises:
            CoeError: what the worker says; DeviceLost if it cannot be started, ends, does not speak the protocol, or takes
                longer than ``timeout_s``.
        """
        self._name = f"the worker of `{spec.name}`"
        if self._loaded is None:
            await self.start()
        assert self._loaded is not None
        self.send(
            protocol.Load(
                folder=str(spec.folder),
                provider=spec.provider,
                session_options=default_session_options(spec.provider, self._threads),
                provider_options=default_provider_options(spec.provider),
                slots=slots,
                warm_context_length=warm_context_length,
            )
        )
        try:
            self.load_s = (await asyncio.wait_for(self._loaded, timeout_s)).load_s
        except TimeoutError:
            raise DeviceLost(
                f"`{spec.name}` did not load within {timeout_s:g} s", "Allow more time, or use a smaller model."
            ) from None

    def send(self, message: protocol.Message) -> None:
        """Queue one message; a worker that is gone is noticed by its exit."""
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(protocol.frame(message))

    def stuck(self, allowed_s: float) -> DeviceLost | None:
        """The error of a worker that has answers to write and has said nothing for longer than ``allowed_s``."""
        stuck_s = time.monotonic() - self.progress_at
        if not self.running or self.ending or stuck_s <= allowed_s:
            return None
        return DeviceLost(f"{self._name} made no progress for {stuck_s:.0f} s", "Ask again, or use a shorter prompt.")

    async def end(self) -> None:
        """End the process for certain and wait until it is gone; safe to call more than once."""
        self.ending = True
        if self._loaded is not None:
            await self._started.wait()
        if self._process is not None:
            self._kill()
            await self._gone()
        if self._reader is not None:
            await asyncio.wait([self._reader], timeout=_EXIT_WAIT_S)
            self._reader.cancel()
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(self.death())
            self._loaded.exception()  # nobody need wait for it any more
        self._log.close()

    def _kill(self) -> None:
        """SIGKILL to the process and to what it started, which may outlive it and hold its channel open."""
        if self._killed or self._process is None:
            return
        self._killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill_told(self._told_pid, self._process.pid)
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _gone(self, within_s: float = _EXIT_WAIT_S) -> None:
        """Wait until the process has ended, whoever holds its channel open; no longer than ``within_s``."""
        assert self._process is not None
        wait = asyncio.ensure_future(self._process.wait())
        deadline = time.monotonic() + within_s
        while self.alive and time.monotonic() < deadline:
            await asyncio.wait([wait], timeout=_EXIT_LOOK_S)
        wait.cancel()

    def death(self) -> CoeError:
        """The error that says how the worker ended."""
        if self._broken is not None:
            return self._broken
        code = self._process.returncode if self._process is not None else None
        return worker_death(self._name, code, self._log, by_us=not self._ended_by_itself)

    async def _listen(self) -> None:
        """Hand messages on until the process ends or its channel breaks, then see to it that both have."""
        assert self._process is not None and self._loaded is not None
        reading = asyncio.ensure_future(self._read())
        try:
            while not reading.done() and self.alive:
                await asyncio.wait([reading], timeout=_EXIT_LOOK_S)
            await asyncio.wait([reading], timeout=_DRAIN_S)  # what it had written before it ended
            problem = reading.exception() if reading.done() and not reading.cancelled() else None
            if problem is not None and not isinstance(problem, asyncio.IncompleteReadError | OSError):
                # The channel broke while the process runs on: it is of no use any more.
                self._broken = DeviceLost(
                    f"{self._name} wrote something else than the protocol ({problem})",
                    "Run it again.",
                )
            if isinstance(problem, asyncio.IncompleteReadError):
                await self._gone(_DRAIN_S)  # the channel's end is seen before that of the process
            self._ended_by_itself = not self.alive
            self._kill()
            await self._gone()
            await asyncio.wait([reading], timeout=_DRAIN_S)
        finally:
            reading.cancel()
        if not self._loaded.done():
            self._loaded.set_exception(self.death())
            self._loaded.exception()  # nobody need wait for it: a spare worker has no model yet
        elif not self.ending:
            self.on_exit()

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        stdout = self._process.stdout
        while True:
            message = protocol.decode_from_worker(
                await stdout.readexactly(protocol.frame_length(await stdout.readexactly(protocol.HEAD_BYTES)))
            )
            self.progress_at = time.monotonic()
            self._dispatch(message)

    def _dispatch(self, message: protocol.FromWorker) -> None:
        assert self._loaded is not None
        if isinstance(message, protocol.Hello):
            self._told_pid = message.pid
            end_with_us(message.pid)
            if message.protocol_version != protocol.PROTOCOL_VERSION and not self._loaded.done():
                self._loaded.set_exception(
                    DeviceLost(
                        f"the worker speaks protocol {message.protocol_version}, coe speaks {protocol.PROTOCOL_VERSION}",
                        "Two versions of coe-cli are mixed: install it again.",
                    )
                )
            return
        if isinstance(message, protocol.Loaded):
            if not self._loaded.done():
                self._loaded.set_result(message)
        elif isinstance(message, protocol.Failed) and message.request_id is None:
            error: CoeError = from_code(message.code, message.message, message.hint)
            if not self._loaded.done():
                self._loaded.set_exception(error)
        else:
            self.on_message(message)
