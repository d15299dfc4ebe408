"""Runs one of our own modules as a child process that reports in JSON lines, so that its memory goes when it ends.

The child ends with its parent, however that ends: it holds the other end of a pipe, and the system ends it where it cannot
look, for native code that holds the GIL.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from coe_cli.core.command_line import command_line
from coe_cli.core.process_exit import ExitKind
from coe_cli.errors import CoeError, DiskFull, OutOfMemory, UsageError, from_code
from coe_cli.package import python_environment, python_path
from coe_cli.runtime.atomic_write import is_full
from coe_cli.runtime.job_object import end_with_us, kill
from coe_cli.runtime.private_channel import die_with_parent, take_standard_streams
from coe_cli.runtime.process_log import ProcessLog

Message = dict[str, Any]

_NO_MEMORY_HINT = "Close other programs, or choose a smaller model."


def run_child(module: str, arguments: Sequence[str], on_message: Callable[[Message], None], *, task: str) -> None:
    """Run ``python -m module`` with the Hugging Face libraries offline and pass on each JSON object that it prints.

    Its stderr is kept for the error message alone. The child is killed when this process is interrupted, and ends
    itself when this process is killed.

    Raises:
        CoeError: what the child reported, or its last words; ``task`` names what failed.
        OutOfMemory: it was killed.
    """
    log = ProcessLog()
    with contextlib.closing(log):
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.file,
            encoding="utf-8",
            env=_environment(),
        )
        end_with_us(child.pid)
        try:
            error = _follow(child, on_message)
            code = child.wait()
        except BaseException:
            kill(child)
            child.wait()
            raise
        finally:
            _close(child)
        if error is not None:
            raise error
        if code != 0:
            raise _failure(task, code, log, ["python", "-m", module, *arguments])


def _failure(task: str, code: int, log: ProcessLog, command: list[str]) -> CoeError:
    ended, words = log.explain(code)
    if ended.kind in (ExitKind.KILLED, ExitKind.OUT_OF_MEMORY):
        return OutOfMemory(f"the {task} {ended.text}, most likely for want of memory", _NO_MEMORY_HINT)
    return CoeError(f"the {task} failed: {words or ended.text}", f"To see all it prints, run: {command_line(command)}")


def serve_as_child(work: Callable[[Callable[[Message], None]], None], task: str) -> int:
    """In the child: do ``work``, which is given a function that sends one message; returns the exit code.

    Whatever else is printed to stdout, by Python or native code, goes to stderr from here on.
    """
    inbox, outbox = take_standard_streams()
    threading.Thread(target=_end_with_parent, args=(inbox,), daemon=True).start()
    die_with_parent()

    def send(message: Message) -> None:
        outbox.write(json.dumps(message).encode() + b"\n")
        outbox.flush()

    try:
        work(send)
        return 0
    except CoeError as error:
        failure = error
    except MemoryError:
        failure = OutOfMemory(f"the {task} ran out of memory", _NO_MEMORY_HINT)
    except OSError as error:
        if not is_full(error):
            raise
        failure = DiskFull(f"the disk ran full during the {task}", "Free some space, and run it again.")
    except NotImplementedError as refused:
        failure = UsageError(f"the {task} refuses this model: {refused}", "Name another source.")
    send(failure.as_dict())
    return int(failure.exit_code)


def _end_with_parent(inbox: BinaryIO) -> None:
    """Wait for the end of ``inbox``, a pipe to which the parent writes nothing, and end this process at once."""
    while inbox.read(1):
        pass
    os._exit(1)


def _close(child: subprocess.Popen[str]) -> None:
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()


def _follow(child: subprocess.Popen[str], on_message: Callable[[Message], None]) -> CoeError | None:
    assert child.stdout is not None
    for line in child.stdout:
        message = json.loads(line)
        if "error" in message:
            return from_code(**message["error"])
        on_message(message)
    return None


def _environment() -> dict[str, str]:
    return python_environment(
        PYTHONPATH=python_path(),
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        ORT_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
    )
