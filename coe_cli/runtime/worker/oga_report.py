"""What the installed ONNX Runtime GenAI says of itself: run in a process of its own, which prints one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from msgspec import Struct

from coe_cli.core.providers import names
from coe_cli.package import start_code
from coe_cli.providers import runtime_of
from coe_cli.runtime.worker.worker_process import worker_environment
from coe_cli.streams import prepare_streams

_TIMEOUT_S = 60.0
_START = start_code("coe_cli.runtime.worker.oga_report")


class OgaReport(Struct, frozen=True):
    """``problem`` says why it cannot be imported. ``offers`` names providers; ``details`` is what each has loaded."""

    version: str | None = None
    offers: list[str] = []
    details: dict[str, dict[str, str]] = {}
    problem: str | None = None


def read_oga() -> OgaReport:
    """Import ONNX Runtime GenAI in a child process and ask it."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _START],
            capture_output=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=worker_environment(),
        )
    except subprocess.TimeoutExpired:
        return OgaReport(problem=f"importing it took longer than {_TIMEOUT_S:g} s")
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        return OgaReport(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError):
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return OgaReport(problem=tail[-1] if tail else f"its import ended with code {done.returncode}")


def main() -> None:
    """Import it and print the report."""
    prepare_streams()
    try:
        import onnxruntime_genai as oga
    except Exception as error:
        answer: dict[str, Any] = {"problem": str(error).splitlines()[0] if str(error) else type(error).__name__}
    else:
        runtimes = [runtime_of(name) for name in names()]
        answer = {
            "version": str(getattr(oga, "__version__", "unknown")),
            "offers": [runtime.spec.name for runtime in runtimes if runtime.offered_by(oga)],
            "details": {runtime.spec.name: runtime.details() for runtime in runtimes},
        }
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
