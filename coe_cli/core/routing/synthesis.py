"""One answer from several experts: who is asked what, what the supervisor reads of it, and what a failure means. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from coe_cli.core.answers.answer import Answer, Timing, Usage
from coe_cli.core.models.catalog import AUTO, GENERAL_EXPERT, unknown_expert
from coe_cli.errors import CoeError, UsageError

if TYPE_CHECKING:
    from coe_cli.core.routing.router import Decision

SUPERVISOR = GENERAL_EXPERT
LEAST_DRAFT_CHARS = 200

_CUT = "\n[…]\n"
_LEAST_ANSWER_TOKENS = 64

_JOIN = """Several experts have each drafted an answer to a question.

Question:
{question}

{drafts}

Write one complete answer to the question from these drafts. Keep what is right and needed, drop repetition, and where \
the drafts contradict each other say so. Do not mention the drafts."""

_REFINE = """An expert has drafted an answer to a question.

Question:
{question}

{drafts}

Write the final answer: correct what is wrong, add what is missing, and leave out what is not needed. Do not mention the \
draft."""


class DraftError(Struct, frozen=True):
    """Why an expert gave no draft, or the supervisor no answer."""

    code: str
    message: str
    hint: str


class Draft(Struct, frozen=True):
    """What one expert wrote, or why it did not: then ``error`` is set and ``usage`` and ``timing`` are None."""

    expert: str
    model: str
    provider: str
    answer: str
    thinking: str
    finish_reason: Literal["stop", "length", "cancelled"] | None
    usage: Usage | None
    timing: Timing | None
    error: DraftError | None
    warnings: list[str]


class JointAnswer(Answer, frozen=True):
    """An answer made from drafts: what ``coe ask --format json`` prints when experts were asked together.

    ``error``: why the supervisor made none; ``answer`` then holds the drafts under headings.
    """

    drafts: list[Draft]
    error: DraftError | None = None


def draft_of(answer: Answer) -> Draft:
    """The draft that an expert's whole answer is."""
    return Draft(
        expert=answer.expert or "",
        model=answer.model,
        provider=answer.provider,
        answer=answer.answer,
        thinking=answer.thinking,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        timing=answer.timing,
        error=None,
        warnings=answer.warnings,
    )


def failed_draft(expert: str, model: str, provider: str, error: CoeError) -> Draft:
    """The draft of an expert that failed."""
    reason = DraftError(error.code, error.message, error.hint)
    return Draft(expert, model, provider, "", "", None, None, None, reason, [])


def parse_experts(text: str | None, known: Collection[str]) -> int | tuple[str, ...] | None:
    """``--experts``: how many, which by name, or None where the router decides (``auto``, or nothing given).

    Raises:
        UsageError: a name that is not known or comes twice, or a number that is not between 1 and ``len(known)``.
    """
    if text is None or text.strip() == AUTO:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(names) == 1 and names[0].lstrip("+-").isdigit():
        number = int(names[0])
        if not 1 <= number <= len(known):
            raise UsageError(f"--experts {number}: there are {len(known)} experts", "Give 1 or more, names, or auto.")
        return number
    if not names:
        raise UsageError("--experts names nobody", "Give a number, names separated by commas, or auto.")
    for name in names:
        if name not in known:
            raise unknown_expert(name, known)
        if names.count(name) > 1:
            raise UsageError(f"--experts names {name} twice", "Name each expert once.")
    return names


def experts_to_ask(wanted: int | None, decision: Decision, *, two_experts: bool) -> list[str]:
    """The experts that answer, best first: the likeliest so many, or those that the router chose.

    ``two_experts`` false takes only the first of a question that spans two domains, unless the user asked for more.
    """
    chosen = [expert.name for expert in decision.experts]
    if wanted is None:
        return chosen if two_experts else chosen[:1]
    others = [expert.name for expert in decision.ranking if expert.name not in chosen]
    return [*chosen, *others][:wanted]


def draft_question(question: str, part: str | None, *, plain: bool) -> str:
    """What an expert is asked: the question, and which part of it is its own.

    ``plain`` is for models that are asked by a bare template and follow no instruction: they get their part alone.
    """
    if part is None or part == question:
        return question
    return part if plain else f"{question}\n\nAnswer only this part of it, which is your field: {part}"


def answer_room(context_length: int) -> int:
    """Tokens of a supervisor's context that are kept for its answer: a quarter, and 64 at the least."""
    return max(_LEAST_ANSWER_TOKENS, context_length // 4)


def draft_max_tokens(context_length: int, question_tokens: int, drafts: int) -> int:
    """How long each of so many drafts may be for all to be read by a supervisor with that context, in tokens."""
    room = context_length - answer_room(context_length) - question_tokens - 32 * drafts - 160
    return max(_LEAST_ANSWER_TOKENS, room // max(1, drafts))


def supervisor_prompt(question: str, drafts: Sequence[Draft], chars_per_draft: Sequence[int] | None = None) -> str:
    """What the supervisor is asked. ``chars_per_draft`` bounds the drafts that have no error, in their order.

    An expert that failed is named, so that the answer can say what is missing.
    """
    whole = [draft for draft in drafts if draft.error is None]
    limits = chars_per_draft or [len(draft.answer) for draft in whole]
    blocks = [
        f"Draft of {draft.expert}:\n{shortened(draft.answer, limit)}"
        for draft, limit in zip(whole, limits, strict=True)
    ]
    missing = [draft.expert for draft in drafts if draft.error is not None]
    if missing:
        blocks.append(f"No draft could be had from {', '.join(missing)}: say what is left open for want of it.")
    template = _REFINE if len(drafts) == 1 else _JOIN
    return template.format(question=question, drafts="\n\n".join(blocks))


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """``room`` dealt out to texts of these lengths: short ones are whole, the long ones get equal parts of the rest.

    The sum is at most ``room``.
    """
    dealt = [0] * len(lengths)
    left, waiting = max(0, room), len(lengths)
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        dealt[position] = min(lengths[position], left // waiting)
        left -= dealt[position]
        waiting -= 1
    return dealt


def shortened(text: str, limit: int) -> str:
    """``text``, or its beginning and end where it is longer than ``limit`` characters; never more than that."""
    if len(text) <= limit:
        return text
    kept = limit - len(_CUT)
    if kept < 2:
        return text[: max(0, limit)]
    head = kept * 2 // 3
    return text[:head] + _CUT + text[len(text) - (kept - head) :]


def under_headings(drafts: Sequence[Draft]) -> str:
    """The drafts one after the other, each under its expert's name."""
    return "\n\n".join(
        f"## {draft.expert}\n\n{draft.answer if draft.error is None else f'({draft.error.message})'}"
        for draft in drafts
    )


def summed_usage(parts: Sequence[Usage | None]) -> Usage:
    """All tokens read and written."""
    known = [part for part in parts if part is not None]
    return Usage(sum(part.prompt_tokens for part in known), sum(part.completion_tokens for part in known))
