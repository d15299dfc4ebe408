"""What a file of tests leaves changed in the process, in which the next file of the same worker runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

OURS: Final = (
    *(
        "$COE_",
        "$_COE",
        "$HF_",
        "$PIP_",
        "$PYTHON",
        "$PATH",
        "$HOME",
        "$TMP",
        "$TERM",
        "$NO_",
        "$no_",
        "$HTTP",
        "$http",
    ),
    *("$FORCE_COLOR", "$COLUMNS", "$LINES", "$CLICOLOR", "$TTY_", "$LANG", "$LC_", "$TZ", "$OGA_", "$CUDA_"),
)
"""Of new variables those that tests set; a package that is imported may set what it likes of its own."""

READ_ONCE: Final = frozenset({"$HF_HUB_DISABLE_PROGRESS_BARS", "$HF_HUB_DISABLE_TELEMETRY"})
"""What coe sets for good before it imports a package, which reads it then."""

KEPT: Final = frozenset(
    {
        "coe_cli.providers.webgpu._registered",
        "coe_cli.runtime.job_object._job",
        "coe_cli.runtime.prompts.prompts._living",
        "coe_cli.runtime.prompts.prompts._own",
        "coe_cli.runtime.worker.private_folder._held",
        "coe_cli.runtime.worker.worker_process._living",
    }
)
"""What coe itself keeps until the process ends, whoever runs in it, and the children that are ending."""

_PATIENCE_S: Final = 120.0
_NOT_OURS: Final = {signal.SIGALRM} if hasattr(signal, "SIGALRM") else set()
"""pytest-timeout takes it anew for each test."""


def state() -> dict[str, Any]:
    """What the next file finds: each thing's name → its value, or its length if it is a collection."""
    mask = os.umask(0o077)
    os.umask(mask)
    signals = {f"handler of {number!r}": signal.getsignal(number) for number in signal.valid_signals() - _NOT_OURS}
    return {
        "folder": str(Path.cwd()),
        "umask": mask,
        **signals,
        **{f"${name}": value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        **{f"sys.path: {folder}": True for folder in sys.path if "site-packages" not in folder},
        **dict(_attributes()),
    }


def _attributes() -> Iterator[tuple[str, Any]]:
    for module in [name for name in sys.modules if name.partition(".")[0] == "coe_cli"]:
        for name, value in list(vars(sys.modules[module]).items()):
            yield from _plain(f"{module}.{name}", value)
            if isinstance(value, type) and value.__module__ == module:
                for of_class, own in list(vars(value).items()):
                    yield from _plain(f"{module}.{name}.{of_class}", own)


def _plain(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if "__" not in name and name not in KEPT:
        yield name, len(value) if isinstance(value, dict | list | set) else value


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs; a module of coe that was not yet imported before has changed nothing."""
    gone = {name for name in before.keys() - after.keys() if not name.startswith("coe_cli.")}
    new = {name for name in after.keys() - before.keys() if name.startswith((*OURS, "sys.path: "))} - READ_ONCE
    return [
        f"{name}: {before.get(name)!r} → {after.get(name)!r}"[:300]
        for name in sorted(gone | new | before.keys() & after.keys())
        if not _alike(before.get(name), after.get(name))
    ]


def _alike(one: Any, other: Any) -> bool:
    simple = (bool, int, float, str, bytes, tuple, frozenset)
    return one is other or (type(one) is type(other) and isinstance(one, simple) and bool(one == other))


def threads_left(before: set[threading.Thread]) -> list[str]:
    """Threads that do not end, and that the process would wait for when it ends."""
    left = [thread for thread in set(threading.enumerate()) - before if not thread.daemon]
    for thread in left:
        thread.join(_PATIENCE_S)
    return [thread.name for thread in left if thread.is_alive()]
