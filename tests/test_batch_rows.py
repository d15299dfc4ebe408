"""Lines of a batch: both formats, what is refused and how it is said; whatever the bytes are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_cli.core.batch.batch_rows import MAX_LINE_BYTES, InvalidRow, OpenAIRow, Parsed, Row, Turn, parse_line
from coe_cli.runtime.batch.batch_index import RowDefaults
from coe_cli.runtime.batch.batch_requests import to_chat_request

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def parse(**fields: object) -> Parsed:
    parsed = parse_line(json.dumps(fields).encode(), 7)
    assert parsed is not None
    return parsed


def test_every_key_of_our_format_is_read() -> None:
    row = parse(
        id="x", prompt="p", expert="e", model="m", system="s", max_tokens=5, temperature=1, top_p=0.5, top_k=3, seed=9
    ).row
    assert row == Row(
        id="x", prompt="p", expert="e", model="m", system="s", max_tokens=5, temperature=1.0, top_p=0.5, top_k=3, seed=9
    )
    assert isinstance(row, Row) and row.conversation == [Turn("system", "s"), Turn("user", "p")]


def test_a_conversation_is_taken_as_it_is() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    row = parse(messages=turns).row
    assert isinstance(row, Row) and row.conversation == [Turn("system", "s"), Turn("user", "a")]


def test_openai_lines_are_told_apart() -> None:
    parsed = parse(custom_id="r", method="POST", url="/v1/chat/completions", body=CHAT)
    assert parsed.row == OpenAIRow("r", "/v1/chat/completions", CHAT)
    assert (parsed.is_openai, parsed.row_id) == (True, "r")


def test_unknown_keys_are_named_and_change_nothing() -> None:
    assert parse(prompt="p", label="x", maxtokens=3).ignored == ("label", "maxtokens")


@pytest.mark.parametrize("line", [b"", b"   ", b"\t", b"\xef\xbb\xbf"])
def test_empty_lines_are_no_rows(line: bytes) -> None:
    assert parse_line(line, 1) is None


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert parse_line(b'\xef\xbb\xbf{"prompt":"p"}', 1) is not None


@pytest.mark.parametrize(
    ("line", "reason", "row_id"),
    [
        ("{", "it is not JSON", None),
        ("[1]", "it is not a JSON object", None),
        ('"p"', "it is not a JSON object", None),
        ('{"id": 3}', "it needs either `prompt` or `messages`", 3),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "it needs either", None),
        ('{"prompt": " \\n "}', "the prompt is empty", None),
        ('{"prompt": ""}', "`prompt`: expected `str` of length >= 1", None),
        ('{"messages": []}', "`messages`: expected `array` of length >= 1", None),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "`messages[0].role`: invalid enum value 'tool'", None),
        ('{"id": "q", "prompt": "p", "max_tokens": 0}', "`max_tokens`: expected `int` >= 1", "q"),
        ('{"prompt": "p", "max_tokens": "9"}', "`max_tokens`: expected `int`, got `str`", None),
        ('{"prompt": "p", "temperature": 2.5}', "`temperature`: expected `float` <= 2.0", None),
        ('{"prompt": "p", "seed": -1}', "`seed`: expected `int` >= 0", None),
        ('{"prompt": "p", "temperature": NaN}', "it is not JSON", None),
        ('{"id": 3, "prompt": "a\\ud800"}', "`prompt` has an unpaired surrogate", 3),
        ('{"id": "\\ud800", "prompt": "\\ud800"}', "`", None),
        ('{"custom_id": "c", "body": {"prompt": "\\udc00"}}', "`body.prompt` has an unpaired surrogate", "c"),
        ('{"prompt": "\\ud83d\\ude00", "seed": -1}', "`seed`: expected `int` >= 0", None),
        ('{"id": [1], "prompt": "p"}', "`id`: expected `int | str`, got `array`", None),
        ('{"system": "s", "messages": [{"role": "system", "content": "t"}]}', "it has `system` and", None),
        ('{"custom_id": "c", "body": {}}', "object missing required field `url`", "c"),
        ('{"custom_id": "c", "url": "/v1/embeddings", "body": {}}', "`url`: invalid enum value '/v1/embeddings'", "c"),
        ('{"custom_id": "c", "method": "GET", "url": "/v1/completions", "body": {}}', "`method`: invalid enum", "c"),
        ('{"custom_id": 4, "url": "/v1/completions", "body": {}}', "`custom_id`: expected `str`, got `int`", 4),
    ],
)
def test_what_is_wrong_is_said_with_its_line(line: str, reason: str, row_id: object) -> None:
    with pytest.raises(InvalidRow) as caught:
        parse_line(line.encode(), 7)
    assert caught.value.message.startswith(f"line 7: {reason}")
    assert (caught.value.line, caught.value.row_id) == (7, row_id)


def test_a_line_without_end_is_not_parsed() -> None:
    with pytest.raises(InvalidRow, match="longer than"):
        parse_line(b'{"prompt": "' + b"a" * MAX_LINE_BYTES, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from([*Row.__struct_fields__, *OpenAIRow.__struct_fields__])


@given(st.binary(max_size=200) | st.dictionaries(KEYS, JSON, max_size=5).map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_row_or_refused(line: bytes) -> None:
    try:
        parsed = parse_line(line, 3)
    except InvalidRow as error:
        assert error.message.startswith("line 3: ") and "\n" not in error.message
    else:
        assert parsed is None or isinstance(parsed.row, Row | OpenAIRow)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "n": 2}),
        ("/v1/completions", {"model": "m", "prompt": "x", "n": 2}),
        ("/v1/completions", {"model": "m", "prompt": ["x", "y"]}),
        ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}),
    ],
)  # fmt: skip
def test_an_openai_line_has_one_prompt_and_one_answer_of_text(url: str, body: dict[str, object]) -> None:
    row = parse(custom_id="r", url=url, body=body).row
    assert isinstance(row, OpenAIRow)
    with pytest.raises(InvalidRow, match=r"line 7: `body"):
        to_chat_request(row, RowDefaults(), 7)
    first = {key: "x" if key == "prompt" else value for key, value in body.items() if key not in ("n", "tools")}
    assert to_chat_request(OpenAIRow("r", row.url, first), RowDefaults(), 7).name == "m"
