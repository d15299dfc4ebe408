"""Requests and responses of the OpenAI-compatible endpoints, as pydantic models. Only the HTTP server imports them.

Fields that coe does not know are ignored, unless their names say that they would change the answer: an answer that silently
disregards them would be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, model_validator

from coe_cli.core.answers.limits import (
    LOGPROBS,
    MAX_PROMPT_IDS,
    MAX_TOKENS,
    REPETITION_PENALTY,
    SEED,
    STOP_CHARS,
    STOPS_MOST,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    WIRE_SEED,
)
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.server.constraints import Constraints, refuse_field
from coe_cli.runtime.server.openai_messages import CalledTool, Message, Text, ToolFields
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

_SEEDS = SEED.most + 1
MOST_CHOICES = 16
MOST_PROMPTS = 64
_COMPLETION_TOKENS = 16
"""OpenAI's default of /v1/completions."""
_FIELD = re.compile(r"(?!str$)\w+")


def field(place: Sequence[int | str]) -> str:
    """pydantic's place of an error as a field's name: without the body, and without the kinds of a union."""
    return ".".join(str(part) for part in place if part != "body" and _FIELD.fullmatch(str(part)))


def complaint(errors: Sequence[Any]) -> Any:
    """Of pydantic's errors about the first one's field the one that is most to the point: where it has several kinds."""
    first = field(errors[0]["loc"])
    return max(
        (error for error in errors if field(error["loc"]).startswith(first)), key=lambda error: len(error["loc"])
    )


_Stop = Annotated[Text, Field(min_length=STOP_CHARS.least, max_length=STOP_CHARS.most)]
_Tokens = Annotated[int, Field(ge=MAX_TOKENS.least, le=MAX_TOKENS.most)]
_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MAX_PROMPT_IDS)]
_Seed = Annotated[int, Field(ge=WIRE_SEED.least, le=WIRE_SEED.most)]


_Logprobs = Annotated[int, Field(ge=LOGPROBS.least, le=LOGPROBS.most)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class _Generation(Constraints):
    """What chat and plain completions have in common. What coe does not know is ignored, unless it would change the answer."""

    model: str = Field(min_length=1, max_length=256, description="`auto`, an expert's name or a model's name")
    max_tokens: _Tokens | None = None
    temperature: float | None = Field(default=None, ge=TEMPERATURE.least, le=TEMPERATURE.most)
    top_p: float | None = Field(default=None, ge=TOP_P.least, le=TOP_P.most)
    top_k: int | None = Field(default=None, ge=TOP_K.least, le=TOP_K.most)
    seed: _Seed | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
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
    allow_special_tokens: bool | None = Field(
        default=None,
        description="whether what is spelled like a control token in a text is one; by default in /v1/completions only",
    )

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def sampling(self) -> Sampling:
        seed = None if self.seed is None else self.seed % _SEEDS
        return Sampling(self.temperature, self.top_p, self.top_k, seed, self.repetition_penalty, self.min_tokens)

    def echoed(self) -> list[str]:
        """What stands before each answer."""
        return []

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatCompletionRequest(_Generation, ToolFields):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: _Logprobs | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _beside_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise refuse_field("top_logprobs", "these are told beside `logprobs`, which is not true")
        return self

    def chat_requests(self) -> list[ChatRequest]:
        """What is asked of the resolver."""
        return [
            ChatRequest(
                [message.plain() for message in self.messages],
                name=self.model,
                max_tokens=self.max_completion_tokens or self.max_tokens,
                sampling=self.sampling,
                stop=self.stops,
                allow_special_tokens=self.allow_special_tokens,
                guidance=self.guidance,
                tools=self.chosen_tools(),
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            )
        ]


class CompletionRequest(_Generation):
    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
        | _Ids
        | Annotated[list[_Ids], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: _Logprobs | None = None
    suffix: Text | None = Field(default=None, description="what comes after, for models that fill in the middle")
    best_of: int | None = Field(default=None, ge=1, description="only as many as `n`: all are given")

    @model_validator(mode="after")
    def _all_are_given(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise refuse_field("best_of", "all answers are given: it can only be as many as `n`")
        if self.echo and not all(isinstance(prompt, str) for prompt in self.prompts()):
            raise refuse_field("echo", "token ids are not turned into text; put the text before the answer yourself")
        if self.suffix and (self.echo or not all(isinstance(prompt, str) for prompt in self.prompts())):
            raise refuse_field("suffix", "a gap is filled in between two texts; leave out `echo`, and token ids")
        if self.echo and self.logprobs is not None:
            raise refuse_field("logprobs", "those of a prompt are not known; leave out `echo`")
        return self

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


class EmbeddingRequest(BaseModel):
    model: str = Field(min_length=1, max_length=256, description="`auto` or an embedder's name")
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class RankedExpert(BaseModel):
    expert: str
    score: float


class Coe(BaseModel):
    """Who answered. ``load_s`` is null when the model was loaded already; ``reused_tokens`` came from its cache."""

    expert: str | None
    model: str
    load_s: float | None
    reused_tokens: int
    notes: list[str]
    routing: list[RankedExpert] | None = None


class ChatAnswer(BaseModel):
    role: Literal["assistant"]
    content: str | None
    tool_calls: list[CalledTool] | None = None
    reasoning_content: str | None = None
    refusal: None = None


class LikelyToken(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ToldToken(LikelyToken):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(BaseModel):
    content: list[ToldToken]
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage
    coe: Coe


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[TextChoice]
    usage: Usage
    coe: Coe


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "coe"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail
