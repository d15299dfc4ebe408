"""Kept conversations as text for people or as JSON."""

from __future__ import annotations

from datetime import datetime

from coe_cli.core.answers.conversations import Conversation, ConversationRow, Match
from coe_cli.output.console import Output
from coe_cli.output.tables import columns_of, folded, is_narrow, left, right, write_line, write_table
from coe_cli.output.terminal import for_terminal

LOGS_SCHEMA_VERSION = 1
_TITLE_CHARS, _BESIDE_THE_TITLE = 70, 100
_DATE_CHARS = len("2026-01-31")


def write_conversations(output: Output, rows: list[ConversationRow], *, as_json: bool) -> None:
    """The list, the last one first."""
    if as_json:
        output.json({"schema_version": LOGS_SCHEMA_VERSION, "conversations": rows})
        return
    narrow = is_narrow(output)
    most = max(_TITLE_CHARS, (columns_of(output) or 0) - _BESIDE_THE_TITLE)
    cells = []
    for row in rows:
        title, who = for_terminal(" ".join(row.title.split())), for_terminal(_who(row.expert, row.model))
        title = title if len(title) <= most else f"{title[:most]}…"
        asked = _time(row.updated_at)
        words = (f"{title}\n{who}",) if narrow else (who, title)
        cells.append((str(row.id), asked[:_DATE_CHARS] if narrow else asked, str(row.questions), *words))
    columns = [folded("first question")] if narrow else [folded("answered by"), folded("first question")]
    write_table(output, [right("number"), left("last asked"), right("questions"), *columns], cells, tight=narrow)


def write_conversation(output: Output, conversation: Conversation, *, as_json: bool) -> None:
    """Every message with who answered it."""
    if as_json:
        value = {"schema_version": LOGS_SCHEMA_VERSION, "conversation": conversation}
        output.json(value)
        return
    for message in conversation.messages:
        who = _who(message.expert, message.model) if message.role == "assistant" else message.role
        stopped = " (stopped)" if message.finish_reason == "cancelled" else ""
        write_line(output, f"--- {for_terminal(who)}, {_time(message.created_at)}{stopped}")
        if message.role == "assistant" and output.stdout.isatty():
            from coe_cli.output.markdown_stream import write_markdown

            write_markdown(output.console(), for_terminal(message.content.strip("\n")))
        else:
            write_line(output, message.content.rstrip("\n"))
        output.stdout.write("\n")


def write_matches(output: Output, matches: list[Match], *, as_json: bool) -> None:
    """What was found, one line each."""
    if as_json:
        output.json({"schema_version": LOGS_SCHEMA_VERSION, "matches": matches})
        return
    if not matches:
        output.note("nothing found; all words must be in one question or answer")
    for match in matches:
        excerpt = for_terminal(" ".join(match.excerpt.split()))
        write_line(output, f"{match.conversation_id}  {_time(match.created_at)}  {match.role}: {excerpt}")


def _who(expert: str | None, model: str | None) -> str:
    """The model that answered, and for whom: an expert's own or another."""
    return f"{expert} ({model})" if expert and model else expert or model or "unknown"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
