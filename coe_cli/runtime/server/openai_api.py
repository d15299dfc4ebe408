"""Requests and responses of the OpenAI-compatible endpoints, as pydantic models. Only the HTTP server imports them.

Fields that coe does not know are ignored, unless their names say that they would change the answer: an answer that silently
disregards them would be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field

from coe_cli.core.answers.limits import (
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
from coe_cli.core.plain_text import NUL_REASON
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.server.constraints import Constraints
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

_SEEDS = SEED.most + 1
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


def _plain_text(text: str) -> str:
    try:
        text.encode()  # a hundred times as fast as to look at each character
    except UnicodeEncodeError:
        raise ValueError("text with unpaired surrogates is not Unicode") from None
    if "\0" in text:
        raise ValueError(NUL_REASON)
    return text


Text = Annotated[str, AfterValidator(_plain_text)]
_Stop = Annotated[Text, Field(min_length=STOP_CHARS.least, max_length=STOP_CHARS.most)]
_Tokens = Annotated[int, Field(ge=MAX_TOKENS.least, le=MAX_TOKENS.most)]
_Seed = Annotated[int, Field(ge=WIRE_SEED.least, le=WIRE_SEED.most)]


_MEDIA = {"image_url": "images", "input_image": "images", "image": "images", "input_audio": "audio", "file": "files"}


def _only_text(kind: object) -> object:
    if isinstance(kind, str) and kind in _MEDIA:
        raise ValueError(f"{_MEDIA[kind]} cannot be read by the models here; send text")
    return kind


class TextPart(BaseModel):
    type: Annotated[Literal["text"], BeforeValidator(_only_text)]
    text: Text


class Message(BaseModel):
    """One turn of the conversation; text only."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> ChatMessage:
        role: Any = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role, text)


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
    n: Literal[1] | None = 1
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

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatCompletionRequest(_Generation):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: _Tokens | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    modalities: list[Literal["text"]] | None = None

    def chat_request(self) -> ChatRequest:
        """What is asked of the resolver."""
        return ChatRequest(
            [message.plain() for message in self.messages],
            name=self.model,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            sampling=self.sampling,
            stop=self.stops,
            allow_special_tokens=self.allow_special_tokens,
            guidance=self.guidance,
        )


class CompletionRequest(_Generation):
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None

    def chat_request(self) -> ChatRequest:
        """What is asked of the resolver: the bare text, past the chat template."""
        text = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return ChatRequest(
            [ChatMessage("user", text)],
            name=self.model,
            raw=True,
            max_tokens=self.max_tokens or _COMPLETION_TOKENS,
            sampling=self.sampling,
            stop=self.stops,
            allow_special_tokens=self.allow_special_tokens,
            guidance=self.guidance,
        )


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


class Coe(BaseModel):
    """Who answered. ``load_s`` is null when the model was resident; ``reused_tokens`` came from its cache."""

    expert: str | None
    model: str
    load_s: float | None
    reused_tokens: int
    notes: list[str]


class ChatAnswer(BaseModel):
    role: Literal["assistant"]
    content: str
    reasoning_content: str | None = None
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatAnswer
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage
    coe: Coe


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: None
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
