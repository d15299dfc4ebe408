"""One question with yes or no, on a terminal."""

from __future__ import annotations

import sys

from coe_cli.output.console import Output


def is_interactive(output: Output) -> bool:
    """Whether somebody reads stderr and can answer on stdin."""
    return sys.stdin is not None and sys.stdin.isatty() and output.stderr.isatty()


def agrees(output: Output, question: str, *, without_terminal: bool, default: bool = False) -> bool:
    """The user's answer, ``default`` for none; ``without_terminal`` where there is nobody to ask."""
    if not is_interactive(output):
        return without_terminal
    output.stderr.write(f"{question} [{'Y/n' if default else 'y/N'}]: ")
    output.stderr.flush()
    said = sys.stdin.readline()
    if not said:
        return False
    return said.strip().lower() in (("y", "yes", "") if default else ("y", "yes"))
