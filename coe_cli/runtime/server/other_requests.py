"""Requests of OpenAI's responses, Anthropic's messages and Ollama's API, as the chat completion that each one stands for.

What is not named here goes on to ``ChatCompletionRequest`` as it came, which refuses what would change the answer.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from coe_cli.core.answers.tool_calls import MOST_TOOLS
from coe_cli.runtime.server.constraints import Body

_Body = dict[str, Any]
_Content = str | list[_Body]
AT = "at"
"""The key of a message under which stands what its fields, and with an empty name it itself, are called where they came from."""
_FLAT_TOOLS = {"tools.*.function": "tools.*", "tool_choice.function": "tool_choice"}


class _Loose(Body):
    model_config = ConfigDict(extra="allow")

    def rest(self) -> _Body:
        """The fields that are named alike in a chat completion, and those that nobody named."""
        own = {name for name, field in type(self).model_fields.items() if field.exclude}
        given = {**{name: getattr(self, name) for name in self.model_fields_set}, **(self.model_extra or {})}
        return {name: value for name, value in given.items() if name not in own and value is not None}

    def names(self) -> dict[str, str]:
        """What fields of the chat completion are called here, as ``http_errors.renamed`` takes it."""
        return {}


def _own(default: Any = None, **more: Any) -> Any:
    """A field that a chat completion has not, or not in this form."""
    return Field(default=default, exclude=True, **more)


def _without_empty(fields: _Body) -> _Body:
    return {name: value for name, value in fields.items() if value is not None}


# --- OpenAI's responses


def _no_logprobs(what: str) -> str:
    if what.endswith("logprobs"):
        raise ValueError("there is no place for them here; /v1/chat/completions tells them")
    return what


class ResponsesRequest(_Loose):
    """``POST /v1/responses``."""

    model: str = Field(min_length=1, max_length=256)
    input: str | list[_Body] = _own("", max_length=8 * 2**20)
    instructions: str | None = _own()
    tools: Annotated[list[_Body], Field(max_length=MOST_TOOLS)] | None = _own()
    tool_choice: str | _Body | None = _own()
    text: _Body | None = _own()
    max_output_tokens: int | None = _own()
    previous_response_id: Annotated[str, Field(max_length=128)] | None = _own()
    store: bool | None = _own()
    stream: bool | None = _own()
    metadata: _Body | None = _own()
    reasoning: _Body | None = _own()
    include: list[Annotated[str, AfterValidator(_no_logprobs)]] | None = _own()
    prompt: None = _own()

    def names(self) -> dict[str, str]:
        return _FLAT_TOOLS | {
            "messages": "input",
            "max_tokens": "max_output_tokens",
            "reasoning_effort": "reasoning.effort",
            "response_format": "text.format",
            "response_format.json_schema": "text.format",
            "verbosity": "text.verbosity",
        }

    def turns(self) -> list[_Body]:
        """The input as messages of a chat."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input, AT: {"": "input", "content": "input"}}]
        turns: list[_Body] = []
        for number, item in enumerate(self.input):
            at = f"input.{number}"
            kind = item.get("type", "message")
            if kind == "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
                call = {"id": item.get("call_id", ""), "type": "function", "function": function}
                if not (turns and turns[-1].get("tool_calls")):
                    turns.append({"role": "assistant", "content": None, "tool_calls": [], AT: {"": at}})
                calls = turns[-1]["tool_calls"]
                turns[-1][AT] |= {
                    f"tool_calls.{len(calls)}.function": at,
                    f"tool_calls.{len(calls)}.id": f"{at}.call_id",
                }
                calls.append(call)
            elif kind == "function_call_output":
                told = {"tool_call_id": item.get("call_id", ""), "content": item.get("output")}
                names = {"": at, "content": f"{at}.output", "tool_call_id": f"{at}.call_id"}
                turns.append({"role": "tool", **told, AT: names})
            elif kind != "reasoning":
                turns.append({"role": item.get("role"), "content": item.get("content"), AT: {"": at}})
        return turns

    def chat(self, earlier: list[_Body]) -> _Body:
        """The chat completion, with the messages that came before."""
        system = [_system(self.instructions, "instructions")] if self.instructions else []
        choice: Any = self.tool_choice
        if isinstance(choice, dict) and "name" in choice:
            choice = {"type": choice.get("type"), "function": {"name": choice["name"]}}
        form: Any = (self.text or {}).get("format")
        if isinstance(form, dict) and form.get("type") == "json_schema" and "schema" in form:
            form = {"type": "json_schema", "json_schema": {k: v for k, v in form.items() if k != "type"}}
        return self.rest() | _without_empty(
            {
                "messages": [*system, *earlier, *self.turns()],
                "tools": [_flat_tool(tool) for tool in self.tools or ()] or None,
                "tool_choice": choice,
                "response_format": form,
                "max_tokens": self.max_output_tokens,
                "reasoning_effort": (self.reasoning or {}).get("effort"),
                "verbosity": (self.text or {}).get("verbosity"),
            }
        )


