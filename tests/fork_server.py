"""coe's command line as a process that is forked from one in which it is imported already, instead of started anew.

What runs is a process all the same: with streams, folder, environment, memory and an exit code of its own. It spares the start
of the interpreter and the imports, which are ten times the work of most commands. Where how a process starts is what is tested
(``-X importtime``, locales, limits of the system), and on Windows, a command is started as users start it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

_PACKAGES = ("commands", "use_cases", "output", "core", "runtime.college", "runtime.client", "runtime.conversation")
_MODULES = ("platformdirs.unix", "filelock", "psutil", "csv", "coe_cli.providers.cpu", "coe_cli.runtime.probe")
_LARGEST = 150_000
"""Bytes of arguments and environment in one message."""


class ForkServer:
    """Starts commands; one for a session of tests."""

    def __init__(self, environment: dict[str, str]) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _LARGEST)
        self._requests = ours
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(its.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=[its.fileno()],
                start_new_session=True,
            )

    def run(
        self, arguments: list[str], stdin: bytes, folder: Path, environment: dict[str, str], timeout_s: float
    ) -> tuple[bytes, bytes, int] | None:
        """What came on stdout and stderr, and the exit code, negative for a signal; None if it does not fit a message.

        Raises:
            TimeoutError: it ran longer than ``timeout_s``, and was killed.
        """
        message = json.dumps([arguments, str(folder), environment]).encode()
        if len(message) > _LARGEST:
            return None
        told, tells = socket.socketpair()
        pipes = [os.pipe() for _ in range(3)]
        (its_stdin, our_stdin), (our_stdout, its_stdout), (our_stderr, its_stderr) = pipes
        its = (its_stdin, its_stdout, its_stderr, tells.fileno())
        try:
            socket.send_fds(self._requests, [message], its)
        finally:
            tells.close()
            for descriptor in its[:3]:
                os.close(descriptor)
        out, error = _Reader(our_stdout), _Reader(our_stderr)
        threading.Thread(target=_write, args=[our_stdin, stdin], daemon=True).start()
        told.settimeout(timeout_s)
        with told, told.makefile("r") as lines:
            pid = int(lines.readline())
            try:
                code = int(lines.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise TimeoutError(f"{arguments} did not end within {timeout_s} s") from None
        return out.read(), error.read(), code

    def close(self) -> None:
        self._requests.close()
        self._process.communicate(timeout=200)


class _Reader(threading.Thread):
    """Reads a pipe until the last who can write to it has closed it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor, self._data = descriptor, b""
        self.start()

    def run(self) -> None:
        with open(self._descriptor, "rb") as stream:  # noqa: PTH123
            self._data = stream.read()

    def read(self) -> bytes:
        self.join(200)
        assert not self.is_alive(), "a process that goes on has kept the stream of the one that ended"
        return self._data


def _write(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(OSError), open(descriptor, "wb") as stream:
        stream.write(data)


def _import_all() -> None:
    """What most commands import, and nothing that starts threads or reads the environment when it is imported."""
    import coe_cli.__main__
    import coe_cli.app  # noqa: F401

    for name in _MODULES:
        importlib.import_module(name)
    for name in _PACKAGES:
        package = importlib.import_module(f"coe_cli.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"coe_cli.{name}."):
            importlib.import_module(module.name)


def _serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request; returns its arguments in the child, and None in the server once nobody asks any more."""
    running: dict[int, IO[str]] = {}
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    import select

    own_path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    rest = [entry for entry in sys.path if entry not in own_path]
    while True:
        ready, _, _ = select.select([requests.fileno(), ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            while running:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                with contextlib.suppress(OSError), running.pop(pid) as tell:
                    print(os.waitstatus_to_exitcode(status), file=tell)
        if requests.fileno() not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, 2 * _LARGEST, 4)
        if not message:
            return None
        pid = os.fork()
        if pid:
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            tell = running[pid] = open(descriptors[3], "w", buffering=1)  # noqa: PTH123, SIM115
            with contextlib.suppress(OSError):
                print(pid, file=tell)
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for tell in running.values():
            tell.close()
        for descriptor in (ended, wake, descriptors[3], requests.detach()):
            os.close(descriptor)
        for descriptor, standard in zip(descriptors, (0, 1, 2), strict=False):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in enumerate("rww"))  # noqa: PTH123, SIM115
        arguments, folder, environment = json.loads(message)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = [folder, *environment.get("PYTHONPATH", "").split(os.pathsep), *rest]
        importlib.invalidate_caches()
        found: list[str] = arguments
        return found


def _main() -> Any:
    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _import_all()
    import gc

    gc.freeze()
    arguments = _serve(requests)
    if arguments is None:
        return
    from coe_cli.__main__ import main

    sys.argv = [str(Path(main.__code__.co_filename)), *arguments]
    main()


if __name__ == "__main__":
    _main()
