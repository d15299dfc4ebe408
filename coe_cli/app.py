"""The Typer app: registers the commands and turns every failure into one message and an exit code."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Annotated, Any

import typer

from coe_cli import __version__
from coe_cli.commands import ask, chat, logs, models
from coe_cli.errors import CoeError, ExitCode, UsageError

app = typer.Typer(
    name="coe",
    help="A college of experts on one graphics card: small specialist models, planned before they are loaded.",
    epilog='Examples:  coe ask "What is a mutex?"  ·  cat report.txt | coe ask "Summarise this"  ·  coe models list',
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("ask")(ask.ask)
app.command("chat")(chat.chat)
app.add_typer(models.app, name="models")
app.add_typer(logs.app, name="logs")


_ClickException: type[Exception] = typer.BadParameter.__mro__[2]
"""Base of all complaints about arguments: click's in older versions of Typer, a copy of its own in newer ones."""


def _version(show: bool) -> None:
    if show:
        typer.echo(f"coe {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options that go before the command."""


def run(arguments: list[str]) -> int:
    """Run ``arguments`` and return the exit code; nothing leaves here as a traceback unless COE_DEBUG is set."""
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="coe", standalone_mode=False)
        code = int(result) if isinstance(result, int) else ExitCode.OK
        sys.stdout.flush()
        return code
    except typer.Exit as error:
        return error.exit_code
    except _ClickException as error:
        return _report(arguments, _from_click(error))
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except CoeError as error:
        return _report(arguments, error)
    except BrokenPipeError:
        return ExitCode.OK
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # click has turned it into sys.exit(1)
            return ExitCode.OK
        raise
    except Exception as error:
        if os.environ.get("COE_DEBUG"):
            raise
        kind = type(error).__name__
        return _report(arguments, CoeError(f"{kind}: {error}", "Set COE_DEBUG=1 to see where it comes from."))
    finally:
        _silence_broken_stdout()


def _from_click(error: Any) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "coe"
    return UsageError(error.format_message().rstrip("."), f"See `{path} --help`.")


def _report(arguments: list[str], error: CoeError) -> int:
    from coe_cli.output.errors import write_error

    write_error(sys.stderr, error, as_json=_wants_json(arguments))
    if os.environ.get("COE_DEBUG") and error.__cause__ is not None:
        import traceback

        traceback.print_exception(error.__cause__)
    return error.exit_code


def _wants_json(arguments: list[str]) -> bool:
    joined = [f"{a}={b}" for a, b in itertools.pairwise(arguments)] + arguments
    return any(item in ("--format=json", "--format=jsonl") for item in joined)


def _silence_broken_stdout() -> None:
    """A reader that left (`| head -1`) must not make the interpreter complain when it flushes at exit."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError, OSError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
