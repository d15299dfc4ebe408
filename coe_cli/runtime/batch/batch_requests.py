"""From a row of a batch to what is asked of the resolver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import structs

from coe_cli.core.answers.sampling import SamplingFields
from coe_cli.core.batch.batch_rows import InvalidRow, OpenAIRow, Row
from coe_cli.runtime.college.chat_request import AUTO, ChatRequest
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

if TYPE_CHECKING:
    from coe_cli.runtime.batch.batch_index import RowDefaults


def to_chat_request(row: Row | OpenAIRow, defaults: RowDefaults, line: int) -> ChatRequest:
    """What the row asks for; ``auto`` where neither it nor the defaults name an expert or a model.

    Raises:
        InvalidRow: the body is not what the endpoint takes.
    """
    if isinstance(row, OpenAIRow):
        return structs.replace(_of_openai(row, line), fallback=defaults.fallback)
    given = {key: getattr(row, key) for key in SamplingFields.__struct_fields__}
    given |= {key: getattr(defaults, key) for key in ("temperature", "seed") if given[key] is None}
    names_one = row.expert is not None or row.model is not None
    expert, model = (row.expert, row.model) if names_one else (defaults.expert, defaults.model)
    messages = [ChatMessage(turn.role, turn.content) for turn in row.conversation]
    if defaults.system is not None and not any(message.role == "system" for message in messages):
        messages.insert(0, ChatMessage("system", defaults.system))
    return ChatRequest(
        messages,
        name=model or expert or AUTO,
        max_tokens=row.max_tokens or defaults.max_tokens,
        sampling=Sampling(**given),
        stop=row.stop,
        expert=expert,
        fallback=defaults.fallback,
    )


def _single(body: Any, row: OpenAIRow, line: int) -> ChatRequest:
    """The one answer of text that a row may ask for."""
    requests: list[ChatRequest] = body.chat_requests()
    reason = "`body.tools`: a batch calls no functions" if requests[0].tools is not None else ""
    if (name := body.beside_one_answer()) is not None:
        reason = f"`body.{name}`: a batch has no place for it"
    if len(requests) > 1 or name == "n":
        reason = "`body`: a row has one prompt and one answer; write a row for each"
    if reason:
        raise InvalidRow(line, reason, row.custom_id, is_openai=True)
    return requests[0]


def _of_openai(row: OpenAIRow, line: int) -> ChatRequest:
    from pydantic import ValidationError

    from coe_cli.runtime.server import openai_api as api

    kind = api.ChatCompletionRequest if row.url.endswith("/chat/completions") else api.CompletionRequest
    try:
        return _single(kind.model_validate(row.body), row, line)
    except ValidationError as error:
        field, reason = api.complaint(error.errors())
        place = ".".join(filter(None, ["body", field]))
        raise InvalidRow(line, f"`{place}`: {reason}", row.custom_id, is_openai=True) from None
