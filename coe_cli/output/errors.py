"""How a failure looks: one line for people with what to do next, or one JSON object."""

from __future__ import annotations

import json
from typing import TextIO

from coe_cli.errors import CoeError
from coe_cli.output.terminal import guarded, wrapped


def write_error(stream: TextIO, error: CoeError, *, as_json: bool) -> None:
    """Write ``error`` as ``{"error": {"code", "message", "hint"}}`` or as ``coe: message. hint``."""
    if as_json:
        guarded(stream).write(json.dumps(error.as_dict(), ensure_ascii=False) + "\n")
    else:
        message = error.message if error.message.endswith((".", "!", "?")) else error.message + "."
        guarded(stream).write(wrapped(f"coe: {message}{' ' + error.hint if error.hint else ''}", stream) + "\n")
    stream.flush()
