"""Messages between coe and the prompt process, framed as those of a worker are (``runtime.worker.protocol``)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from coe_cli.runtime.worker.protocol import ChatMessage

RAW_TEMPLATE = "{question}"
"""The plain template that gives one text to the tokenizer byte for byte."""

Stage = Literal["opening", "rendering", "tokenizing"]


class Rendering(Struct, frozen=True):
    """How a conversation becomes text: ``arguments`` are variables of the chat template.

    ``continues``: the last message, the assistant's, is the beginning of the answer. ``opens_turn``: the template begins a turn of the
    assistant's.
    """

    arguments: dict[str, str | int | float | bool | None] = {}
    continues: bool = False
    opens_turn: bool = True


class Prepare(Struct, frozen=True):
    """Make a prompt of ``messages`` for the model in ``folder``.

    ``template``: the expert's plain template, with the places ``{system}`` and ``{question}``; None takes the model's chat
    template. ``context_length``: tokens of prompt and answer together. ``allow_special_tokens``: what looks like a control
    token in a message is one. ``tools`` as chat templates take them. ``back``: also turn the ids into text again. ``begins_text``: the
    token that begins a text is added where the tokenizer wants one. ``ids`` are taken as they are, in place of ``messages``.
    """

    model: str
    folder: str
    messages: list[ChatMessage]
    context_length: int
    template: str | None = None
    allow_special_tokens: bool = False
    tools: list[dict[str, Any]] | None = None
    rendering: Rendering = Rendering()
    back: bool = False
    begins_text: bool = True
    ids: list[int] | None = None

    @property
    def text_bytes(self) -> int:
        """The bytes of all messages and functions."""
        return text_bytes(self.messages) + (len(msgspec.json.encode(self.tools)) if self.tools else 0)


def text_bytes(messages: list[ChatMessage]) -> int:
    """The bytes of all that is said and called."""
    called = [call for message in messages for call in message.tool_calls]
    said = sum(len(message.content.encode()) for message in messages)
    return said + sum(len(call.name.encode()) + len(call.arguments.encode()) for call in called)


class Begun(Struct, frozen=True, tag=True):
    """The process is at this stage of the request."""

    stage: Stage


class Prompt(Struct, frozen=True, tag=True):
    """Token ids as the model gets them. ``opens_thinking``: the template has opened a <think> tag.

    ``thinks``: the model may open one itself, since its chat template or its vocabulary has that tag. ``text``, where it
    was asked for, is what the tokenizer makes of the ids, ``token_bytes`` the bytes of each of them, ``rendered`` the text that they were made
    of, and ``tokens`` how many the tokenizer knows. ``tool_format``: how the chat template has functions called; '' where it knows none.
    ``tool_marker``: the token that stands before calls.
    """

    ids: list[int]
    opens_thinking: bool = False
    notes: list[str] = []
    thinks: bool = False
    text: str = ""
    tokens: int = 0
    token_bytes: list[bytes] = []
    rendered: str = ""
    tool_format: str = ""
    tool_marker: int | None = None


class NotPrepared(Struct, frozen=True, tag=True):
    """A failure as a code of the CoeError family; ``tokens`` where there are too many, at least so many if not ``exact``."""

    code: str
    message: str
    hint: str = ""
    tokens: int | None = None
    exact: bool = True


FromPrompts = Begun | Prompt | NotPrepared
