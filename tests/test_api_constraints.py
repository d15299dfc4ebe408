"""What a request says the answer must follow is followed, or the request is refused by the field's name: nothing is dropped."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from conftest import MODEL
from serving import Served

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "n": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "n"],
    "additionalProperties": False,
}
TEXT = json.dumps(SCHEMA)
AS_SCHEMA = r'\{"city": ?"(Paris|Rome)", ?"n": ?[1-9]\}'
LARK = 'start: "left" | "right"'
FOLLOWED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, AS_SCHEMA),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}}, AS_SCHEMA),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, AS_SCHEMA),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, AS_SCHEMA),
    ({"structured_outputs": {"json": SCHEMA}}, AS_SCHEMA),
    ({"structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}, "[0-9]{3}-[a-f]{2}"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ({"structured_outputs": {"grammar": LARK}}, "left|right"),
    ({"guided_json": SCHEMA}, AS_SCHEMA),
    ({"guided_json": TEXT}, AS_SCHEMA),
    ({"guided_regex": "[ab]{4}"}, "[ab]{4}"),
    ({"guided_choice": ['say "hi"', "a\nb"]}, 'say "hi"|a\nb'),
    ({"guided_grammar": LARK}, "left|right"),
    ({"grammar": LARK}, "left|right"),
    ({"json_schema": SCHEMA}, AS_SCHEMA),
]  # fmt: skip
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"guided_json": SCHEMA, "grammar": LARK}, "grammar"),
    ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"guided_json": "[]"}, "guided_json"),
    ({"guided_json": {"type": "array", "maxItems": 10**9}}, "guided_json"),
    ({"guided_regex": "(a{1000}){1000}"}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["x"] * 300}, "guided_choice"),
    ({"grammar": 'root ::= "a"'}, "grammar"),
    ({"grammar": "start: %json " + '{"type": "array", "minItems": 1000000000}'}, "grammar"),
    ({"grammar": 'start: "a"{1000000}'}, "grammar"),
    ({"grammar": 'start: "' + "a" * 20_000 + '"'}, "grammar"),
    *(({name: value}, name) for name, value in {
        "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": -1, "logit_bias": {"5": 1}, "guided_whitespace_pattern": " ",
        "typical_p": 0.9, "mirostat": 2, "dry_multiplier": 0.8, "xtc_probability": 0.5, "samplers": ["top_k"], "top_a": 0.2,
        "bad_words": ["a"], "use_beam_search": True, "n_predict": 5, "prompt_logprobs": 0, "return_token_ids": True, "n_probs": 3,
        "repetition_penalty": 0.5, "chat_template": "x", "truncate_prompt_tokens": 5, "lora": [{"id": 1}], "function_call": "auto",
    }.items()),
]  # fmt: skip
NEUTRAL: dict[str, Any] = {
    "min_p": 0, "presence_penalty": 0.0, "logit_bias": {}, "typical_p": 1.0, "mirostat": 0, "ignore_eos": False, "n_predict": -1,
    "guided_json": None, "response_format": {"type": "text"}, "repetition_penalty": 1.0, "user": "me", "metadata": {"a": "b"},
    "store": True, "service_tier": "auto", "cache_prompt": True, "reasoning_effort": "low", "prompt_cache_key": "x",
}  # fmt: skip


def text_of(served: Served, path: str, **fields: Any) -> tuple[str, str]:
    """The answer's text and why it ended."""
    if path == "completions":
        body = {"model": MODEL, "prompt": "Name a city:", "max_tokens": 60} | fields
        choice = served.request("POST", "/v1/completions", body).json["choices"][0]
        return choice["text"], choice["finish_reason"]
    choice = served.chat("Name a city.", max_tokens=60, **fields).json["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize(("fields", "pattern"), FOLLOWED, ids=[str(number) for number in range(len(FOLLOWED))])
def test_the_answer_follows(served: Served, fields: dict[str, Any], pattern: str) -> None:
    for path in ("chat", "completions"):
        said, reason = text_of(served, path, **fields)
        assert re.fullmatch(pattern, said) and reason == "stop", (path, said, reason)


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{n}-{param}" for n, (_, param) in enumerate(REFUSED)])
def test_what_cannot_be_followed_is_refused_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    for path, content in (
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("completions", {"prompt": "x"}),
    ):
        answer = served.request("POST", f"/v1/{path}", {"model": MODEL, "max_tokens": 1, **content, **fields})
        assert (answer.status, answer.error["param"]) == (400, param), answer.body


def test_a_grammar_that_is_none_is_the_clients_mistake(served: Served) -> None:
    for grammar in ("start: nothing", "start: (((", "nonsense"):
        answer = served.chat(grammar=grammar)
        assert answer.status == 400 and "grammar" in answer.error["message"], answer.body
    assert served.chat(max_tokens=1).status == 200


HI = [{"role": "user", "content": "Hi"}]
NO_TYPE = {"type": "object", "properties": {"a": {"type": "hiccup"}}}
NO_REGEX, NO_LARK = "[.*", "start: nothing"
FINE = {"type": "object", "properties": {}}
CHAT, RESPONSES, MESSAGES, OLLAMA, NATIVE = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/completion",
)
UNUSABLE: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": NO_TYPE}}}, "response_format.json_schema.schema"),
    (CHAT, {"response_format": {"type": "json_object", "schema": NO_TYPE}}, "response_format.schema"),
    (CHAT, {"structured_outputs": {"json": NO_TYPE}}, "structured_outputs.json"),
    (CHAT, {"structured_outputs": {"regex": NO_REGEX}}, "structured_outputs.regex"),
    (CHAT, {"structured_outputs": {"grammar": NO_LARK}}, "structured_outputs.grammar"),
    (CHAT, {"guided_json": NO_TYPE, "stream": True}, "guided_json"),
    (CHAT, {"guided_regex": NO_REGEX, "n": 2}, "guided_regex"),
    (CHAT, {"guided_grammar": NO_LARK}, "guided_grammar"),
    (CHAT, {"json_schema": NO_TYPE}, "json_schema"),
    (CHAT, {"grammar": NO_LARK}, "grammar"),
    (CHAT, {"json_schema": {"type": "array", "maxItems": 100_000}}, "json_schema"),
    ("/v1/completions", {"prompt": "Hi", "guided_regex": NO_REGEX}, "guided_regex"),
    (NATIVE, {"prompt": "Hi", "json_schema": NO_TYPE}, "json_schema"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x", "schema": NO_TYPE}}}, "text.format.schema"),
    (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": NO_TYPE}}}, "output_config.format.schema"),
    (MESSAGES, {"output_format": {"type": "json_schema", "schema": NO_TYPE}}, "output_format.schema"),
    (OLLAMA, {"format": NO_TYPE}, "format"),
    ("/api/generate", {"prompt": "Hi", "format": NO_TYPE, "stream": False}, "format"),
    (CHAT, {"json_schema": NO_TYPE, "tools": [{"type": "function", "function": {"name": "f"}}]}, "json_schema"),
]  # fmt: skip


def function(path: str, number: int, schema: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A function in the form of the API at ``path``, and what the place of its schema is called there."""
    name, at = f"f{number}", f"tools.{number}"
    if path == MESSAGES:
        return {"name": name, "input_schema": schema}, f"{at}.input_schema"
    if path == RESPONSES:
        return {"type": "function", "name": name, "parameters": schema}, f"{at}.parameters"
    return {"type": "function", "function": {"name": name, "parameters": schema}}, f"{at}.function.parameters"


for path in (CHAT, RESPONSES, MESSAGES, OLLAMA):
    for schema in (NO_TYPE, {"type": "array"}, {"type": "object", "properties": {"a": {"maxItems": 10**9}}}):
        made = [function(path, number, each)[0] for number, each in enumerate((FINE, schema, FINE))]
        UNUSABLE.append((path, {"tools": made}, function(path, 1, schema)[1]))


named = {"type": "function", "function": {"name": "f1"}}
UNUSABLE.append((CHAT, {**UNUSABLE[-12][1], "tool_choice": named}, UNUSABLE[-12][2]))


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "fields", "param"), UNUSABLE, ids=[f"{path} {param} {n}" for n, (path, _, param) in enumerate(UNUSABLE)]
)
def test_a_grammar_that_cannot_be_made_is_refused_by_the_clients_name_of_its_field(
    served: Served, path: str, fields: dict[str, Any], param: str
) -> None:
    asked: dict[str, dict[str, Any]] = {RESPONSES: {"input": "Hi"}, MESSAGES: {"messages": HI, "max_tokens": 9}}
    said_to_it = {} if "prompt" in fields else asked.get(path, {"messages": HI})
    answer = served.request("POST", path, {"model": MODEL, **said_to_it, **fields})
    said = answer.json["error"]
    assert answer.status == 400, answer.body
    assert f"`{param}`: " in (said if isinstance(said, str) else said["message"]), answer.body
    if path not in (MESSAGES, OLLAMA, "/api/generate"):
        assert answer.error["param"] == param


def test_what_asks_for_nothing_and_what_does_not_concern_the_answer_is_taken(served: Served) -> None:
    answer = served.chat(max_tokens=1, **NEUTRAL)
    assert answer.status == 200, answer.body


@pytest.mark.long
def test_the_penalty_and_the_least_length_work(served: Served) -> None:
    question, plain = "Repeat the word no twenty times.", {"max_tokens": 40}
    said = served.chat(question, **plain).json["choices"][0]["message"]["content"]
    for name in ("repetition_penalty", "repeat_penalty"):
        assert served.chat(question, **plain, **{name: 1.8}).json["choices"][0]["message"]["content"] != said
    short = served.chat("The capital of France is", max_tokens=40).json["usage"]["completion_tokens"]
    assert (
        short
        < 30
        <= served.chat("The capital of France is", max_tokens=40, min_tokens=30).json["usage"]["completion_tokens"]
    )


def test_the_official_client_parses_a_class(served: Served) -> None:
    from pydantic import BaseModel

    class Place(BaseModel):
        city: str
        is_capital: bool

    client = served.client()
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Paris?"}],
        response_format=Place,
        max_tokens=60,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Place)
