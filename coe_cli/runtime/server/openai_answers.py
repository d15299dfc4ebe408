"""Responses of the OpenAI-compatible endpoints, as pydantic models: what the description of the API says of them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from coe_cli.runtime.server.openai_messages import CalledTool


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
    """``created``: when the model was written to disk, in seconds since 1970; 0 where it is not there, since OpenAI's
    clients require the key."""

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