def _system(content: Any, name: str) -> _Body:
    return {"role": "system", "content": content, AT: {"": name, "content": name}}


def _flat_tool(tool: _Body) -> _Body:
    return {"type": tool.get("type"), "function": {name: value for name, value in tool.items() if name != "type"}}


# --- Anthropic's messages


class MessagesTurn(BaseModel):
    role: Literal["user", "assistant", "system"]
    content: _Content


class _Thinking(BaseModel):
    type: Literal["enabled", "disabled", "adaptive"]


class MessagesRequest(_Loose):
    """``POST /v1/messages``."""

    model: str = Field(min_length=1, max_length=256)
    max_tokens: int
    messages: list[MessagesTurn] = _own(..., min_length=1, max_length=1024)
    system: _Content | None = _own()
    tools: Annotated[list[_Body], Field(max_length=MOST_TOOLS)] | None = _own()
    tool_choice: _Body | None = _own()
    stop_sequences: list[str] | None = _own()
    stream: bool | None = _own()
    metadata: _Body | None = _own()
    thinking: _Thinking | None = _own()
    output_config: _Body | None = _own()
    output_format: _Body | None = _own()
    prompt: None = _own()

    def names(self) -> dict[str, str]:
        output = "output_format" if self.output_format and not (self.output_config or {}).get("format") else None
        return _FLAT_TOOLS | {
            "tools.*.function.parameters": "tools.*.input_schema",
            "stop": "stop_sequences",
            "response_format": output or "output_config.format",
            "reasoning_effort": "output_config.effort",
            "continue_final_message": "messages",
            "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        }

    def chat(self) -> _Body:
        """The chat completion; a last turn of the assistant's is gone on with, as Anthropic does."""
        turns: list[_Body] = []
        output = self.output_config or {}
        off = self.thinking is not None and self.thinking.type == "disabled"
        if self.system:
            turns.append(_system(_texts(self.system), "system"))
        for number, turn in enumerate(self.messages):
            turns += _turns(turn, f"messages.{number}")
        begun = bool(turns) and turns[-1]["role"] == "assistant" and not turns[-1].get("tool_calls")
        choice = self.tool_choice or {}
        named = {"type": "function", "function": {"name": choice.get("name")}}
        kinds: _Body = {"auto": "auto", "any": "required", "none": "none", "tool": named}
        return self.rest() | _without_empty(
            {
                "messages": turns,
                "tools": [_anthropic_tool(tool) for tool in self.tools or ()] or None,
                "tool_choice": kinds.get(str(choice.get("type")), choice or None),
                "parallel_tool_calls": False if choice.get("disable_parallel_tool_use") else None,
                "stop": self.stop_sequences or None,
                "response_format": output.get("format") or self.output_format,
                "reasoning_effort": "none" if off else output.get("effort"),
                "continue_final_message": begun or None,
            }
        )


class CountRequest(MessagesRequest):
    """``POST /v1/messages/count_tokens``."""

    max_tokens: int = 1


def _anthropic_tool(tool: _Body) -> _Body:
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
    }
    return {"type": "function" if tool.get("type") in (None, "custom") else tool["type"], "function": function}


def _texts(content: Any) -> Any:
    """Blocks of text as parts; those of another kind go on, to be refused."""
    if not isinstance(content, list):
        return content
    return [{"type": b.get("type"), "text": b.get("text")} if isinstance(b, dict) else b for b in content]


def _turns(turn: MessagesTurn, at: str) -> list[_Body]:
    """The turn that stands ``at`` a place as turns of a chat: each result of a function is one of its own."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content, AT: {"": at}}]
    results: list[_Body] = []
    calls: list[_Body] = []
    said: list[_Body] = []
    names = {"": at}
    for number, block in enumerate(turn.content):
        place = f"{at}.content.{number}"
        if block.get("type") == "tool_result":
            told = {"tool_call_id": block.get("tool_use_id", ""), "content": _texts(block.get("content", ""))}
            results.append({"role": "tool", **told, AT: {"": place, "tool_call_id": f"{place}.tool_use_id"}})
        elif block.get("type") == "tool_use":
            called = f"tool_calls.{len(calls)}"
            names |= {f"{called}.function.arguments": f"{place}.input", f"{called}.function": place, called: place}
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input", {}))}
            calls.append({"id": block.get("id", ""), "function": function})
        elif block.get("type") not in ("thinking", "redacted_thinking"):
            names[f"content.{len(said)}"] = place
            said.append(block)
    turns = results if turn.role == "user" else []
    if said or calls or not turns:
        spoken: _Body = {"role": turn.role, "content": _texts(said) if said or not calls else None, AT: names}
        turns.append(spoken | ({"tool_calls": calls} if calls else {}))
    return turns


# --- llama.cpp's


_ANY_SEED = (-1, 2**32 - 1)


class LlamaRequest(_Loose):
    """``POST /completion``; ``n_predict`` below 0 is no limit of the request's own, and some seeds ask for any."""

    model: str = Field(default="auto", min_length=1, max_length=256)
    n_predict: int | None = _own()
    n_probs: int | None = _own()
    return_tokens: bool | None = _own()
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    seed: int | None = None
    stream: bool | None = None

    def names(self) -> dict[str, str]:
        return {"max_tokens": "n_predict", "logprobs": "n_probs"}

    def completion(self) -> _Body:
        """The plain completion."""
        most = self.n_predict if self.n_predict is not None and self.n_predict >= 0 else None
        given = self.rest() | {"model": self.model, "logprobs": self.n_probs or (0 if self.return_tokens else None)}
        seed = None if self.seed in _ANY_SEED else self.seed
        return given | {"max_tokens": given.get("max_tokens") or most, "seed": seed}


