"""Functions that a model may call: how they are told to it, the grammar of its calls, and the calls in what it writes.

A grammar holds every call, so that a call has one spelling: ``{"name": "…", "arguments": {…}}``, in the frame that the model's
chat template shows (``FORMATS``). Models whose template knows no functions are told of them in the system's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from coe_cli.core.answers.prompt_text import Turn
from coe_cli.core.answers.stop_strings import overlap

MOST_TOOLS = 128
_MOST_CALLS = 8
_CALL_TAG = "<tool_call>"


class ToolCall(Struct, frozen=True):
    """One call of an earlier answer; ``arguments`` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


class Tools(Struct, frozen=True):
    """``functions`` as OpenAI has them (name, description, parameters). ``required``: the answer is a call and nothing else."""

    functions: list[dict[str, Any]]
    required: bool = False
    parallel: bool = True
    only: str | None = None

    def callable_numbers(self) -> list[int]:
        """Numbers of the functions that may be called."""
        return [number for number, each in enumerate(self.functions) if self.only in (None, each["name"])]

    def templates(self) -> list[dict[str, Any]]:
        """As chat templates take them."""
        return [{"type": "function", "function": function} for function in self.functions]


class ToolFormat(NamedTuple):
    """The frame of calls. ``mark``, in the template, shows that it is this one, and stands before the first call."""

    mark: str
    opens: str
    between: str
    closes: str
    arguments: str = "arguments"


FORMATS = {
    "hermes": ToolFormat(_CALL_TAG, "\n", f"\n</tool_call>\n{_CALL_TAG}\n", "\n</tool_call>"),
    "mistral": ToolFormat("[TOOL_CALLS]", "[", ", ", "]"),
    "phi": ToolFormat("<|tool_call|>", "[", ", ", "]"),
    "llama": ToolFormat("", "", "; ", "", "parameters"),
}


def format_of(template: str) -> str | None:
    """The name of the format that a chat template shows; None where it knows no functions."""
    if "tools" not in template:
        return None
    marked = next((name for name, each in FORMATS.items() if each.mark and each.mark in template), None)
    return marked or ("llama" if '"parameters"' in template else None)


def described(functions: Sequence[dict[str, Any]]) -> str:
    """What a model is told whose template knows no functions."""
    listed = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    return (
        f"You can call these functions:\n{listed}\nTo call one, answer with\n{_CALL_TAG}\n"
        '{"name": "its name", "arguments": {…}}\n</tool_call>'
    )


def call_text(calls: Sequence[ToolCall]) -> str:
    """Calls as a model writes them that was told of functions by ``described``."""
    written = ('{"name": ' + json.dumps(c.name) + ', "arguments": ' + c.arguments + "}" for c in calls)
    return "\n".join(f"{_CALL_TAG}\n{text}\n</tool_call>" for text in written)


def result_turn(text: str) -> Turn:
    """What a function gave back, for a template without a role for that."""
    return "user", f"<tool_response>\n{text}\n</tool_response>"


def tool_grammar(tools: Tools, name: str, *, marker: int | None, schema: str | None, single: bool) -> str:
    """The grammar, in Lark's notation, of an answer that may call, or with ``required`` must.

    Args:
        name: of the format.
        marker: the token of the format's mark, where that is a token of its own that no text can spell.
        schema: what an answer without a call must follow.
        single: one call at most.
    """
    frame = FORMATS[name]
    functions = [tools.functions[number] for number in tools.callable_numbers()]
    most = 0 if single or not tools.parallel or tools.only is not None else _MOST_CALLS - 1
    mark = json.dumps(frame.mark) if marker is None else f"<[{marker}]>"
    more = f"({json.dumps(frame.between)} call){{0,{most}}}" if most else ""
    lines: list[str] = []
    for number, function in enumerate(functions):  # first, so that ``function_of_line`` holds
        head = f'{{"name": {json.dumps(function["name"])}, "{frame.arguments}": '
        lines.append(f'call_{number}: {json.dumps(head)} arguments_{number} "}}"')
        lines.append(f"arguments_{number}: %json {json.dumps(arguments_schema(function))}")
    lines.append(f"calls: call {more} {json.dumps(frame.closes) if frame.closes else ''}")
    if not frame.mark or marker is not None or tools.required:
        begin = f"{mark} " if frame.mark else ""
        start = f"{begin}{json.dumps(frame.opens)} calls" if frame.opens else f"{begin}calls"
    else:
        start = "open calls"
        opens = re.escape(frame.mark + frame.opens).replace("\\\n", "\\n")
        lines.append(f"open[lazy]: /(.|\\n)*{opens}/")
    if not tools.required:
        start = f"answer | {start}"
        begins = "[^{]" if not frame.mark else ""
        lines.append(f"answer: %json {schema}" if schema else f"answer: /{begins}(.|\\n)*/")
    lines.append("call: " + " | ".join(f"call_{number}" for number in range(len(functions))))
    return "\n".join([*lines, f"start: {start}"])


