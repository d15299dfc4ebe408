"""What a file of tests leaves changed in the process, in which the next file of the same worker runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

SETTINGS: Final = ("COE_", "HF_HUB_OFFLINE", "HOME", "NO_COLOR", "PATH", "PIP_", "PYTHONPATH", "TERM", "TMP")
"""Beginnings of the variables that change what coe does; a package that is imported may set others of its own."""

KEPT: Final = frozenset({"coe_cli.providers.webgpu._registered"})
"""What coe itself keeps until the process ends, whoever runs in it."""


def state() -> dict[str, Any]:
    """What the next file finds: name → value, of what is set in one place and read in another."""
    settings = {f"${name}": value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    return {"folder": str(Path.cwd()), **settings, **dict(_attributes())}


def _attributes() -> Iterator[tuple[str, Any]]:
    for module in [name for name in sys.modules if name.partition(".")[0] == "coe_cli"]:
        for name, value in list(vars(sys.modules[module]).items()):
            if isinstance(value, type) and value.__module__ == module:
                yield from ((f"{module}.{name}.{of_class}", own) for of_class, own in list(vars(value).items()))
            else:
                yield f"{module}.{name}", value


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Plain values that differ, and settings that are new or gone; objects may be made when they are first needed."""
    plain = (bool, int, float, str, bytes, tuple, frozenset)
    names = (before.keys() & after.keys()) | {name for name in before.keys() ^ after.keys() if name.startswith("$")}
    return [
        f"{name}: {before.get(name)!r} → {after.get(name)!r}"[:300]
        for name in sorted(names - KEPT)
        if all(name.startswith("$") or isinstance(found[name], plain) for found in (before, after))
        and before.get(name) != after.get(name)
    ]
