"""Requests of the OpenAI-compatible endpoints, as pydantic models. Only the HTTP server imports them.

Fields that coe does not know are ignored, unless their names say that they would change the answer: an answer that silently
disregards them would be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from coe_cli.core.answers.limits import (
    LOGPROBS,
    MAX_PROMPT_IDS,
    MAX_TOKENS,
    REPETITION_PENALTY,
    SEED,
    STOP_CHARS,
    STOP_IDS_MOST,
    STOPS_MOST,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    WIRE_SEED,
)
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.prompts.prompt_messages import Rendering
from coe_cli.runtime.server.constraints import Checked, Constraints, refuse_field
from coe_cli.runtime.server.openai_messages import Message, ToolFields
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

_SEEDS = SEED.most + 1
MOST_CHOICES = 16
MOST_PROMPTS = 64
_COMPLETION_TOKENS = 16
"""OpenAI's default of /v1/completions."""
_FIELD = re.compile(r"(?!str$|[A-Z])\w+")
_ARGUMENT = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_PLAIN = re.compile(r"[\w ,.:-]{0,64}")
_PYDANTICS = re.compile(r"^Value error, | after validation| a valid dictionary( or (object|instance) .*)?$")
"""Words of its own in its messages."""
_REASONS = {"int_parsing_size": "Input should be a smaller number"}
_NO_UPLOAD = "Input should be an uploaded file, with a filename"
_TEMPLATES_OWN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


def field(place: Sequence[int | str]) -> str:
    """pydantic's place of an error as a field's name: without where it stands, and without the kinds of a union."""
    inside = place[1:] if place and place[0] in ("body", "query", "path") else place
    return ".".join(str(part) for part in inside if _FIELD.fullmatch(str(part)))


def complaint(errors: Sequence[Any]) -> tuple[str, str]:
    """The field of the first of pydantic's errors, and what is wrong with it.

    Of the errors about a field that has several kinds, that is said which is most to the point.
    """
    first = field(errors[0]["loc"])
    of_field = [error for error in errors if field(error["loc"]).startswith(first)]
    best = max(of_field, key=lambda error: (len(error["loc"]), not error["type"].endswith("_type")))
    reason = _REASONS.get(best["type"]) or (_NO_UPLOAD if "UploadFile" in best["msg"] else best["msg"])
    return field(best["loc"]), _PYDANTICS.sub(lambda found: " an object" if "dict" in found[0] else "", reason)


_Stop = Annotated[str, Field(min_length=STOP_CHARS.least, max_length=STOP_CHARS.most)]
_Tokens = Annotated[int, Field(ge=MAX_TOKENS.least, le=MAX_TOKENS.most)]


def _whole_numbers(ids: Any) -> Any:
    """5.0 is an integer of JSON."""
    if isinstance(ids, list) and float in set(map(type, ids)):
        return [int(each) if isinstance(each, float) and each.is_integer() else each for each in ids]
    return ids


TokenIds = Annotated[list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]], BeforeValidator(_whole_numbers)]
_Ids = Annotated[TokenIds, Field(min_length=1, max_length=MAX_PROMPT_IDS)]
_Prompt = Annotated[str, Field(json_schema_extra={"pattern": r"\S"})]
_Seed = Annotated[int, Field(ge=WIRE_SEED.least, le=WIRE_SEED.most)]


_Logprobs = Annotated[int, Field(ge=LOGPROBS.least, le=LOGPROBS.most)]
_Choices = Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None


def _all_tokens(count: Any) -> Any:
    """vLLM and llama.cpp say so that every token is a candidate."""
    return TOP_K.most if count in (-1, 0) and not isinstance(count, bool) else count


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if not _ARGUMENT.fullmatch(name) or name in _TEMPLATES_OWN or name.endswith("_token"):
            raise ValueError(f"`{name[:64]}` is not to be set")
        number = isinstance(value, int | float) and abs(value) < 2**53
        if not (value is None or number or (isinstance(value, str) and _PLAIN.fullmatch(value))):
            raise ValueError(f"`{name}` is neither true or false, nor a number, nor a word of 64 characters at most")
    return given


