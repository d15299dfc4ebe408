"""Where this very coe lies, for the child processes that must import it and no other."""

from __future__ import annotations

import os

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120 - importing pathlib costs start-up time
"""The folder that holds ``coe_cli``."""


def start_code(module: str) -> str:
    """What ``python -c`` runs to call ``main`` of one of our modules."""
    return f"import sys; sys.path.append({PACKAGE_ROOT!r}); from {module} import main; main()"


def python_path() -> str:
    """A ``PYTHONPATH`` that has this coe before what is on it."""
    return os.pathsep.join([PACKAGE_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
