"""Write docs/commands.md from the application: every command with its arguments, options and defaults."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import typer

TARGET = Path(__file__).with_name("commands.md")


def reference() -> str:
    """The page as Markdown; the same on every machine."""
    from coe_cli.app import build_app

    lines = ["# Commands", "", "Written by `docs/make_commands.py` from the application.", ""]
    _describe(typer.main.get_command(build_app()), "coe", lines)
    return "\n".join(lines).rstrip() + "\n"


def _describe(command: Any, path: str, lines: list[str]) -> None:
    children = getattr(command, "commands", None)
    if children is None:
        text = inspect.cleandoc(command.help or "")
        lines += [f"## {path}", "", _prose(text), ""]
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help" and not _hidden(parameter)]
        if rows:
            lines += ["| | |", "|---|---|", *rows, ""]
        return
    for name, child in children.items():
        _describe(child, f"{path} {name}", lines)


def _prose(text: str) -> str:
    """Paragraphs; one that begins with "Example:" becomes a code block."""
    parts = []
    for paragraph in text.replace("\b\n", "").split("\n\n"):
        body = " ".join(paragraph.split())
        if body.startswith("Example:"):
            body = f"```sh\n{body.removeprefix('Example:').strip()}\n```"
        elif body.startswith("coe "):
            body = f"```sh\n{body}\n```"
        parts.append(body)
    return "\n\n".join(parts)


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{(parameter.metavar or parameter.name).upper()}`"
    else:
        name = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
        choices = getattr(parameter.type, "choices", None)
        if choices:
            name += f" {' · '.join(str(getattr(choice, 'value', choice)) for choice in choices)}"
    text = " ".join((parameter.help or "").split())
    default = getattr(parameter.default, "value", parameter.default)
    if isinstance(default, str | int | float) and not isinstance(default, bool) and default != "":
        # The device that a model is built for differs between systems.
        text += (
            " Without it: dml on Windows, cpu elsewhere."
            if "--provider" in parameter.opts
            and default
            in (
                "dml",
                "cpu",
            )
            else f" Without it: {default}."
        )
    if parameter.envvar:
        text += f" Variable: `{parameter.envvar}`."
    return f"| {name} | {text.strip()} |".replace("<", "&lt;")


def _hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False))


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    sys.stderr.write(f"{TARGET} is written\n")
