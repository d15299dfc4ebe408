"""The Typer app: registers the commands and turns every failure into one message and an exit code."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from coe_cli import __version__
from coe_cli.errors import CoeError, ExitCode, UsageError, explained

COMMANDS: dict[str, str] = {
    "setup": "Find the card, choose a profile and models, fetch them, ask a first question.",
    "ask": "Ask a question and stream the answer.",
    "route": "Which expert would answer, how surely, and whether the question spans several.",
    "chat": "Converse with an expert; the model keeps what was said.",
    "batch": "Answer many prompts from a file, each model loaded once.",
    "logs": "What was asked and answered: list, show, search, remove.",
    "models": "Models: list, fetch, look into, check, remove.",
    "experts": "Experts: list, add, change, try, remove; a model on disk is enough.",
    "profile": "Hardware profiles: list them, read them, check them.",
    "fit": "What a card holds: which experts together, in turns, or not at all.",
    "vram": "Memory, planned before anything is loaded.",
    "bench": "Measure models on this machine: load, first token, prefill, decode, memory, swap.",
    "serve": "Keep models loaded between questions and serve them over HTTP.",
    "mcp": "Hand the college's work to agents: ask, route and plan as tools, over stdin and stdout.",
    "ps": "What is loaded: models, memory, slots, pressure.",
    "stop": "Stop the college, or take one model out of it.",
    "node": "This machine as a node of a Ray cluster: the exact `ray start` line, or run it.",
    "doctor": "What is wrong with this machine, and the command that fixes it.",
    "config": "Settings of your own: get, set, edit, and where their files are.",
    "completion": "A shell's completion script, on stdout.",
}
"""Name → one line of help. A command's module has its name; only the one that is called is imported."""

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "run": ("ask -m", "chat -m"),
    "pull": ("models pull",),
    "install": ("models pull",),
    "list": ("models list",),
    "ls": ("models list",),
    "show": ("models show",),
    "rm": ("models rm",),
    "import": ("models import",),
    "plan": ("vram plan",),
    "status": ("ps",),
    "start": ("serve",),
    "history": ("logs list",),
}
"""What other programs call it → what it is here, before the same arguments."""

SHORT_HELP = """\
coe, a college of experts on one graphics card.

  coe setup                      find the card, choose models, fetch them
  coe ask What is a deadlock     a question, to the expert that it suits
  coe chat                       a conversation
  coe fit                        what a card holds: coe fit "RX 7800 XT"
  coe models list                the models, their sizes, and which are here
  coe doctor                     what is wrong with this machine, and what to do

All commands: coe --help. One of them: coe ask --help.
"""


def build_app(called: str | None = None) -> typer.Typer:
    """The Typer app. With ``called``, only that command is whole; the others are there by name for help and spelling."""
    app = typer.Typer(
        name="coe",
        help="A college of experts on one graphics card: small specialist models, planned before they are loaded.",
        epilog='Examples:  coe ask "What is a mutex?"  ·  cat report.txt | coe ask "Summarise this"  ·  coe models list',
        add_completion=True,
        rich_markup_mode=None,  # Typer's Rich help imports a Markdown parser: help would take three times as long
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 160},
    )
    app.callback()(main)
    for name, summary in COMMANDS.items():
        if called is not None and name != called:
            app.command(name, help=summary)(_not_called)
            continue
        module = importlib.import_module(f"coe_cli.commands.{name}")
        if isinstance(group := getattr(module, "app", None), typer.Typer):
            app.add_typer(group, name=name, help=summary)
        else:
            app.command(name, short_help=summary, epilog=getattr(module, "EXAMPLES", None))(getattr(module, name))
    return app


def _not_called() -> None:
    raise AssertionError("only the command that was called is run")


_ClickException: type[Exception] = typer.BadParameter.__mro__[2]
"""Base of all complaints about arguments: click's in older versions of Typer, a copy of its own in newer ones."""


def _version(show: bool) -> None:
    if show:
        typer.echo(f"coe {__version__}")
        raise typer.Exit