_VALUE = {"anyOf": [
    {"type": ["null", "boolean"]},
    {"type": "number", "exclusiveMinimum": -(2**53), "exclusiveMaximum": 2**53},
    {"type": "string", "pattern": f"^{_PLAIN.pattern}$"},
]}  # fmt: skip
_NAME = {
    "pattern": f"^{_ARGUMENT.pattern}$",
    "not": {"anyOf": [{"enum": sorted(_TEMPLATES_OWN)}, {"pattern": "_token$"}]},
}
TemplateArguments = Annotated[
    dict[str, Any],
    Field(max_length=16, json_schema_extra={"propertyNames": _NAME, "additionalProperties": _VALUE}),
    AfterValidator(_arguments),
]


class StreamOptions(BaseModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        default=None, description="vLLM's: usage in every chunk, where `include_usage` is true"
    )


_CHUNKS_ALONE: dict[str, Any] = {
    "if": {"required": ["stream_options"], "properties": {"stream_options": {"type": "object"}}},
    "then": {"required": ["stream"], "properties": {"stream": {"const": True}}},
}


class Generation(Constraints):
    """What chat and plain completions have in common. What coe does not know is ignored, unless it would change the answer."""

    model_config = ConfigDict(json_schema_extra=_CHUNKS_ALONE)

    model: str = Field(min_length=1, max_length=256, description="`auto`, an expert's name or a model's name")
    max_tokens: _Tokens | None = None
    temperature: float | None = Field(default=None, ge=TEMPERATURE.least, le=TEMPERATURE.most)
    top_p: float | None = Field(default=None, ge=TOP_P.least, le=TOP_P.most)
    top_k: Annotated[int, Field(ge=TOP_K.least, le=TOP_K.most), BeforeValidator(_all_tokens)] | None = None
    seed: _Seed | None = None
    n: _Choices = Field(default=1, validation_alias=AliasChoices("n", "n_cmpl"))
    stop: _Stop | Annotated[list[_Stop], Field(max_length=STOPS_MOST)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    repetition_penalty: float | None = Field(
        default=None,
        ge=REPETITION_PENALTY.least,
        le=REPETITION_PENALTY.most,
        validation_alias=AliasChoices("repetition_penalty", "repeat_penalty"),
    )
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS.most)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=STOP_IDS_MOST)] | None = None
    timings_per_token: bool | None = Field(default=None, description="llama.cpp's: `timings` in every chunk")
    return_progress: bool | None = Field(default=None, description="llama.cpp's: `prompt_progress` in the first chunk")
    allow_special_tokens: bool | None = Field(
        default=None,
        description="whether what is spelled like a control token in a text is one; by default in /v1/completions only",
    )

    @model_validator(mode="after")
    def _has_chunks(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise refuse_field("stream_options", "they are for answers in chunks; `stream` is not true")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def sampling(self) -> Sampling:
        seed = None if self.seed is None else self.seed % _SEEDS
        least = MAX_TOKENS.most if self.ignore_eos else self.min_tokens
        penalty, ids = self.repetition_penalty, self.stop_token_ids or []
        return Sampling(self.temperature, self.top_p, self.top_k, seed, penalty, least, ids)

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer at most, where the request says so."""
        return self.max_tokens

    def beside_one_answer(self) -> str | None:
        """The first field that asks for more than the text of one answer, where an API has no place for it."""
        asked = {
            "n": (self.n or 1) > 1 or self.candidates() is not None,
            "logprobs": self.tells_logprobs,
            "timings_per_token": self.timings_per_token,
            "return_progress": self.return_progress,
        }
        return next((name for name, value in asked.items() if value), None)

    @property
    def tells_logprobs(self) -> bool:
        """Whether the tokens' log probabilities are told."""
        raise NotImplementedError

    def chat_requests(self) -> list[ChatRequest]:
        """What is asked of the resolver, for each prompt."""
        raise NotImplementedError

    def candidates(self) -> int | None:
        """Of how many answers to each prompt the best are given, where that is more than are given."""
        return None

    def echoed(self) -> list[str]:
        """What stands before each answer."""
        return []

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def counts_each(self) -> bool:
        """Whether each chunk tells the usage."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class ChatCompletionRequest(Generation, ToolFields):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: _Logprobs | None = None
    chat_template_kwargs: TemplateArguments | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="told to the chat template; `none`: thoughts are switched off where it can"
    )
    reasoning_format: Literal["auto", "none", "deepseek", "deepseek-legacy"] | None = Field(
        default=None, description="llama.cpp's; `none`: thoughts stay in the content"
    )
    continue_final_message: bool | None = Field(default=None, description="the last message begins the answer")
    add_generation_prompt: bool | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _beside_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise refuse_field("top_logprobs", "these are told beside `logprobs`, which is not true")
        last = self.messages[-1]
        if self.continue_final_message:
            if len(self.messages) < 2 or last.role != "assistant" or last.tool_calls:
                reason = "a conversation is needed that ends with a text of the assistant's"
                raise refuse_field("continue_final_message", reason)
            if self.add_generation_prompt:
                raise refuse_field("add_generation_prompt", "the final message is continued")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer at most, where the request says so."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def tells_logprobs(self) -> bool:
        """Whether the tokens' log probabilities are told."""
        return bool(self.logprobs)

    def _rendering(self) -> Rendering:
        arguments: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            none = self.reasoning_effort == "none"
            arguments = {"enable_thinking": False} if none else {"reasoning_effort": self.reasoning_effort}
        continues = bool(self.continue_final_message)
        opens_turn = continues or self.add_generation_prompt is not False
        return Rendering({**arguments, **(self.chat_template_kwargs or {})}, continues, opens_turn)

    def chat_requests(self) -> list[ChatRequest]:
        """What is asked of the resolver."""
        return [
            ChatRequest(
                [message.plain() for message in self.messages],
                name=self.model,
                max_tokens=self.most_tokens,
                sampling=self.sampling,
                stop=self.stops,
                allow_special_tokens=self.allow_special_tokens,
                guidance=self.guidance,
                tools=self.chosen_tools(),
                rendering=self._rendering(),
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            )
        ]


class CompletionRequest(Generation):
    prompt: _Prompt | _Ids | Annotated[list[_Prompt | _Ids], Field(min_length=1, max_length=MOST_PROMPTS)]
    echo: bool | None = None
    logprobs: _Logprobs | None = None
    suffix: str | None = Field(default=None, description="what comes after, for models that fill in the middle")
    best_of: _Choices = Field(default=None, description="of so many answers the `n` likeliest are given; not streamed")
    add_special_tokens: Literal[True] | None = None

    @model_validator(mode="after")
    def _go_together(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise refuse_field("best_of", "it is fewer than `n`")
        if self.stream and self.candidates() is not None:
            raise refuse_field("best_of", "the best is known when all are written; leave out `stream`")
        if not all(prompt.strip() for prompt in self.prompts() if isinstance(prompt, str)):
            raise refuse_field("prompt", "it is empty; give it some text")
        if self.echo and not all(isinstance(prompt, str) for prompt in self.prompts()):
            raise refuse_field("echo", "token ids are not turned into text; put the text before the answer yourself")
        if self.suffix and (self.echo or not all(isinstance(prompt, str) for prompt in self.prompts())):
            raise refuse_field("suffix", "a gap is filled in between two texts; leave out `echo`, and token ids")
        if self.echo and self.logprobs is not None:
            raise refuse_field("logprobs", "those of a prompt are not known; leave out `echo`")
        return self

    @property
    def tells_logprobs(self) -> bool:
        """Whether the tokens' log probabilities are told."""
        return self.logprobs is not None

    def candidates(self) -> int | None:
        """Of how many answers to each prompt the best are given, where that is more than are given."""
        return self.best_of if (self.best_of or 1) > (self.n or 1) else None

    def echoed(self) -> list[str]:
        """What stands before each answer."""
        return [str(prompt) if self.echo else "" for prompt in self.prompts() for _ in range(self.n or 1)]

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def chat_requests(self) -> list[ChatRequest]:
        """What is asked of the resolver for each prompt: the bare texts, past the chat template."""
        after = [ChatMessage("user", self.suffix)] if self.suffix else []
        return [
            ChatRequest(
                [*after, ChatMessage("user", prompt)] if isinstance(prompt, str) else [],
                name=self.model,
                raw=True,
                fill=bool(after),
                prompt_ids=None if isinstance(prompt, str) else prompt,
                max_tokens=self.max_tokens or _COMPLETION_TOKENS,
                sampling=self.sampling,
                stop=self.stops,
                allow_special_tokens=bool(self.allow_special_tokens) if after else self.allow_special_tokens,
                guidance=self.guidance,
                logprobs=self.logprobs,
            )
            for prompt in self.prompts()
        ]


class EmbeddingRequest(Checked):
    model: str = Field(min_length=1, max_length=256, description="`auto` or an embedder's name")
    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    truncate_prompt_tokens: Literal[-1] | None = Field(default=None, description="vLLM's; -1: longer texts are cut")
