"""What one asks of a college and what it tells while it answers."""

from __future__ import annotations

from typing import Annotated, Generic, TypeAlias, TypeVar

from msgspec import Meta, Struct, structs

from coe_cli.core.limits import MAX_TOKENS, PRIORITY, STOP_CHARS, STOPS_MOST
from coe_cli.core.model_spec import ModelSpec
from coe_cli.runtime.prompts.prompt_messages import Prompt
from coe_cli.runtime.worker.protocol import FLUSH_S, ChatMessage, FinishReason, Guidance, Sampling

Model = TypeVar("Model")
Stop = Annotated[str, Meta(min_length=STOP_CHARS.least, max_length=STOP_CHARS.most)]


class _Asking(Struct, Generic[Model], frozen=True):
    model: Model
    messages: list[ChatMessage]
    template: str | None = None
    max_tokens: Annotated[int, Meta(ge=MAX_TOKENS.least, le=MAX_TOKENS.most)] | None = None
    sampling: Sampling = Sampling()
    stop: Annotated[list[Stop], Meta(max_length=STOPS_MOST)] = []
    guidance: Guidance | None = None
    priority: Annotated[int, Meta(ge=PRIORITY.least, le=PRIORITY.most)] = 0
    whole: bool = False
    flush_s: float = FLUSH_S
    allow_special_tokens: bool = False


class Ask(_Asking[ModelSpec], frozen=True):
    """A request to one model. ``template`` is for models without a chat template.

    ``whole``: no text of the answer is handed on before its end, so that it can start again however far it was; the
    pieces until then are empty and tell how many tokens were written.
    ``flush_s`` as in ``protocol.Generate``.
    """

    prompt: Prompt | None = None
    """The prompt, where it has been made already."""

    def by_name(self) -> AskByName:
        """The same for another process."""
        fields = structs.asdict(self) | {"model": self.model.name}
        del fields["prompt"]
        return AskByName(**fields)


class AskByName(_Asking[str], frozen=True):
    """An ``Ask`` from another process, which names the model."""

    def of(self, spec: ModelSpec) -> Ask:
        """The same with the model itself."""
        return Ask(**structs.asdict(self) | {"model": spec})


class Waiting(Struct, frozen=True, tag=True):
    """Queued, with so many requests ahead."""

    reason: str
    ahead: int


class Loading(Struct, frozen=True, tag=True):
    """The model of the request is being loaded."""


class Reading(Struct, frozen=True, tag=True):
    """The prompt is being read. ``load_s`` is None when the model was resident; ``notes`` are about the prompt.

    ``in_thinking`` and ``thinks`` as ``opens_thinking`` and ``thinks`` of a ``Prompt``.
    """

    prompt_tokens: int
    reused_tokens: int
    in_thinking: bool
    load_s: float | None
    worker_pid: int
    notes: list[str] = []
    thinks: bool = False


class Piece(Struct, frozen=True, tag=True):
    """A piece of the answer as the model wrote it, <think> tags included; the text of so many ``tokens``."""

    text: str
    tokens: int = 1


class Again(Struct, frozen=True, tag=True):
    """The answer starts again from the beginning; nothing of it had been delivered."""

    reason: str


class Finished(Struct, frozen=True, tag=True):
    """The end of the answer; times are seconds in the worker."""

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    decode_s: float


CollegeEvent: TypeAlias = Waiting | Loading | Reading | Piece | Again | Finished


class Broken(Struct, frozen=True, tag=True):
    """An answer's end by an error, where events cross a process boundary."""

    code: str
    message: str
    hint: str = ""
    retry_after_s: float | None = None


WireEvent: TypeAlias = Waiting | Loading | Reading | Piece | Again | Finished | Broken
