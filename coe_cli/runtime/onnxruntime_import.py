"""The one way to import onnxruntime outside of the worker: without its telemetry, and whole."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from coe_cli.interrupts import interrupt_put_off


def import_onnxruntime() -> Any:
    """The module. Ctrl-C waits until it is there: in mid-import it becomes an ImportError that looks like a real one."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with interrupt_put_off(), _native_stderr_hidden():
        import onnxruntime
    return onnxruntime


@contextlib.contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    """On a Windows without DXGI the library says so on stderr as it is imported, among what coe says."""
    if sys.platform != "win32" or os.environ.get("COE_DEBUG"):
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
