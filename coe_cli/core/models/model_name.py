"""Names of models: what may stand for a folder below the models folder, on Windows too."""

from __future__ import annotations

import re

from coe_cli.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def check_name(name: str) -> str:
    """``name``, if it can be a model's name.

    Raises:
        UsageError: it is a path, a name that Windows keeps for itself, or has other characters than A-Z a-z 0-9 . _ -
    """
    if not _NAME.fullmatch(name) or name.endswith(".") or name.split(".")[0].lower() in _RESERVED:
        raise UsageError(
            f"`{name}` cannot be the name of a model", "Use letters, digits, `.`, `_` and `-`; begin with a letter."
        )
    return name
