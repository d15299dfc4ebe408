"""Text that can be given to a model: one check for every way in."""

from __future__ import annotations

import json
from typing import Any

from coe_cli.errors import UsageError

NUL_REASON = "has the character U+0000, at which the runtime would end the text"
_HALF_REASON = "has an unpaired surrogate, which is not Unicode"

Place = tuple[str | int, ...]
"""Keys and indices on the way to a value."""


def not_text(value: Any) -> tuple[Place, str] | None:
    """The first text in a JSON value, or key of an object, that no model can be given, and what is wrong; None: there is none."""
    try:  # a hundred times as fast as to look at each text
        if b"\\u0000" not in json.dumps(value, ensure_ascii=False).encode():
            return None
    except (TypeError, ValueError, RecursionError):
        pass
    pending: list[tuple[Place, Any]] = [((), value)]
    while pending:
        place, found = pending.pop()
        if isinstance(found, dict):
            pending += [(place, key) for key in found] + [((*place, key), part) for key, part in found.items()]
        elif isinstance(found, list | tuple):
            pending += [((*place, index), part) for index, part in enumerate(found)]
        elif isinstance(found, str) and (reason := _reason(found)):
            return place, reason
    return None


def check_text(**fields: Any) -> None:
    """
    Raises:
        UsageError: a text in the ``fields`` is none that a model can be given; the message names its field.
    """
    if (found := not_text(fields)) is not None:
        place, reason = found
        raise UsageError(f"`{'.'.join(map(str, place))}` {reason}", "Remove it.")


def _reason(text: str) -> str:
    if "\0" in text:
        return NUL_REASON
    try:
        text.encode()
    except UnicodeEncodeError:
        return _HALF_REASON
    return ""
