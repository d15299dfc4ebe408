"""What one asks of a college and what it tells while it answers."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from coe_cli.core.answers.token_bytes import TokenLogprob
from coe_cli.core.hardware.profile import MAX_ANSWER_TOKENS
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.runtime.college.chat_request import AnswerFields, Needed, Resolved
from coe_cli.runtime.prompts.prompt_messages import Prompt
from coe_cli.runtime.worker.protocol import ChatMessage, FinishReason


class Ask(AnswerFields, frozen=True):
    """A resolved request: one model and its prompt. ``template`` is for models without a chat template.

    ``max_answer_tokens``: the profile's limit, where there is no ``max_tokens``. Until the end of a ``buffered`` answer its
    deltas are empty and tell how many tokens were written.
    """

    model: ModelSpec
    messages: list[ChatMessage]
    template: str | None = None
    max_answer_tokens: int = MAX_ANSWER_TOKENS
    allow_special_tokens: bool = False
    expert: str | None = None
    prompt: Prompt | None = None
    """The prompt, where it has been made already."""

    @property
    def guided(self) -> bool:
        """Whether a grammar holds the answer."""
        return self.guidance is not None or self.tools is not None


class Waiting(Struct, frozen=True, tag=True):
    """Queued, with so many requests ahead."""

    reason: str
    ahead: int


class Loading(Struct, frozen=True, tag=True):
    """The model of the request is being loaded."""


class PrefillStarted(Struct, frozen=True, tag=True):
    """The prompt is being read. ``load_s`` is None when the model was loaded already; ``notes`` are about the prompt.

    ``in_thinking`` and ``thinks`` as ``opens_thinking`` and ``thinks`` of a ``Prompt``.
    """

    prompt_tokens: int
    reused_tokens: int
    in_thinking: bool
    load_s: float | None
    worker_pid: int
    notes: list[str] = []
    thinks: bool = False


class Delta(Struct, frozen=True, tag=True):
    """A part of the answer as the model wrote it, <think> tags included; the text of so many ``tokens``, ``logprobs`` of each."""

    text: str
    tokens: int = 1
    logprobs: list[TokenLogprob] = []


class Restarted(Struct, frozen=True, tag=True):
    """The answer starts again from the beginning; nothing of it had been delivered."""

    reason: str


class Finished(Struct, frozen=True, tag=True):
    """The end of the answer; times are seconds in the worker. ``notes`` say why it ended where that is not plain.

    ``stopped_by``: the stop string that ended it.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    decode_s: float
    notes: list[str] = []
    stopped_by: str = ""


CollegeEvent: TypeAlias = Resolved | Needed | Waiting | Loading | PrefillStarted | Delta | Restarted | Finished


class Broken(Struct, frozen=True, tag=True):
    """An answer's end by an error, where events cross a process boundary."""

    code: str
    message: str
    hint: str = ""
    retry_after_s: float | None = None


WireEvent: TypeAlias = Resolved | Needed | Waiting | Loading | PrefillStarted | Delta | Restarted | Finished | Broken
