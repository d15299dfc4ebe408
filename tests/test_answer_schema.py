"""Schemas of answers: what would hold a worker up is refused with its reason, and what people send is not."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import MODEL
from serving import Served

from coe_cli.core.answers.answer_schema import check_schema
from coe_cli.errors import CoeError, UsageError
from coe_cli.runtime.worker.oga_errors import from_oga

ITEMS = {"type": "array", "items": {"type": "integer"}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


TOO_MUCH: dict[str, tuple[dict[str, Any], str]] = {
    "maxItems": ({**ITEMS, "maxItems": 10**9}, "`maxItems` is 1000000000, and"),
    "minItems": ({**ITEMS, "minItems": 5000}, "`minItems` is 5000, and an answer of 4096 tokens"),
    "minLength": ({"type": "string", "minLength": 10**6}, "`minLength`"),
    "maxLength": ({"type": "string", "maxLength": 10**12}, "`maxLength`"),
    "not a number": ({"type": "string", "maxLength": float("nan")}, "`maxLength`"),
    "deep inside": ({"properties": {"a": {"anyOf": [{**ITEMS, "maxItems": 1e30}]}}}, "`maxItems`"),
    "depth": (nested(40), "levels deep"),
    "parts": ({"enum": list(range(6_000))}, "parts"),
    "size": ({"enum": ["x" * 200_000]}, "bytes"),
    "repeats": ({"type": "string", "pattern": "(a{1000}){1000}"}, "repetitions"),
    "digits": ({"type": "string", "pattern": "a{99999999999999999999}"}, "repetitions"),
    "long pattern": ({"type": "string", "pattern": "ab?" * 1000}, "characters"),
    "pattern of a name": ({"patternProperties": {"(x{90}){90}": {}}}, "repetitions"),
    "itself": ({"$ref": "#"}, "`#` leads to itself"),
    "in a circle": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "properties": {"x": {"$ref": "#/$defs/a"}}},
        "leads to itself",
    ),
    "infinite": ({"const": float("inf")}, "not a number of JSON"),
    "surrogate": ({"enum": ["\ud83d"]}, "not Unicode"),
}


@pytest.mark.parametrize("name", list(TOO_MUCH))
def test_more_than_can_be_answered_is_refused(name: str) -> None:
    schema, said = TOO_MUCH[name]
    with pytest.raises(UsageError, match=said):
        check_schema(schema, 4096)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
        {"type": "string", "pattern": r"^\{\d{4,}\}[({\]]{2}$"},
        {**ITEMS, "minItems": 1, "maxItems": 4096},
        {"type": "string", "maxLength": 65_536},
        {"properties": {"maxItems": {"type": "string"}, "pattern": {"type": "object"}}},
        nested(14),
        {"enum": ["grün", "日本", "😀"]},
        {},
    ],
)
def test_what_people_send_is_not(schema: dict[str, Any]) -> None:
    check_schema(schema, 4096)


@pytest.mark.parametrize(
    "text",
    [
        "Error creating grammar: regex parse error",
        "Error committing tokens: lexer error: too many states",
        "Parser Error: token \"x\" doesn't satisfy the grammar; forced bytes: got '\\u{80}'",
        "Lexer Error: fuel exhausted",
    ],
)
def test_an_error_of_the_grammar_is_the_askers(text: str) -> None:
    error: CoeError = from_oga(RuntimeError(text), model="m", provider="cpu", loading=False)
    assert isinstance(error, UsageError) and "JSON schema" in error.message and "again" not in error.hint


def asked(served: Served, schema: dict[str, Any], **more: Any) -> Any:
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return served.chat("Answer.", response_format=response_format, max_tokens=24, **more)


def test_over_http_it_is_400_and_the_next_one_is_answered(served: Served) -> None:
    for name in ("maxItems", "minItems", "depth", "repeats", "surrogate", "size"):
        response = asked(served, TOO_MUCH[name][0])
        assert response.status == 400, name
        assert "schema" in response.error["message"]
    emoji = asked(served, {"enum": ["😀"]})
    assert emoji.status in (200, 400)
    assert emoji.status == 200 or "outside ASCII" in emoji.error["message"]
    letters = asked(served, {"type": "object", "properties": {"名": {"const": 1}}, "required": ["名"]})
    assert letters.status == 200 and letters.json["choices"][0]["message"]["content"] == '{"名":1}'
    assert served.chat(max_tokens=2).json["model"] == MODEL