def function_of_line(tools: Tools, line: int) -> int | None:
    """The function whose arguments stand in a line, counted from 1, of ``tool_grammar``; None: something else does."""
    numbers = tools.callable_numbers()
    return numbers[line // 2 - 1] if line % 2 == 0 and line // 2 <= len(numbers) else None


def arguments_schema(function: dict[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, without optional white space."""
    return {
        "x-guidance": {"whitespace_flexible": False},
        "type": "object",
        **(function.get("parameters") or {"properties": {}, "additionalProperties": False}),
    }


class CallDelta(NamedTuple):
    """More of call number ``call``; ``name`` with its beginning only."""

    call: int
    arguments: str
    name: str | None = None


_HEAD = re.compile(r'[\s;,\[]*\{"name": "((?:[^"\\]|\\.)*)", "(?:arguments|parameters)": ')
_HEAD_BEGINS = ('{"name": "', '[{"name": "', "[TOOL_CALLS]", "<|tool_call|>", _CALL_TAG)
_MARKS = re.compile(r"\s*(?:\[TOOL_CALLS\]|<\|tool_call\|>)?")


class CallReader:
    """Feed an answer as it arrives: text comes back as it is, calls as ``CallDelta``."""

    def __init__(self) -> None:
        self._held = ""
        self._in_calls = False
        self._at_start = True
        self._depth: int | None = None
        self._quoted = self._escaped = False
        self.calls = 0

    def feed(self, text: str) -> list[str | CallDelta]:
        """What is certain now."""
        self._held += text
        found: list[str | CallDelta] = []
        if not self._in_calls:
            self._text(found)
        while self._in_calls and self._held:
            if self._depth is not None:
                self._arguments(found)
            elif (head := _HEAD.search(self._held)) is not None:
                self._held = self._held[head.end() :]
                self._depth, self.calls = 0, self.calls + 1
                found.append(CallDelta(self.calls - 1, "", json.loads(f'"{head[1]}"')))
            else:
                break
        return found

    def finish(self) -> list[str | CallDelta]:
        """What was held back because it might have become a call."""
        rest, self._held = self._held, ""
        return [rest] if rest and not self._in_calls else []

    def _text(self, found: list[str | CallDelta]) -> None:
        if self._at_start:
            begin = self._held[_MARKS.match(self._held).end() :]  # type: ignore[union-attr]
            if any(head.startswith(begin) for head in _HEAD_BEGINS):
                return  # it may become a call
            self._at_start = False
            if begin.startswith(_HEAD_BEGINS[:2]):
                self._in_calls = True
                return
        text, tag, rest = self._held.partition(_CALL_TAG)
        if tag:
            self._in_calls, self._held = True, rest
            if text.strip():
                found.append(text.rstrip())
            return
        cut = len(text) - overlap(text, _CALL_TAG)
        if text[:cut]:
            found.append(text[:cut])
        self._held = text[cut:]

    def _arguments(self, found: list[str | CallDelta]) -> None:
        for at, character in enumerate(self._held):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth = (self._depth or 0) + 1
            elif character in "}]":
                self._depth = (self._depth or 0) - 1
                if self._depth == 0:
                    found.append(CallDelta(self.calls - 1, self._held[: at + 1]))
                    self._held, self._depth = self._held[at + 1 :], None
                    return
        found.append(CallDelta(self.calls - 1, self._held))
        self._held = ""
