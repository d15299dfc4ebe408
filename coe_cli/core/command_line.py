"""A command as the user may type it again: for a POSIX shell, or on Windows for PowerShell and, where that can be, cmd."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable

_PLAIN = re.compile(r"[\w./\\:=+-]+", re.ASCII)
_NO_DOUBLE_QUOTES = re.compile(r"[\"$`%]")
_BACKSLASHES = re.compile(r'(\\+)(?="|$)')


def command_line(arguments: Iterable[str], *, windows: bool = sys.platform == "win32") -> str:
    """``arguments`` as one line."""
    return " ".join(map(_windows if windows else shlex.quote, arguments))


def _windows(argument: str) -> str:
    """In double quotes, which both shells of Windows know; what they expand in them, in PowerShell's single quotes.

    The program itself takes ``\\"`` for a quotation mark, so backslashes before one, or before the end, are doubled.
    """
    if _PLAIN.fullmatch(argument):
        return argument
    inside = _BACKSLASHES.sub(r"\1\1", argument)
    if _NO_DOUBLE_QUOTES.search(argument):
        return "'" + inside.replace('"', '\\"').replace("'", "''") + "'"
    return f'"{inside}"'
