"""Messages and functions of a chat as OpenAI's API has them, checked and bounded; Anthropic's and Ollama's become these."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from coe_cli.core.answers.answer_schema import check_functions, parameters_of
from coe_cli.core.answers.tool_calls import MOST_TOOLS, ToolCall, Tools
from coe_cli.core.plain_text import not_text
from coe_cli.errors import UnusableGrammar
from coe_cli.runtime.server.constraints import LONGEST_CONTEXT, of_form, refuse_field
from coe_cli.runtime.worker.protocol import ChatMessage

_MEDIA = {"image_url": "images", "input_image": "images", "image": "images", "input_audio": "audio", "file": "files"}


def _only_text(kind: object) -> object:
    if isinstance(kind, str) and kind in _MEDIA:
        raise ValueError(f"{_MEDIA[kind]} cannot be read by the models here; send text")
    return kind


def _object_text(text: str) -> str:
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are not a JSON object")
    if (found := not_text(arguments)) is not None:
        raise ValueError(f"an argument {found[1]}")
    return text or "{}"


_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(BaseModel):
    type: Annotated[Literal["text", "input_text", "output_text"], BeforeValidator(_only_text)]
    text: str


class CalledFunction(BaseModel):
    name: _Name
    arguments: Annotated[str, of_form("json-object"), AfterValidator(_object_text)] = "{}"


class CalledTool(BaseModel):
    id: str = Field(default="", max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


def _text_or_calls(schema: dict[str, Any]) -> None:
    """Say what ``Message._says_something`` checks."""
    text = {"content": {"type": ["string", "array"]}, "tool_calls": {"maxItems": 0}}
    calls = {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}}
    schema["anyOf"] = [{"required": ["content"], "properties": text}, {"required": ["tool_calls"], "properties": calls}]


class Message(BaseModel):
    """One turn of the conversation; text, calls of functions and what they gave back."""

    model_config = ConfigDict(json_schema_extra=_text_or_calls)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_call_id: str = Field(default="", max_length=256)

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise refuse_field("content", "a text is missing")
        if self.tool_calls and self.role != "assistant":
            raise refuse_field("tool_calls", "only the assistant calls functions")
        return self

    def plain(self) -> ChatMessage:
        """As the college has it."""
        role: Any = "system" if self.role == "developer" else self.role
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        calls = [ToolCall(c.id, c.function.name, c.function.arguments) for c in self.tool_calls or ()]
        return ChatMessage(role, text, calls, self.tool_call_id)


class Function(BaseModel):
    name: _Name
    description: str | None = Field(default=None, max_length=16_384)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    name: _Name


class NamedTool(BaseModel):
    type: Literal["function"]
    function: NamedFunction


class ToolFields(BaseModel):
    """The fields of a request that are about functions."""

    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _can_be_called(self) -> ToolFields:
        functions = self._functions()
        names = [function["name"] for function in functions]
        if len(set(names)) < len(names):
            raise refuse_field("tools", "two functions have one name")
        for number, function in enumerate(functions):
            if (function.get("parameters") or {}).get("type", "object") != "object":
                reason = f"the parameters of `{function['name']}` are not an object"
                raise refuse_field(tuple(parameters_of(number).split(".")), reason)
        try:
            check_functions(functions, LONGEST_CONTEXT)
        except UnusableGrammar as error:
            raise refuse_field(tuple((error.param or "tools").split(".")), f"{error.message}. {error.hint}") from None
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise refuse_field("tool_choice", f"there is no function `{self.tool_choice.function.name}` in tools")
        if self.tool_choice == "required" and not names:
            raise refuse_field("tool_choice", "there are no tools")
        return self

    def _functions(self) -> list[dict[str, Any]]:
        return [tool.function.model_dump(exclude_none=True, exclude={"strict"}) for tool in self.tools or ()]

    def chosen_tools(self) -> Tools | None:
        """What may be called, or must."""
        if not self.tools or self.tool_choice == "none":
            return None
        only = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        required = only is not None or self.tool_choice == "required"
        return Tools(self._functions(), required, self.parallel_tool_calls is not False, only)
