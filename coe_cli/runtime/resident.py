"""A worker as the college sees it: an asyncio process whose messages become callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

import msgspec

from coe_cli.core.model_spec import ModelSpec
from coe_cli.errors import CoeError, DeviceLost, TimedOut, from_code
from coe_cli.runtime import protocol
from coe_cli.runtime.providers import default_session_options
from coe_cli.runtime.worker_process import worker_command, worker_environment

_STDERR_TAIL_BYTES = 4000

OnMessage = Callable[[protocol.FromWorker], None]
OnExit = Callable[[], None]


class ResidentWorker:
    """One model in one process. ``on_message`` hears of answers, ``on_exit`` of an end that nobody asked for."""

    def __init__(self, spec: ModelSpec, command: list[str] | None = None) -> None:
        self.spec = spec
        self.load_s = 0.0
        self.running: set[int] = set()
        self.progress_at = time.monotonic()
        self.ending = False
        self._command = command or worker_command()
        self._process: asyncio.subprocess.Process | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._loaded: asyncio.Future[protocol.Loaded] | None = None
        self._reader: asyncio.Task[None] | None = None
        self.on_message: OnMessage = lambda message: None
        self.on_exit: OnExit = lambda: None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def load(self, *, slots: int, context_length: int, timeout_s: float) -> None:
        """Start the process and load the model.

        Raises:
            CoeError: what the worker says, DeviceLost if it ends, TimedOut if it takes longer than ``timeout_s``.
        """
        flags: dict[str, Any] = (
            {"creationflags": 0x00000200} if sys.platform == "win32" else {"start_new_session": True}
        )
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            env=worker_environment(),
            **flags,
        )
        self._loaded = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._listen())
        self.send(
            protocol.Load(
                folder=str(self.spec.folder),
                provider=self.spec.provider,
                session_options=default_session_options(self.spec.provider),
                slots=slots,
                warm_context_length=context_length,
            )
        )
        try:
            self.load_s = (await asyncio.wait_for(asyncio.shield(self._loaded), timeout_s)).load_s
        except TimeoutError:
            raise TimedOut(
                f"`{self.spec.name}` did not load within {timeout_s:g} s", "Allow more time, or use a smaller model."
            ) from None

    def send(self, message: protocol.Message) -> None:
        """Queue one message; a worker that is gone is noticed by its exit."""
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(protocol.frame(message))

    async def end(self) -> None:
        """End the process for certain and wait until it is gone; safe to call more than once."""
        self.ending = True
        if self.alive:
            assert self._process is not None
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        if self._process is not None:
            await self._process.wait()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._loaded is not None and not self._loaded.done():
            self._loaded.cancel()
        self._log.close()

    def death(self) -> DeviceLost:
        """The error that says how the worker ended."""
        code = self._process.returncode if self._process is not None else None
        how = "is gone" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        tail = self.stderr_tail().strip().splitlines()
        return DeviceLost(
            f"the worker of `{self.spec.name}` {how}" + (f": {tail[-1]}" if tail else ""), "Run it again."
        )

    def stderr_tail(self) -> str:
        """The end of what the worker printed on stderr."""
        try:
            size = os.fstat(self._log.fileno()).st_size
            self._log.seek(max(0, size - _STDERR_TAIL_BYTES))
            return self._log.read().decode("utf-8", "replace")
        except (OSError, ValueError):
            return ""

    async def _listen(self) -> None:
        assert self._process is not None and self._process.stdout is not None and self._loaded is not None
        stdout = self._process.stdout
        try:
            while True:
                message = protocol.decode_from_worker(
                    await stdout.readexactly(protocol.frame_length(await stdout.readexactly(protocol.HEAD_BYTES)))
                )
                self.progress_at = time.monotonic()
                self._dispatch(message)
        except (asyncio.IncompleteReadError, OSError, msgspec.MsgspecError):
            pass
        if self.alive and not self.ending:
            # The channel broke while the process runs on: it is of no use any more.
            self._process.kill()
        await self._process.wait()
        if not self._loaded.done():
            self._loaded.set_exception(self.death())
        elif not self.ending:
            self.on_exit()

    def _dispatch(self, message: protocol.FromWorker) -> None:
        assert self._loaded is not None
        if isinstance(message, protocol.Hello):
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

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the process, if it is still there."""
        if self.alive:
            os.kill(self.pid, number)
