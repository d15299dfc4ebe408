"""Where this very coe lies: for the child processes that must import it and no other, and for commands that install into it."""

from __future__ import annotations

import os

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - importing pathlib costs start-up time
"""The folder that holds ``coe_cli``."""


def start_code(module: str) -> str:
    """What ``python -c`` runs to call ``main`` of one of our modules."""
    return f"import sys; sys.path.append({PACKAGE_ROOT!r}); from {module} import main; main()"


def python_environment(**more: str) -> dict[str, str]:
    """The environment for a Python of ours: what it prints is UTF-8 in every locale, so that errors come back whole."""
    return {**os.environ, "PYTHONIOENCODING": "utf-8", **more}


def python_path() -> str:
    """A ``PYTHONPATH`` that has this coe before what is on it."""
    return os.pathsep.join([PACKAGE_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])


def install_command(extra: str) -> str:
    """The command that installs coe with an extra, from where it was installed: a checkout or the package index."""
    project = os.path.join(PACKAGE_ROOT, "pyproject.toml")  # noqa: PTH118
    if os.path.isfile(project):  # noqa: PTH113
        return f'pip install -e "{PACKAGE_ROOT}[{extra}]"'
    return f'pip install "coe-cli[{extra}]"'
