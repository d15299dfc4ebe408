"""The standard streams of a process of coe: open, UTF-8 wherever no terminal is, and one error for a reader that left."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

_TERMINAL_ERRORS = {"stdin": "replace", "stdout": "replace", "stderr": "backslashreplace"}
_UTF_8: dict[str, dict[str, Any]] = {
    "stdin": {"encoding": "utf-8-sig", "errors": "replace"},
    "stdout": {"encoding": "utf-8", "errors": "replace", "newline": "\n"},
    "stderr": {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"},
}


def prepare_streams() -> None:
    """Make the streams the same on every system and in every locale, whatever PYTHONIOENCODING says.

    Pipes and files are UTF-8 with ``\\n``, since Python would write a Western Windows' cp1252 there. A terminal keeps its
    encoding, and shows a ``?`` for what that lacks.
    """
    _open_closed()
    if sys.platform == "win32":
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not stream.isatty():
                stream.flush()
                raw = _Pipe(stream.fileno(), "wb", closefd=False)
                setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=name == "stderr"))
    for name, settings in _UTF_8.items():
        stream = getattr(sys, name)
        stream.reconfigure(**({"errors": _TERMINAL_ERRORS[name]} if stream.isatty() else settings))


class _Pipe(io.FileIO):
    """A stream of Windows, where a pipe that nobody reads any more is EINVAL (ERROR_NO_DATA) and not EPIPE."""

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            raise as_broken_pipe(error) from None


def as_broken_pipe(error: OSError) -> OSError:
    """The BrokenPipeError that ``error`` is when a write to a pipe failed with EINVAL; else ``error`` itself."""
    return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) if error.errno == errno.EINVAL else error


def _open_closed() -> None:
    """`coe … >&-`: nobody reads, and nothing else that is opened may become file descriptor 1."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 - pathlib costs start-up time; open as long as coe runs
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
