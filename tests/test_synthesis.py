"""Answers from several experts: who is asked, what the supervisor reads, what a failure leaves. Pure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_cli.core.answers.answer import Timing, Usage
from coe_cli.core.routing import synthesis
from coe_cli.core.routing.router import Decision, Scored
from coe_cli.core.routing.synthesis import (
    Draft,
    DraftError,
    answer_room,
    draft_max_tokens,
    draft_question,
    experts_to_ask,
    parse_experts,
    shares,
    shortened,
    summed_usage,
    supervisor_prompt,
    under_headings,
)
from coe_cli.errors import UsageError

KNOWN = ["sql_query", "math_expert", "general_reasoner"]
TIMING = Timing(None, 0.1, 1.0, 1.2, 9.0)


def draft(expert: str, answer: str = "", error: DraftError | None = None) -> Draft:
    usage = None if error else Usage(10, 5)
    return Draft(expert, "m", "cpu", answer, "", None if error else "stop", usage, None if error else TIMING, error, [])


def decision(kind: Any, *names: str) -> Decision:
    ranking = [Scored(name, 0.5 - 0.1 * place) for place, name in enumerate(KNOWN)]
    return Decision([Scored(name, 0.5) for name in names], kind, False, 0.1, ranking)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("auto", None),
        (" auto ", None),
        ("1", 1),
        ("3", 3),
        ("sql_query", ("sql_query",)),
        ("math_expert, sql_query", ("math_expert", "sql_query")),
    ],
)
def test_experts_are_a_number_names_or_the_routers_choice(text: str | None, expected: object) -> None:
    assert parse_experts(text, KNOWN) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "there are 3 experts"),
        ("4", "there are 3 experts"),
        ("-1", "there are 3 experts"),
        ("", "names nobody"),
        (" , ", "names nobody"),
        ("sql_qery", "Did you mean `sql_query`"),
        ("sql_query,sql_query", "twice"),
    ],
)
def test_what_experts_cannot_be(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_experts(text, KNOWN)
    assert says in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("wanted", "routed", "two", "expected"),
    [
        (None, decision("single", "sql_query"), True, ["sql_query"]),
        (None, decision("multi", "math_expert", "sql_query"), True, ["math_expert", "sql_query"]),
        (None, decision("multi", "math_expert", "sql_query"), False, ["math_expert"]),
        (1, decision("multi", "math_expert", "sql_query"), True, ["math_expert"]),
        (2, decision("single", "math_expert"), True, ["math_expert", "sql_query"]),
        (2, decision("multi", "general_reasoner", "math_expert"), True, ["general_reasoner", "math_expert"]),
        (3, decision("general", "general_reasoner"), True, ["general_reasoner", "sql_query", "math_expert"]),
    ],
)
def test_who_is_asked(wanted: int | None, routed: Decision, two: bool, expected: list[str]) -> None:
    assert experts_to_ask(wanted, routed, two_experts=two) == expected


def test_an_expert_reads_the_whole_question_and_its_part() -> None:
    assert draft_question("A and B", None, plain=False) == "A and B"
    asked = draft_question("A and B", "B", plain=False)
    assert asked.startswith("A and B\n") and asked.endswith(": B")
    assert draft_question("A and B", "B", plain=True) == "B", "a bare template follows no instruction"


def test_the_supervisor_reads_question_drafts_and_who_is_missing() -> None:
    lost = DraftError("device_lost", "the worker is gone", "")
    prompt = supervisor_prompt("Why?", [draft("sql_query", "Because."), draft("math_expert", error=lost)])
    assert "Why?" in prompt and "Draft of sql_query:\nBecause." in prompt
    assert "math_expert" in prompt and "the worker is gone" not in prompt
    alone = supervisor_prompt("Why?", [draft("sql_query", "Because.")])
    assert "correct what is wrong" in alone


def test_a_draft_with_braces_is_no_template() -> None:
    assert "{x} {0} {question}" in supervisor_prompt("{drafts}", [draft("sql_query", "{x} {0} {question}")])


def test_drafts_under_headings_say_who_failed() -> None:
    text = under_headings([draft("sql_query", "One."), draft("math_expert", error=DraftError("x", "it broke", ""))])
    assert text == "## sql_query\n\nOne.\n\n## math_expert\n\n(it broke)"


def test_usage_counts_those_who_answered() -> None:
    assert summed_usage([Usage(1, 2), None, Usage(10, 20)]) == Usage(11, 22)


@given(st.lists(st.integers(0, 5000), max_size=8), st.integers(-10, 9000))
def test_shares_fill_the_room_and_spare_the_short(lengths: list[int], room: int) -> None:
    dealt = shares(lengths, room)
    assert len(dealt) == len(lengths)
    assert all(0 <= part <= length for part, length in zip(dealt, lengths, strict=True))
    assert sum(dealt) <= max(0, room)
    if sum(lengths) <= room:
        assert dealt == lengths
    cut = [part for part, length in zip(dealt, lengths, strict=True) if part < length]
    assert max(cut, default=0) - min(cut, default=0) <= 1, "the long ones get equal parts"
    assert all(part >= max(cut, default=0) - 1 or part == length for part, length in zip(dealt, lengths, strict=True))


@given(st.text(max_size=300), st.integers(-3, 320))
def test_a_shortened_text_keeps_both_ends(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short) <= max(0, limit, len(text) if len(text) <= limit else 0)
    if len(text) <= limit:
        assert short == text
    elif limit > 20:
        assert text.startswith(short[:5]) and text.endswith(short[-3:])


@given(st.integers(256, 131_072), st.integers(0, 1000), st.integers(1, 10))
def test_drafts_of_full_length_leave_room_for_the_answer(context: int, question: int, drafts: int) -> None:
    each = draft_max_tokens(context, question, drafts)
    assert each >= synthesis._LEAST_ANSWER_TOKENS
    if each > synthesis._LEAST_ANSWER_TOKENS:
        assert each * drafts + question + answer_room(context) < context
