"""Inside the prompt process: chat templates, which are programs of somebody else, rendered as transformers does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coe_cli.core.answers.prompt_text import Turn, alternating, without_system
from coe_cli.core.answers.tool_calls import call_text, described, format_of, result_turn
from coe_cli.runtime.prompts.prompt_messages import Rendering
from coe_cli.runtime.worker.protocol import ChatMessage

_ROOM_CHARS = 2**20
"""More than any template writes of its own."""
_MAX_REASON_CHARS = 200


class TemplateFails(Exception):
    """The template cannot be compiled, or refuses the conversation in every form; the text says why."""


class _Generation(Extension):
    """``{% generation %}``: marks what an assistant said, for training; here its content is all that counts."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One compiled template; ``tokens`` are the names that templates have for special tokens, such as ``bos_token``.

    Raises:
        TemplateFails: it is not a template.
    """

    def __init__(self, source: str, tokens: Mapping[str, Any]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda text: datetime.now().strftime(text)
        self._tokens = tokens
        self.tool_format = format_of(source)
        try:
            self._template: Template = environment.from_string(source)
        except MemoryError:
            raise
        except Exception as error:
            raise TemplateFails(_reason(error)) from None

    def with_tools(
        self, messages: Sequence[ChatMessage], tools: list[dict[str, Any]] | None, rendering: Rendering = Rendering()
    ) -> str | None:
        """The conversation with its functions and calls as the template itself writes them; None where it has none or fails."""
        spoken = [_message(message) for message in messages]
        if not tools and not any(len(each) > 2 for each in spoken):
            return None
        try:
            text = self._run(spoken, tools, rendering, room=len(json.dumps([spoken, tools])))
        except TemplateFails:
            return None
        names = [tool["function"]["name"] for tool in tools or ()]
        said = [message.content.strip() for message in messages if message.role in ("system", "user")]
        return text if all(each in text for each in [*names, *said]) else None

    def render(self, turns: Sequence[Turn], rendering: Rendering = Rendering()) -> tuple[str, bool]:
        """The text of the conversation, and whether all that system and user said is in it.

        Where the template refuses the roles as they come, or leaves a text out, neighbours of one role are joined, and then
        what the system says is said by the user.

        Raises:
            TemplateFails: it refuses that too, or writes without end.
        """
        failure: TemplateFails | None = None
        first: str | None = None
        tried: list[list[Turn]] = []
        forms: list[Callable[[Sequence[Turn]], list[Turn]]] = [list, alternating, without_system]
        for form in forms:
            shaped = form(turns)
            if shaped in tried:
                continue
            tried.append(shaped)
            try:
                spoken = [{"role": role, "content": text} for role, text in shaped]
                text = self._run(spoken, None, rendering, room=sum(len(text) for _, text in shaped))
            except TemplateFails as error:
                failure = failure or error
                continue
            if all(said.strip() in text for role, said in shaped if role != "assistant"):
                return text, True
            first = first if first is not None else text
        if first is None:
            assert failure is not None
            raise failure
        return first, False

    def _run(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, rendering: Rendering, *, room: int
    ) -> str:
        room = _ROOM_CHARS + 4 * room
        parts: list[str] = []
        fixed = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": rendering.opens_turn}
        try:
            for part in self._template.generate({**rendering.arguments, **self._tokens, **fixed}):
                room -= len(part)
                if room < 0:
                    raise TemplateFails("it writes without end")
                parts.append(part)
        except (MemoryError, TemplateFails):
            raise
        except Exception as error:
            raise TemplateFails(_reason(error)) from None
        return "".join(parts)


def _message(message: ChatMessage) -> dict[str, Any]:
    """As templates take it: the arguments of a call are an object there."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")},
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        fields["tool_call_id"] = message.tool_call_id
    return fields


def flat_turns(messages: Sequence[ChatMessage], tools: list[dict[str, Any]] | None) -> list[Turn]:
    """The conversation in text alone: functions are told by the system, what they gave back by the user."""
    turns: list[Turn] = []
    for message in messages:
        if message.role == "tool":
            turns.append(result_turn(message.content))
        else:
            said = [message.content, call_text(message.tool_calls)]
            turns.append((message.role, "\n".join(filter(None, said)) if message.tool_calls else message.content))
    if tools:
        told = described([tool["function"] for tool in tools])
        system = next((at for at, (role, _) in enumerate(turns) if role == "system"), None)
        if system is None:
            turns.insert(0, ("system", told))
        else:
            turns[system] = ("system", f"{turns[system][1]}\n\n{told}")
    return turns


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:_MAX_REASON_CHARS]


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
