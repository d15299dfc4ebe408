"""A worker as the college sees it: its process's messages become callbacks in the college's loop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import CoeError, DeviceLost, from_code
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.single_worker import load_message, wrong_protocol
from coe_cli.runtime.worker.worker_process import WorkerProcess, worker_death

_EXIT_WAIT_S = 10.0
_EXIT_LOOK_S = 0.2
_DRAIN_S = 0.5

OnMessage = Callable[[protocol.FromWorker], None]
OnExit = Callable[[], None]


class WorkerHandle:
    """One model in one process. ``on_message`` hears of answers, ``on_exit`` of an end that nobody asked for.

    ``start`` starts the process, which imports the runtime; ``load`` gives it its model, and starts it if need be.
    """

    def __init__(self, command: list[str] | None = None, threads: int | None = None) -> None:
        self._threads = threads
        self._name = "a warm worker"
        self.load_s = 0.0
        self.running: set[int] = set()
        self._progress_at = 0.0
        self.ending = False
        self._command = command
        self._process: WorkerProcess | None = None
        self._loaded: asyncio.Future[protocol.Loaded] | None = None
        self._channel_ended = asyncio.Event()
        self._ended_by_itself = False
        self._broken: DeviceLost | None = None
        self._watching: asyncio.Task[None] | None = None
        self.on_message: OnMessage = lambda message: None
        self.on_exit: OnExit = lambda: None

    @property
    def pid(self) -> int:
        """The process that has the model (see ``WorkerProcess.pid``), or 0."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.alive

    def start(self, process: WorkerProcess | None = None) -> None:
        """Start the process, or take over one that was started ahead.

        Raises:
            DeviceLost: it cannot be started.
        """
        if self.ending:
            raise self.death()
        loop = asyncio.get_running_loop()
        self._loaded = loop.create_future()
        try:
            self._process = process or WorkerProcess(self._command)
        except OSError as error:
            program = (self._command or [sys.executable])[0]  # Windows' error does not name it
            raise DeviceLost(
                f"{self._name} cannot be started: {program}: {error.strerror or error}",
                "Free memory and processes, then try again.",
            ) from None

        def hear(message: protocol.FromWorker | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._hear, message)

        self._process.subscribe(hear)
        self._watching = asyncio.create_task(self._watch())

    async def load(
        self, spec: ModelSpec, *, slots: int, context_length: int, warm: bool = False, timeout_s: float
    ) -> None:
        """Load the model for so many slots; ``warm`` opens the first at once.

        Raises:
            CoeError: what the worker says; DeviceLost if it cannot be started, ends, does not speak the protocol, or takes
                longer than ``timeout_s``.
        """
        self._name = f"the worker of `{spec.name}`"
        if self._loaded is None:
            self.start()
        assert self._loaded is not None
        warm_length = context_length if warm else None
        self.send(
            load_message(
                spec, slots, threads=self._threads, warm_context_length=warm_length, context_length=context_length
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
        if self._process is not None:
            self._process.send(message)

    def begin(self, request_id: int) -> None:
        """Note that an answer is asked for: from now on the worker has something to say."""
        self.running.add(request_id)
        self._progress_at = asyncio.get_running_loop().time()

    def stuck(self, allowed_s: float) -> DeviceLost | None:
        """The error of a worker that has answers to write and has said nothing for longer than ``allowed_s``."""
        stuck_s = asyncio.get_running_loop().time() - self._progress_at
        if not self.running or self.ending or stuck_s <= allowed_s:
            return None
        return DeviceLost(f"{self._name} made no progress for {stuck_s:.0f} s", "Ask again, or use a shorter prompt.")

    async def end(self) -> None:
        """End the process for certain and wait until it is gone; safe to call more than once."""
        self.ending = True
        if self._process is not None:
            self._process.kill_now()
            await self._gone()
        if self._watching is not None:
            await asyncio.wait([self._watching], timeout=_EXIT_WAIT_S)
            self._watching.cancel()
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(self.death())
            self._loaded.exception()  # nobody need wait for it any more
        if self._process is not None:
            self._process.release()

    async def _gone(self, within_s: float = _EXIT_WAIT_S) -> None:
        """Wait until the process has ended, whoever holds its channel open; no longer than ``within_s``."""
        deadline, pause_s = time.monotonic() + within_s, 0.001
        while self.alive and time.monotonic() < deadline:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.05)

    def death(self) -> CoeError:
        """The error that says how the worker ended."""
        if self._broken is not None:
            return self._broken
        if self._process is None:
            return DeviceLost(f"{self._name} is gone", "Run it again.")
        return worker_death(self._name, self._process.exit_code, self._process.log, by_us=not self._ended_by_itself)

    async def _watch(self) -> None:
        """Wait until the process ends or its channel breaks, then see to it that both have."""
        assert self._process is not None and self._loaded is not None
        while self.alive and not await self._channel_ends(_EXIT_LOOK_S):
            pass
        await self._channel_ends(_DRAIN_S)  # what it had written before it ended
        problem = self._process.channel_problem
        if problem is not None:
            # The channel broke while the process runs on: it is of no use any more.
            self._broken = DeviceLost(
                f"{self._name} wrote something else than the protocol ({problem})", "Run it again."
            )
        elif self._channel_ended.is_set():
            await self._gone(_DRAIN_S)  # the channel's end is seen before that of the process
        self._ended_by_itself = not self.alive
        self._process.kill_now()
        await self._gone()
        await self._channel_ends(_DRAIN_S)
        if not self._loaded.done():
            self._loaded.set_exception(self.death())
            self._loaded.exception()  # nobody need wait for it: a warm worker has no model yet
        elif not self.ending:
            self.on_exit()

    async def _channel_ends(self, within_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._channel_ended.wait(), within_s)
        return self._channel_ended.is_set()

    def _hear(self, message: protocol.FromWorker | None) -> None:
        if message is None:
            self._channel_ended.set()
            return
        self._progress_at = asyncio.get_running_loop().time()
        self._dispatch(message)

    def _dispatch(self, message: protocol.FromWorker) -> None:
        assert self._loaded is not None
        if isinstance(message, protocol.Hello):
            if message.protocol_version != protocol.PROTOCOL_VERSION and not self._loaded.done():
                self._loaded.set_exception(wrong_protocol(message))
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
