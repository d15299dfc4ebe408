"""coe's end of a worker: start the process, exchange messages, end it for certain, and say what its end means."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from coe_cli.core.process_exit import ExitKind
from coe_cli.errors import CoeError, DeviceLost, OutOfMemory, TimedOut
from coe_cli.interrupts import interrupt_put_off, on_interrupt
from coe_cli.package import python_environment, start_code
from coe_cli.runtime.job_object import OWN_GROUP, end_with_us, kill
from coe_cli.runtime.process_log import ProcessLog
from coe_cli.runtime.worker import protocol

if TYPE_CHECKING:
    import psutil

_START = start_code("coe_cli.runtime.worker.worker")
_EXIT_WAIT_S = 5.0
_LOOK_UP_S = 0.2


def worker_command() -> list[str]:
    """The command that starts a worker of this very coe."""
    return [sys.executable, "-P", "-c", _START]


def worker_environment() -> dict[str, str]:
    """The environment of a worker: ours, no telemetry, and weights in huge pages where the C library is glibc.

    Every token reads all the weights, and with pages of 4 KB the processor spends a tenth of the decode time looking the
    pages up. glibc reads its tunables when a process starts, and others do not know the variable.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" not in tunables:
        tunables = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    return python_environment(ORT_DISABLE_TELEMETRY="1", PYTHONUNBUFFERED="1", GLIBC_TUNABLES=tunables)


