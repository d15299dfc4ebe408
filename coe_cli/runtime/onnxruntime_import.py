"""The one way to import onnxruntime outside of the worker: without its telemetry, and whole."""

from __future__ import annotations

import os
from typing import Any

from coe_cli.interrupts import interrupt_put_off


def import_onnxruntime() -> Any:
    """The module. Ctrl-C waits until it is there: in mid-import it becomes an ImportError that looks like a real one."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with interrupt_put_off():
        import onnxruntime
    return onnxruntime
