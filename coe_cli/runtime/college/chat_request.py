"""What a client asks of a college, and the college's first word on it: who answers and why."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from coe_cli.core.answers.limits import LOGPROBS, MAX_PROMPT_IDS, MAX_TOKENS, PRIORITY
from coe_cli.core.answers.sampling import Stops
from coe_cli.core.answers.tool_calls import Tools
from coe_cli.core.hardware.profile import Provider
from coe_cli.core.models.catalog import AUTO as AUTO
from coe_cli.core.notes import Note
from coe_cli.core.plain_text import check_text
from coe_cli.core.routing.router import Routing
from coe_cli.runtime.prompts.prompt_messages import Rendering
from coe_cli.runtime.worker.protocol import FLUSH_S, ChatMessage, Guidance, Sampling

ExpertCount: TypeAlias = int | Literal["auto"] | None
"""How many experts the client can join: so many, as many as the router finds, or None: those, if the profile wants two."""


class AnswerFields(Struct, frozen=True, kw_only=True):
    """What a request says of its answer, in the same words to the resolver and to the college.

    ``retries``: so often the college starts the answer again after its worker was lost, where nothing of it was delivered.

    ``priority``: one step is worth ten seconds of waiting. ``buffered``: no text is handed on before the end, so that the
    answer can start again however far it was. ``flush_s`` and ``logprobs`` as in ``protocol.Generate``, ``rendering`` as in
    ``Prepare``. ``tools``: functions that the answer may call, or must.
    """

    max_tokens: Annotated[int, Meta(ge=MAX_TOKENS.least, le=MAX_TOKENS.most)] | None = None
    sampling: Sampling = Sampling()
    stop: Stops = []
    guidance: Guidance | None = None
    tools: Tools | None = None
    rendering: Rendering = Rendering()
    logprobs: Annotated[int, Meta(ge=LOGPROBS.least, le=LOGPROBS.most)] | None = None
    priority: Annotated[int, Meta(ge=PRIORITY.least, le=PRIORITY.most)] = 0
    retries: Annotated[int, Meta(ge=0, le=100)] = 1
    buffered: bool = False
    flush_s: float = FLUSH_S


class ChatRequest(AnswerFields, frozen=True):
    """One question with the conversation before it. Without ``expert`` and ``model`` the router chooses.

    ``name`` is an expert's or a model's, as in OpenAI's ``model`` field, or `auto`. ``model`` and ``expert`` say which of
    the two is meant; with both, the model answers with the expert's system prompt, and ``expert`` may be `auto` beside a
    model. ``route`` false: the general reasoner answers instead of whom the router would choose.

    ``messages``: a blank system message means none; without one the expert's own comes first. ``raw``: the prompt goes
    past the chat template. ``fill``: a raw prompt in the form of ``FILL_TEMPLATE``, for a model that fills in the middle.
    ``prompt_ids``: the prompt as token ids, in place of messages.

    ``allow_special_tokens``: what looks like a control token in a text is one; None: in a raw prompt only.

    ``fallback``: whether the fallback model may answer for an expert whose own is not installed; None: as the profile says.

    ``resolve_only``: nothing follows the ``Resolved``, and a prompt without room is no error. ``provides``: the client can
    install a model and prepare the router; it is then told to with ``Needed``.
    """

    messages: list[ChatMessage]
    name: str = AUTO
    expert: str | None = None
    model: str | None = None
    experts: ExpertCount = 1
    route: bool = True
    raw: bool = False
    fill: bool = False
    prompt_ids: Annotated[list[int], Meta(max_length=MAX_PROMPT_IDS)] | None = None
    allow_special_tokens: bool | None = None
    fallback: bool | None = None
    resolve_only: bool = False
    provides: bool = False

    @property
    def question(self) -> str:
        """What the user said last."""
        return next((message.content for message in reversed(self.messages) if message.role == "user"), "")

    def check_texts(self) -> None:
        """See that all that reaches the model or its grammar is text.

        Raises:
            UsageError: it is not; the message names the field.
        """
        texts = {name: getattr(self, name) for name in ("messages", "stop", "guidance", "tools")}
        check_text(**msgspec.to_builtins(texts))


def json_guidance(schema: dict[str, Any]) -> Guidance:
    """A grammar without optional white space, in which small models lose themselves until their tokens run out."""
    compact = {"x-guidance": {"whitespace_flexible": False}, **schema}
    return Guidance("json_schema", msgspec.json.encode(compact).decode())


class Resolved(Struct, frozen=True, tag=True):
    """The first event of an answer: who answers, where and why.

    ``experts`` are all that the question is for, best first; with more than one nothing follows: the client asks each.
    ``parts`` has each one's part of a question that can be split. ``system`` is the system prompt in force.
    ``prompt_tokens`` is None where they need not be counted to see that they fit. ``plain``: the model has no chat template.
    """

    model: str
    provider: Provider
    profile: str
    expert: str | None
    experts: list[str]
    notes: list[Note]
    context_length: int
    prompt_tokens: int | None = None
    system: str = ""
    plain: bool = False
    parts: dict[str, str] = {}
    routing: Routing | None = None

    def ends(self, request: ChatRequest) -> bool:
        """Whether nothing follows: only this was wanted, or the client has to ask several experts."""
        return request.resolve_only or len(self.experts) > 1

    @property
    def is_fallback(self) -> bool:
        """Whether another model answers than the expert's own, which is not installed."""
        return any(note.kind == "fallback" for note in self.notes)

    @property
    def warnings(self) -> list[str]:
        """What belongs to the answer itself: it did not come as it was asked for."""
        return [note.text for note in self.notes if note.kind != "routing"]


class Needed(Struct, frozen=True, tag=True):
    """Instead of an answer: the client is to provide something and ask again.

    ``model``: install the one called ``name``. ``router``: prepare it. ``consent``: the model ``name`` of ``expert`` is not
    installed; the user says whether it is to be, or ``fallback`` answers.
    """

    what: Literal["model", "router", "consent"]
    name: str = ""
    reason: str = ""
    expert: str = ""
    fallback: str = ""
