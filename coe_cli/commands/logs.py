"""`coe logs`: the questions and answers that were kept."""

from __future__ import annotations

from typing import Annotated

import typer

from coe_cli.commands.options import ProfilesFileOption, ReportFormatOption, read_profiles
from coe_cli.core.answers.limits import ROW_ID
from coe_cli.core.names import counted
from coe_cli.errors import UsageError
from coe_cli.output.console import Output, ReportFormat
from coe_cli.output.question import agrees

app = typer.Typer(help="Kept questions and answers: list, search, delete, switch off.", no_args_is_help=True)


LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="At most this many.")]


@app.command("list")
def list_conversations(
    limit: LimitOption = 20,
    output_format: ReportFormatOption = ReportFormat.HUMAN,
    profiles_file: ProfilesFileOption = None,
) -> None:
    """The conversations, the last one first.

    Example: coe logs list --format json | jq -r '.conversations[].title'
    """
    from coe_cli.output.logs_view import write_conversations
    from coe_cli.runtime.conversation.history import open_history

    with open_history(read_profiles(profiles_file).history) as file:
        write_conversations(Output(), file.conversations(limit), as_json=output_format is ReportFormat.JSON)


@app.command("show")
def show(
    conversation: Annotated[
        int | None,
        typer.Argument(min=ROW_ID.least, max=ROW_ID.most, help="Its number in `coe logs list`; else the last one."),
    ] = None,
    output_format: ReportFormatOption = ReportFormat.HUMAN,
    profiles_file: ProfilesFileOption = None,
) -> None:
    """One conversation from its first question to its last answer.

    Example: coe logs show 12
    """
    from coe_cli.output.logs_view import write_conversation
    from coe_cli.runtime.conversation.history import open_history

    with open_history(read_profiles(profiles_file).history) as file:
        found = file.conversation(conversation) if conversation is not None else file.last_conversation()
        if found is None:
            raise UsageError("no conversation has been kept", 'Ask something first: coe ask "…".')
        write_conversation(Output(), found, as_json=output_format is ReportFormat.JSON)


@app.command("search")
def search(
    words: Annotated[list[str], typer.Argument(help="Words that a question or an answer holds, all of them.")],
    limit: LimitOption = 20,
    output_format: ReportFormatOption = ReportFormat.HUMAN,
    profiles_file: ProfilesFileOption = None,
) -> None:
    """Questions and answers with these words, the best first.

    Example: coe logs search deadlock mutex
    """
    from coe_cli.output.logs_view import write_matches
    from coe_cli.runtime.conversation.history import open_history

    with open_history(read_profiles(profiles_file).history) as file:
        write_matches(Output(), file.search(" ".join(words), limit), as_json=output_format is ReportFormat.JSON)


@app.command("rm")
def remove(
    conversations: Annotated[
        list[int] | None, typer.Argument(min=ROW_ID.least, max=ROW_ID.most, help="Their numbers in `coe logs list`.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every conversation.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before all are deleted.")] = False,
    profiles_file: ProfilesFileOption = None,
) -> None:
    """Delete conversations; nothing of them stays in the file.

    Example: coe logs rm 12
    """
    from coe_cli.runtime.conversation.history import open_history

    if bool(conversations) == everything:
        raise UsageError("say which conversations to delete", "Give their numbers, or --all.")
    with open_history(read_profiles(profiles_file).history) as file:
        if everything and not yes and not agrees(Output(), "Delete every conversation?", without_terminal=True):
            raise UsageError("nothing was deleted", "Name conversations, or say yes.")
        if everything:
            Output().note(f"deleted {counted(file.clear(), 'conversation')}")
        for number in conversations or []:
            file.remove(number)
            Output().note(f"deleted conversation {number}")


@app.command("off")
def off() -> None:
    """Keep nothing from now on; what was kept stays until `coe logs rm`."""
    from coe_cli.runtime.conversation.history import switch_logging

    switch_logging(False)
    Output().note("questions and answers are not kept any more; delete the old ones with: coe logs rm --all")


@app.command("on")
def on() -> None:
    """Keep questions and answers again."""
    from coe_cli.runtime.conversation.history import switch_logging

    switch_logging(True)
    Output().note("questions and answers are kept")
