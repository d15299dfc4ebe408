"""What the fields of a request make the answer follow, as OpenAI, vLLM and llama.cpp call them: all become one grammar."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

from msgspec import structs
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from coe_cli.core.answers.answer_schema import check_guidance, check_schema
from coe_cli.core.answers.foreign_fields import unsupported
from coe_cli.core.plain_text import Place, not_text
from coe_cli.errors import UsageError
from coe_cli.runtime.college.chat_request import json_guidance
from coe_cli.runtime.worker.protocol import Guidance

_MAX_CHOICES = 256
LONGEST_CONTEXT = 2**20
"""No model here has a longer one; what its own allows is checked again when the model is known."""


def refuse_field(place: str | Place, reason: str) -> ValidationError:
    """The error of one field, for validators that see the whole request."""
    error = PydanticCustomError("unsupported", "{reason}", {"reason": reason})
    loc = (place,) if isinstance(place, str) else place
    return ValidationError.from_exception_data("request", [InitErrorDetails(type=error, loc=loc, input=None)])


class Body(BaseModel):
    """A request; no text in it, wherever it is, is one that no model can be given."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, given: Any) -> Any:
        if (found := not_text(given)) is not None:
            raise refuse_field(*found)
        return given


def _checked(guidance: Guidance) -> Guidance:
    with said():
        check_guidance(guidance.kind, guidance.data, LONGEST_CONTEXT)
    return guidance


@contextlib.contextmanager
def said() -> Iterator[None]:
    """A refusal as pydantic has it."""
    try:
        yield
    except UsageError as error:
        raise ValueError(f"{error.message}. {error.hint}") from None


def schema_guidance(schema: dict[str, Any] | str) -> Guidance:
    """The grammar of a schema, or of a text that has one as JSON.

    Raises:
        ValueError: a text that is no JSON object, or a schema beyond the bounds.
    """
    try:
        given = json.loads(schema) if isinstance(schema, str) else schema
    except RecursionError:
        raise ValueError("the schema is too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the schema is not JSON ({error.msg}, character {error.pos})") from None
    if not isinstance(given, dict):
        raise ValueError("the schema is not a JSON object")
    with said():
        check_schema(given, LONGEST_CONTEXT)
    return json_guidance(given)


def _regex(pattern: str) -> Guidance:
    return _checked(Guidance("regex", pattern))


def _grammar(text: str) -> Guidance:
    if "::=" in text:
        raise ValueError("grammars are taken in Lark's notation (`start: ...`), not in GBNF or EBNF (`root ::= ...`)")
    return _checked(Guidance("lark_grammar", text))


def _choices(texts: list[str]) -> Guidance:
    return _checked(Guidance("lark_grammar", "start: " + " | ".join(json.dumps(t, ensure_ascii=False) for t in texts)))


def _within(guidance: Guidance, name: str) -> Guidance:
    """A grammar that came in by the field ``name`` of something, or by a field of that."""
    return structs.replace(guidance, field=".".join(filter(None, [name, guidance.field])))


def of_form(name: str) -> Any:
    """What the description says of a text that a pattern cannot say."""
    return Field(json_schema_extra={"format": name})


Schema = Annotated[dict[str, Any] | Annotated[str, of_form("json-object")], AfterValidator(schema_guidance)]
Regex = Annotated[str, Field(min_length=1), of_form("regex"), AfterValidator(_regex)]
Grammar = Annotated[str, Field(min_length=1), of_form("lark"), AfterValidator(_grammar)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=_MAX_CHOICES), AfterValidator(_choices)
]


class JsonSchema(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(default="answer", max_length=256)
    description: str | None = None
    schema_: Schema = Field(default_factory=lambda: cast(Any, schema_guidance({})), alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """``json_schema`` and ``json_object`` force the answer through a grammar; llama.cpp has the schema beside the type."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    schema_: Schema | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None and self.schema_ is None:
            raise ValueError("json_schema is missing")
        return self

    @property
    def guidance(self) -> Guidance | None:
        if self.type == "text":
            return None
        if self.json_schema is not None:
            return _within(cast(Guidance, self.json_schema.schema_), "json_schema.schema")
        return _within(cast(Guidance, self.schema_), "schema") if self.schema_ else schema_guidance({"type": "object"})


class StructuredOutputs(BaseModel):
    """vLLM's; one of them at a time."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    json_: Schema | None = Field(default=None, alias="json")
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_fallback: bool | None = None

    def _given(self) -> dict[str, Any]:
        given: dict[str, Any] = {
            "json": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        given["json_object"] = schema_guidance({"type": "object"}) if self.json_object else None
        return {name: value for name, value in given.items() if value is not None}

    @property
    def guidance(self) -> Guidance | None:
        return next((_within(value, name) for name, value in self._given().items()), None)

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if len(self._given()) > 1:
            raise ValueError("only one of json, regex, choice, grammar and json_object can be followed")
        return self


class Checked(Body):
    """A request in which no field is dropped in silence that would change the answer."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_dropped_in_silence(cls, given: Any) -> Any:
        if isinstance(given, dict):
            known = set(cls.model_fields)
            for field in cls.model_fields.values():
                known |= set(getattr(field.validation_alias, "choices", ()))
            if (refused := unsupported(given, known)) is not None:
                raise refuse_field(*refused)
        return given


class Constraints(Checked):
    """The fields of a request that make the answer follow something."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(default=None, description="vLLM's")
    guided_json: Schema | None = Field(default=None, description="vLLM's")
    guided_regex: Regex | None = Field(default=None, description="vLLM's")
    guided_choice: Choices | None = Field(default=None, description="vLLM's")
    guided_grammar: Grammar | None = Field(default=None, description="vLLM's; in Lark's notation")
    json_schema: Schema | None = Field(default=None, description="llama.cpp's")
    grammar: Grammar | None = Field(default=None, description="llama.cpp's; in Lark's notation")

    def _constraints(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in Constraints.model_fields}
        found = {name: getattr(value, "guidance", value) for name, value in found.items()}
        return {name: value for name, value in found.items() if value is not None}

    @model_validator(mode="after")
    def _one_constraint(self) -> Constraints:
        names = list(self._constraints())
        if len(names) > 1:
            raise refuse_field(names[1], f"the answer cannot follow this and {names[0]} at once")
        return self

    @property
    def guidance(self) -> Guidance | None:
        return next((_within(value, name) for name, value in self._constraints().items()), None)
