"""How a failure looks: one line for people with what to do next, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TextIO

from coe_cli.core.problem import Problem
from coe_cli.errors import CoeError
from coe_cli.output.terminal import guarded, wrapped

_said: dict[str, str] = {}
"""What was warned of on this command line: its message → the entry that it is about."""


def warn_of(stream: TextIO, problems: Mapping[str, Problem]) -> None:
    """A warning for each entry of the user's own file that is left out, once."""
    for key, problem in problems.items():
        if problem.message not in _said:
            _said[problem.message] = key or "the file"
            text = f"coe: warning: {problem.message}; {_said[problem.message]} is left out. {problem.hint}"
            guarded(stream).write(wrapped(text.rstrip(), stream) + "\n")


def forget_warnings() -> None:
    """The command line has ended; the next one of this process warns for itself."""
    _said.clear()


def write_error(stream: TextIO, error: CoeError, *, as_json: bool) -> None:
    """Write ``error`` as ``{"error": {"code", "message", "hint"}}`` or as ``coe: message. hint``, shorter where it was warned of."""
    if as_json:
        guarded(stream).write(json.dumps(error.as_dict(), ensure_ascii=False) + "\n")
    else:
        entry = _said.get(error.message)
        message = error.message if entry is None else f"{entry}, which is left out, is needed here"
        message = message if message.endswith((".", "!", "?")) else message + "."
        guarded(stream).write(wrapped(f"coe: {message}{' ' + error.hint if error.hint else ''}", stream) + "\n")
    stream.flush()