def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options that go before the command."""


def run(arguments: list[str]) -> int:
    """Run ``arguments`` and return the exit code; nothing leaves here as a traceback unless COE_DEBUG is set."""
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
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
        return _report(arguments, _of_argument(arguments, error) or explained(error))
    finally:
        if (errors := sys.modules.get("coe_cli.output.errors")) is not None:
            errors.forget_warnings()
        _silence_broken_stdout()


def _dispatch(arguments: list[str]) -> int:
    """The exit code of the command that ``arguments`` call, or of the help that they ask for."""
    completes = "_COE_COMPLETE" in os.environ
    if not arguments and not completes:
        from coe_cli.output.terminal import wrapped

        sys.stdout.write(wrapped(SHORT_HELP, sys.stdout).rstrip() + "\n")
        return ExitCode.OK
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    elif arguments[:1] == ["version"]:
        arguments = ["--version"]
    called = None if completes else next((a for a in arguments if not a.startswith("-")), "")
    if called and called not in COMMANDS:
        raise _unknown_command(called, arguments[arguments.index(called) + 1 :])
    command = typer.main.get_command(build_app(called))
    _name_ranges(command)
    try:
        with _chosen_waits(arguments):
            result = command.main(args=arguments, prog_name="coe", standalone_mode=False)
    except typer.Exit as error:
        return error.exit_code
    except _ClickException as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # a group of commands alone
            raise
        sys.stdout.write(str(error).rstrip() + "\n")
        return ExitCode.OK
    return int(result) if isinstance(result, int) else ExitCode.OK


def _name_ranges(command: Any) -> None:
    """Have help and complaints say numbers and their ranges in words, not as `INT RANGE [1<=x<=2]`."""
    for child in getattr(command, "commands", {}).values():
        _name_ranges(child)
    for parameter in command.params:
        if hasattr(numbers := parameter.type, "clamp"):
            numbers.name = "whole number" if isinstance(numbers.min, int) else "number"
            numbers._describe_range = functools.partial(_range_words, numbers)


def _range_words(numbers: Any, *, whole: bool = False) -> str:
    """``0 to 2``; ``1 or more`` where the end is beyond what is ever typed and not the ``whole`` range is asked for."""
    least, most = (f"{bound:,}".removesuffix(".0") for bound in (numbers.min, numbers.max))
    return f"{least} to {most}" if whole or numbers.max < 1_000_000 else f"{least} or more"


@contextlib.contextmanager
def _chosen_waits(arguments: list[str]) -> Iterator[None]:
    """Programs that read JSON are told of no wait on stderr, where an error is JSON too; whoever runs the next line is."""
    from coe_cli.output.console import Wait

    Wait.is_told = not _wants_json(arguments) and "--format=quiet" not in _with_values(arguments)
    try:
        yield
    finally:
        Wait.is_told = True


def _unknown_command(name: str, rest: list[str]) -> UsageError:
    """What to type instead: another program's word in ours, a question with `ask` before it, or the nearest command."""
    from difflib import get_close_matches

    from coe_cli.core.command_line import command_line

    if any(c.isspace() for c in name):
        return UsageError("a question needs a command before it", f"Run: {command_line(['coe', 'ask', name, *rest])}")
    instead = ELSEWHERE.get(name) or get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    lines = [f"`{command_line(['coe', *words.split(), *rest])}`" for words in instead]
    if rest and not rest[0].startswith("-") and not any(_takes_words(words.split()[0]) for words in instead):
        lines = [f"`{command_line(['coe', 'ask', name, *rest])}`"]
    meant = f"Did you mean {' or '.join(lines)}? " if lines else ""
    return UsageError(f"there is no command `{name}`", f"{meant}See `coe --help`.")


def _takes_words(name: str) -> bool:
    """Whether words that are no options may follow a command."""
    command: Any = typer.main.get_command(build_app(name))
    called = command.commands[name]
    return hasattr(called, "commands") or any(each.param_type_name == "argument" for each in called.params)


def _of_argument(arguments: list[str], error: Exception) -> UsageError | None:
    """What is wrong where an argument that is no text has come as far as a file or a connection."""
    if not isinstance(error, UnicodeEncodeError):
        return None
    bad = next((a for a in arguments if any("\ud800" <= character <= "\udfff" for character in a)), None)
    return (
        UsageError(f"`{bad.encode('ascii', 'backslashreplace').decode()}` is not UTF-8 text", "Write it in UTF-8.")
        if bad
        else None
    )


def _from_click(error: Any) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "coe"
    message = error.format_message().rstrip(".")
    message = message.replace("is not a valid ", "is not a ")
    if hasattr(numbers := getattr(getattr(error, "param", None), "type", None), "clamp"):
        message = message.replace(_range_words(numbers), _range_words(numbers, whole=True))
    if context is not None and message.startswith("No such command") and "Did you mean" not in message:
        message += f"; `{path}` has {', '.join(context.command.commands)}"
    below_zero = re.match(r"No such option: -\d", message)
    hint = f"Write -- before it: {path} -- …" if below_zero else f"See `{path} --help`."
    return UsageError(message, hint)


def _report(arguments: list[str], error: CoeError) -> int:
    from coe_cli.output.errors import write_error

    write_error(sys.stderr, error, as_json=_wants_json(arguments))
    if os.environ.get("COE_DEBUG") and error.__cause__ is not None:
        import traceback

        traceback.print_exception(error.__cause__)
    return error.exit_code


def _wants_json(arguments: list[str]) -> bool:
    return not {"--format=json", "--format=jsonl", "--json"}.isdisjoint(_with_values(arguments))


def _with_values(arguments: list[str]) -> list[str]:
    return [f"{a}={b}" for a, b in itertools.pairwise(arguments)] + arguments


def _silence_broken_stdout() -> None:
    """A reader that left (`| head -1`) must not make the interpreter complain when it flushes at exit."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, ValueError, OSError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