def _told_process(pid: int) -> psutil.Process | None:
    """A process that says that it has this id, which another one may have once it has ended."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return psutil.Process(pid)
    return None


class KilledFromOutside(DeviceLost):
    """The worker was ended by somebody else: by hand, or by the system when it ran out of memory."""


def worker_death(name: str, code: int | None, log: ProcessLog, *, by_us: bool = False) -> CoeError:
    """What to say of a worker that ended with ``code``, or is gone without one. ``by_us``: coe killed it."""
    if code is None:
        return DeviceLost(f"{name} is gone", "Run it again.")
    ended, words = log.explain(code)
    message = f"{name} {ended.text}" + (f": {words}" if words else "")
    if ended.kind is ExitKind.OUT_OF_MEMORY:
        return OutOfMemory(message, "Close other programs, or choose a smaller profile (-p minimal).")
    kind = KilledFromOutside if ended.kind is ExitKind.KILLED and not by_us else DeviceLost
    return kind(message, "Run it again; COE_DEBUG=1 shows what it printed.")


Subscriber = Callable[[protocol.FromWorker | None], None]


class WorkerProcess:
    """A running worker. The process starts at once; it imports OGA while the caller goes on.

    What the worker or native code prints goes to a temporary file that ends with the worker; ``stderr_tail`` reads it.
    """

    def __init__(self, command: list[str] | None = None) -> None:
        self.log = ProcessLog()
        self.channel_problem: Exception | None = None
        """Set before the channel's end is heard of, where the worker wrote something else than the protocol."""
        self._messages: queue.SimpleQueue[protocol.FromWorker | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._subscriber: Subscriber = self._messages.put
        self._handing_on = threading.Lock()
        self._killed = False
        self._told_pid: int | None = None
        self._behind_launcher: psutil.Process | None = None
        with interrupt_put_off():
            self._process = subprocess.Popen(
                command or worker_command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log.file,
                env=worker_environment(),
                **OWN_GROUP,
            )
            _living.add(self)
        end_with_us(self._process.pid)
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._write, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process that has the model: in a venv on Windows not the one that was started, which is a launcher."""
        return self._told_pid or self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """As ``subprocess`` has it; None while the process runs."""
        return self._process.poll()

    def send(self, message: protocol.Message) -> None:
        """Queue one message, for a worker in mid-prefill reads nothing; one that is gone is noticed by its last words."""
        self._outbox.put(protocol.frame(message))

    def subscribe(self, subscriber: Subscriber) -> None:
        """Hand each message to ``subscriber`` from a thread, and None at the channel's end; ``receive`` is of no use then."""
        with self._handing_on:
            self._subscriber = subscriber
            while not self._messages.empty():
                subscriber(self._messages.get())

    def receive(self, timeout_s: float | None = None) -> protocol.FromWorker:
        """The next message.

        Raises:
            DeviceLost, OutOfMemory: the worker has ended, after the last message that it sent.
            TimedOut: nothing came for ``timeout_s`` seconds.
            KeyboardInterrupt: Ctrl-C, even if it was lost earlier on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            check_interrupted()
            left_s = _LOOK_UP_S if deadline is None else min(_LOOK_UP_S, max(0.0, deadline - time.monotonic()))
            try:
                message = self._messages.get(timeout=left_s)
                break
            except queue.Empty:
                # Woken now and then, since a wait without an end does not see Ctrl-C on Windows.
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimedOut(
                        f"the worker said nothing for {timeout_s:g} s",
                        "Allow more time with --timeout, or use a smaller model.",
                    ) from None
        if message is None:
            self._messages.put(None)  # for who asks again
            raise self.death()
        return message

    def death(self) -> CoeError:
        """The error that says how the worker ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_EXIT_WAIT_S)
        return worker_death("the worker", self._process.returncode, self.log)

    def kill_now(self) -> None:
        """SIGKILL to the process and to what it started, which may outlive it and hold its channel open."""
        if self._killed:
            return
        self._killed = True
        if self._behind_launcher is not None:
            import psutil

            with contextlib.suppress(psutil.Error, OSError):
                self._behind_launcher.kill()
        if sys.platform == "win32":
            kill(self._process)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the process now and wait for it; safe to call more than once."""
        self.kill_now()
        self._process.wait()
        self.release()

    def release(self) -> None:
        """Give back what is held for a process that has ended."""
        _living.discard(self)
        self._outbox.put(None)
        if os.environ.get("COE_DEBUG"):
            sys.stderr.write(self.stderr_tail())
        self.log.close()

    def stderr_tail(self) -> str:
        """The end of what the worker printed on stderr."""
        return "".join(f"{line}\n" for line in self.log.tail())

    def _listen(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        try:
            while (message := protocol.read_from_worker(stdout)) is not None:  # type: ignore[arg-type]
                if isinstance(message, protocol.Hello):
                    self._told_pid = message.pid
                    if message.pid != self._process.pid:
                        self._behind_launcher = _told_process(message.pid)
                    end_with_us(message.pid)
                self._hand_on(message)
        except msgspec.MsgspecError as error:
            self.channel_problem = error
        except (OSError, ValueError):
            pass
        self._hand_on(None)
        with contextlib.suppress(OSError):
            stdout.close()

    def _hand_on(self, message: protocol.FromWorker | None) -> None:
        with self._handing_on:
            self._subscriber(message)

    def _write(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError, ValueError):
            while (frame := self._outbox.get()) is not None:
                stdin.write(frame)
                stdin.flush()
        with contextlib.suppress(OSError, ValueError):
            stdin.close()


_living: set[WorkerProcess] = set()
_early: WorkerProcess | None = None
_interrupted = threading.Event()


def _on_interrupt(signal_number: int, frame: object) -> None:
    """Remember Ctrl-C: raised inside a callback of the interpreter or a careless import, the exception is lost."""
    _interrupted.set()
    raise KeyboardInterrupt


def start_early() -> None:
    """Start a worker before the command line is parsed, so that OGA is imported meanwhile."""
    global _early
    on_interrupt(_on_interrupt)
    _early = WorkerProcess()


def check_interrupted() -> None:
    """
    Raises:
        KeyboardInterrupt: Ctrl-C, even if it was lost earlier on.
    """
    if _interrupted.is_set():
        raise KeyboardInterrupt


def take() -> WorkerProcess | None:
    """The worker that was started early, if there is one."""
    global _early
    worker, _early = _early, None
    return worker if worker is not None and worker.alive else None


def end_all() -> None:
    """End every worker of this process, whoever had it when an interrupt came between two owners."""
    for worker in list(_living):
        worker.kill()
