"""The entry point: `coe` and `python -m coe_cli`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; exits with an ExitCode."""
    asks = sys.argv[1:2] == ["ask"] and not {"--help", "-h"} & set(sys.argv[2:]) and _alone()
    try:
        if asks:
            from coe_cli.runtime.worker import worker_process

            worker_process.start_early()
        try:
            from coe_cli.app import run

            code = run(sys.argv[1:])
        finally:
            if asks:
                worker_process.discard_early()
    except KeyboardInterrupt:
        code = 130
    if code == 130:
        # After an interrupt inside exec(), as dataclasses call it, sys.exit would end by the signal and not with 130.
        os._exit(code)
    sys.exit(code)


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
