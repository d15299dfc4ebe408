"""`coe completion`: the completion script of any shell, on stdout."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer


class Shell(StrEnum):
    """Shells that can complete coe's commands."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell to write it for.")]) -> None:
    """Write the completion script of a shell, from whichever shell it is called.

    Example: source <(coe completion bash)
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    sys.stdout.write(get_completion_script(prog_name="coe", complete_var="_COE_COMPLETE", shell=shell.value) + "\n")