class _File(BaseModel):
    filename: str = Field(default="tmp", max_length=1024)
    text: str


class InfillRequest(LlamaRequest):
    """``POST /infill``; ``prompt`` begins what is to be written."""

    input_prefix: str = _own("")
    input_suffix: str = _own("")
    input_extra: Annotated[list[_File], Field(max_length=64)] = _own([])
    prompt: str = _own("")

    def turns(self) -> list[tuple[Literal["tool", "user", "assistant"], str]]:
        """Role and text, as a prompt has them that is to be filled in."""
        files = [f"{each.filename}\n{each.text}" for each in self.input_extra]
        texts = [("user", self.input_suffix), ("user", self.input_prefix), ("assistant", self.prompt)]
        return [*(("tool", text) for text in files), *texts]  # type: ignore[list-item]


# --- Ollama's


class OllamaRequest(_Loose):
    """``POST /api/chat`` and ``/api/generate``."""

    model: str = Field(min_length=1, max_length=256)
    messages: list[_Body] | None = _own()
    prompt: str | None = _own()
    suffix: str | None = None
    images: list[Any] | None = _own()
    system: str | None = _own()
    raw: bool | None = _own()
    tools: Annotated[list[_Body], Field(max_length=MOST_TOOLS)] | None = None
    format: str | _Body | None = _own()
    options: _Body | None = _own()
    stream: bool | None = _own()
    keep_alive: str | float | None = _own()
    think: bool | str | None = _own()

    @property
    def loads_only(self) -> bool:
        """Whether nothing is asked: the model is to be loaded, or with ``keep_alive`` 0 to go."""
        return not (self.messages or self.prompt)

    def names(self) -> dict[str, str]:
        return {name: f"options.{name}" for name in self.options or ()} | {
            "max_tokens": "options.num_predict",
            "reasoning_effort": "think",
            "response_format": "format",
            "response_format.schema": "format",
        }

    @property
    def plain(self) -> bool:
        """Whether the prompt goes past the chat template."""
        return bool(self.raw or self.suffix)

    def body(self) -> _Body:
        """The chat completion, or where it is ``plain`` the other one."""
        given = self.rest()
        options = dict(self.options or {})
        most = options.pop("num_predict", None)
        if most not in (None, 0, -1, -2):
            given["max_tokens"] = most
        if options.get("seed") == -1:  # any
            del options["seed"]
        given |= {name: value for name, value in options.items() if value is not None}
        if self.think is not None and not self.plain:
            given["reasoning_effort"] = self.think if isinstance(self.think, str) else None if self.think else "none"
        if self.format:
            schema = isinstance(self.format, dict)
            form = {"type": "json_object", "schema": self.format} if schema else {"type": f"{self.format}_object"}
            given["response_format"] = form
        if self.plain and not self.images:
            return given | {"prompt": self.prompt or ""}
        turns = [{**_ollama_turn(turn), AT: {"": f"messages.{n}"}} for n, turn in enumerate(self.messages or ())]
        if self.messages is None:
            asked = _ollama_turn({"role": "user", "content": self.prompt, "images": self.images})
            turns = [{**asked, AT: {"": "prompt", "content": "images" if self.images else "prompt"}}]
        system = [_system(self.system, "system")] if self.system else []
        return given | {"messages": [*system, *turns]}


def _ollama_turn(turn: _Body) -> _Body:
    said: _Body = {"role": turn.get("role"), "content": turn.get("content", "")}
    if turn.get("images"):
        said["content"] = [{"type": "image"}]  # refused with a sentence
    calls = turn.get("tool_calls")
    if calls:
        said["tool_calls"] = [_ollama_call(call) for call in calls] if isinstance(calls, list) else calls
    return said


def _ollama_call(call: Any) -> Any:
    """A call whose arguments are an object; what is none goes on, to be refused."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    return {"function": {"name": function.get("name"), "arguments": json.dumps(function.get("arguments") or {})}}
