"""The entry point: `coe` and `python -m coe_cli`."""

from __future__ import annotations

import os
import signal
import sys

from coe_cli.interrupts import on_interrupt
from coe_cli.streams import prepare_streams


def main() -> None:
    """Run the command line; exits with an ExitCode."""
    prepare_streams()
    if sys.platform == "win32":
        on_interrupt(signal.default_int_handler)  # Ctrl-Break would end this process alone, at once
    try:
        try:
            code = _run()
        finally:
            _end_what_was_left()
    except KeyboardInterrupt:
        on_interrupt(lambda *_: os._exit(130))
        _end_what_was_left()
        code = 130
    if code == 130:
        # After an interrupt inside exec(), as dataclasses call it, sys.exit would end by the signal and not with 130.
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    if sys.argv[1:2] == ["ask"] and not {"--help", "-h"} & set(sys.argv[2:]) and _alone():
        from coe_cli.runtime.prompts import prompts
        from coe_cli.runtime.worker import worker_process

        worker_process.start_early()
        prompts.start_early()
    from coe_cli.app import run

    return run(sys.argv[1:])


def _end_what_was_left() -> None:
    """Displays, workers and prompt processes that an interrupt between two owners left behind."""
    for name in ("coe_cli.output.display", "coe_cli.runtime.worker.worker_process", "coe_cli.runtime.prompts.prompts"):
        module = sys.modules.get(name)
        if module is not None:
            module.end_all()


def _alone() -> bool:
    """Whether this question is answered by a worker of our own: then it may start while the command line is read."""
    return "--no-serve" in sys.argv or os.environ.get("COE_NO_SERVE", "").lower() in (
        "1",
        "true",
        "yes",
        "on",
        "t",
        "y",
    )


if __name__ == "__main__":
    main()
