"""Questions and answers as they are kept and shown."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Role = Literal["system", "user", "assistant"]


class Exchange(Struct, frozen=True):
    """A question with its answer; times are in seconds. ``system`` is kept when it opens the conversation or changes."""

    question: str
    answer: str
    model: str
    expert: str | None = None
    provider: str | None = None
    profile: str | None = None
    system: str = ""
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    load_s: float | None = None
    first_token_s: float | None = None
    decode_s: float | None = None


class LoggedMessage(Struct, frozen=True):
    """One message as it was recorded; what belongs to answers only is None for the others."""

    role: Role
    content: str
    created_at: float
    model: str | None
    expert: str | None
    provider: str | None
    profile: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    load_s: float | None
    first_token_s: float | None
    decode_s: float | None


class ConversationRow(Struct, frozen=True):
    """One line of the list; ``title`` is the beginning of the first question. Times are seconds since 1970."""

    id: int
    started_at: float
    updated_at: float
    title: str
    questions: int
    model: str | None
    expert: str | None


class Conversation(Struct, frozen=True):
    id: int
    started_at: float
    updated_at: float
    messages: list[LoggedMessage]

    @property
    def model(self) -> str | None:
        """The model of the last answer."""
        return next((m.model for m in reversed(self.messages) if m.model), None)

    @property
    def expert(self) -> str | None:
        """The expert of the last answer; None when none was chosen."""
        return next((m.expert for m in reversed(self.messages) if m.role == "assistant"), None)

    def chat(self) -> list[tuple[Role, str]]:
        """(role, content) of what to send again: the last system prompt first, then questions and answers."""
        system = next((m.content for m in reversed(self.messages) if m.role == "system"), "")
        first: list[tuple[Role, str]] = [("system", system)] if system else []
        return first + [(m.role, m.content) for m in self.messages if m.role != "system"]


class Match(Struct, frozen=True):
    """A message that holds the words; ``excerpt`` is the text around them."""

    conversation_id: int
    role: str
    created_at: float
    excerpt: str
