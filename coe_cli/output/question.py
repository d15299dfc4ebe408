"""Questions to the user, on a terminal."""

from __future__ import annotations

import sys

from coe_cli.output.console import Output
from coe_cli.output.terminal import wrapped


def is_interactive(output: Output) -> bool:
    """Whether somebody reads stderr and can answer on stdin."""
    return sys.stdin is not None and sys.stdin.isatty() and output.stderr.isatty()


def answer_to(output: Output, question: str) -> str:
    """The line that the user types, with its end; "" where there is no more."""
    output.stderr.write(wrapped(question, output.stderr) + " ")
    output.stderr.flush()
    return sys.stdin.readline()


def agrees(output: Output, question: str, *, without_terminal: bool, default: bool = False) -> bool:
    """The user's answer, ``default`` for none; ``without_terminal`` where there is nobody to ask."""
    if not is_interactive(output):
        return without_terminal
    said = answer_to(output, f"{question} [{'Y/n' if default else 'y/N'}]:")
    if not said:
        return False
    return said.strip().lower() in (("y", "yes", "") if default else ("y", "yes"))
