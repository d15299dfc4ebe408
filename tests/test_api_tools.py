"""Functions over HTTP: forced calls with the embedded model, free ones with models that say them, templates that know them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from conftest import MODEL, Coe
from hypothesis import given
from hypothesis import strategies as st
from model_store.saying_model import write_saying_model
from serving import Served, serving

from coe_cli.core.answers.tool_calls import CallDelta, CallReader, ToolCall, Tools, format_of, tool_grammar
from coe_cli.runtime.prompts.chat_rendering import ChatTemplate, flat_turns
from coe_cli.runtime.worker.protocol import ChatMessage

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS},
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


def create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": MODEL, "messages": ASK, "temperature": 0, "max_tokens": 80, "tools": [WEATHER, CLOCK], **fields}
    )


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.long
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_call_is_valid_streamed_or_not(client: openai.OpenAI, choice: Any) -> None:
    (whole,) = create(client, tool_choice=choice).choices
    (call,) = whole.message.tool_calls
    assert (whole.finish_reason, whole.message.content, call.type) == ("tool_calls", None, "function")
    assert call.function.name == "get_weather" and len(call.id) == 9
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
    chunks = [chunk.choices[0] for chunk in create(client, tool_choice=choice, stream=True)]
    deltas = [delta for chunk in chunks for delta in chunk.delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0}
    assert (deltas[0].function.name, deltas[0].type) == ("get_weather", "function") and deltas[0].id
    assert all(delta.id is None and delta.function.name is None for delta in deltas[1:])
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls" and not any(chunk.delta.content for chunk in chunks)


def test_a_function_without_parameters(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "clock"}}
    (call,) = create(client, tool_choice=choice).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("clock", {})


def test_none_and_no_tools_are_the_plain_answer(client: openai.OpenAI) -> None:
    plain = create(client, tools=openai.NOT_GIVEN, max_tokens=16)
    without: tuple[dict[str, Any], ...] = ({"tool_choice": "none"}, {"tools": []})
    for fields in without:
        answer = create(client, max_tokens=16, **fields)
        assert answer.choices[0].message.content == plain.choices[0].message.content
        assert answer.usage.prompt_tokens == plain.usage.prompt_tokens


def test_a_call_that_is_cut_off_says_so(client: openai.OpenAI) -> None:
    (whole,) = create(client, tool_choice="required", max_tokens=22).choices
    assert whole.finish_reason == "length"


@pytest.mark.long
def test_the_conversation_goes_on_with_what_a_function_gave(client: openai.OpenAI) -> None:
    call = {
        "id": "c12345678",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Paris","unit":"C"}'},
    }
    turns = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}]
    before = create(client, messages=turns, max_tokens=1).usage.prompt_tokens
    turns.append({"role": "tool", "tool_call_id": "c12345678", "content": "18 degrees and sunny"})
    answer = create(client, messages=turns, max_tokens=24)
    assert answer.choices[0].message.content and answer.usage.prompt_tokens > before + 5


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ({"tools": [CLOCK] * 2}, "tools"),
    ({"tools": [CLOCK] * 129}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools.0.function.parameters"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"maxLength": 10**12}}}}}]}, "tools.0.function.parameters"),
    ({"tool_choice": {"type": "function", "function": {"name": "nothing"}}}, "tool_choice"),
    ({"tool_choice": "required", "tools": []}, "tool_choice"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages.0.tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "no"}}]}]}, "messages.0.tool_calls.0.function.arguments"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages.0.role"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[f"{n}-{param}" for n, (_, param) in enumerate(REFUSED)])
def test_what_is_wrong_with_them_is_said_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    answer = served.chat(**{"tools": [CLOCK]} | fields)
    assert answer.status == 400, answer.body
    assert str(answer.error["param"]) == param, answer.body


# --- models that call by themselves

CALL = ["<tool_call>", "\n", '{"name": "', "clock", '", "arguments": ', "{}", "}", "\n</tool_call>"]
SAYS = {"calls": CALL, "talks, then calls": ["Let me see. ", *CALL], "talks": ["It is ", "noon", " <tool", "s>."]}


@pytest.fixture(scope="module")
def sayers(home: Coe) -> Iterator[Served]:
    for name, says in SAYS.items():
        write_saying_model(home.models / name.replace(", ", "-").replace(" ", "-"), says)
    with serving(home) as it:
        yield it


@pytest.mark.long
@pytest.mark.parametrize("name", SAYS)
def test_a_free_answer_is_text_or_calls(sayers: Served, name: str) -> None:
    model = name.replace(", ", "-").replace(" ", "-")
    body = {"model": model, "messages": [{"role": "user", "content": "time? "}], "tools": [CLOCK], "max_tokens": 60}
    answer = sayers.request("POST", "/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    (choice,) = answer.json["choices"]
    message = choice["message"]
    if name == "talks":
        assert (message["content"], choice["finish_reason"]) == ("It is noon <tools>.", "stop")
        return
    (call,) = message["tool_calls"]
    assert (call["function"], choice["finish_reason"]) == ({"name": "clock", "arguments": "{}"}, "tool_calls")
    assert message["content"] == ("Let me see." if "talks" in name else None)
    streamed = sayers.request("POST", "/v1/chat/completions", body | {"stream": True}).chunks
    deltas = [delta for chunk in streamed for delta in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(delta["function"]["arguments"] for delta in deltas) == "{}"


# --- the reader and the templates

ONE = '<tool_call>\n{"name": "f", "arguments": {"a": "}\\"{"}}\n</tool_call>'
READ: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("Hello.", "Hello.", []),
    ("a <tool b", "a <tool b", []),
    (ONE, "", [("f", '{"a": "}\\"{"}')]),
    ("Hm. " + ONE + "\n" + ONE, "Hm.", [("f", '{"a": "}\\"{"}')] * 2),
    ('[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": [1]}}]', "", [("f", "{}"), ("g", '{"x": [1]}')]),
    ('[{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
    ('{"name": "f", "parameters": {"x": {}}}', "", [("f", '{"x": {}}')]),
    ('{"answer": 5}', '{"answer": 5}', []),
    ("[1, 2]", "[1, 2]", []),
]  # fmt: skip


@given(st.sampled_from(READ), st.lists(st.integers(0, 200), max_size=8))
def test_calls_are_read_however_the_text_is_cut(case: tuple[str, str, list[tuple[str, str]]], cuts: list[int]) -> None:
    text, said, calls = case
    reader, found, at = CallReader(), [], 0
    for cut in [*sorted(cut for cut in cuts if cut < len(text)), len(text)]:
        found += reader.feed(text[at:cut])
        at = cut
    found += reader.finish()
    assert "".join(each for each in found if isinstance(each, str)).rstrip() == said
    names = [each.name for each in found if isinstance(each, CallDelta) and each.name is not None]
    arguments = [
        "".join(e.arguments for e in found if isinstance(e, CallDelta) and e.call == n) for n in range(len(names))
    ]
    assert list(zip(names, arguments, strict=True)) == calls


QWEN = (
    "{%- if tools %}<|im_start|>system\n<tools>{%- for tool in tools %}\n{{ tool | tojson }}{%- endfor %}</tools>"
    ' <tool_call>\n{"name": <n>, "arguments": <a>}\n</tool_call><|im_end|>\n{%- endif %}'
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{%- endfor %}'
    "<|im_end|>\n{%- endfor %}"
)
TURNS = [
    ChatMessage("user", "Time?"),
    ChatMessage("assistant", "", [ToolCall("c1", "clock", '{"zone": "CET"}')]),
    ChatMessage("tool", "noon", tool_call_id="c1"),
]


def test_a_template_that_knows_functions_writes_them_itself() -> None:
    template = ChatTemplate(QWEN, {})
    text = template.with_tools(TURNS, [CLOCK])
    assert template.tool_format == "hermes" and text is not None
    assert (
        '"name": "clock"' in text and '{"name": "clock", "arguments": {"zone": "CET"}}' in text and "tool\nnoon" in text
    )
    assert template.with_tools(TURNS[:1], None) is None


def test_others_are_told_in_text() -> None:
    assert format_of("{{ messages }}") is None
    turns = flat_turns(TURNS, [CLOCK])
    assert [role for role, _ in turns] == ["system", "user", "assistant", "user"]
    assert (
        '{"name": "clock"}' in turns[0][1] and '"arguments": {"zone": "CET"}' in turns[2][1] and "noon" in turns[3][1]
    )


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("tools [TOOL_CALLS]", "mistral"), ("tools <|tool_call|>", "phi"), ('tools "parameters"', "llama"),
        ("tools <tool_call>", "hermes"), ("tools", None), ("<tool_call>", None),
    ],
)  # fmt: skip
def test_the_format_is_the_templates(template: str, name: str | None) -> None:
    assert format_of(template) == name


def test_a_grammar_has_one_call_where_one_is_wanted() -> None:
    tools = Tools([WEATHER["function"], CLOCK["function"]], required=True)
    assert "{0,7}" in tool_grammar(tools, "hermes", marker=None, schema=None, single=False)
    assert "call){" not in tool_grammar(tools, "hermes", marker=None, schema=None, single=True)
    named = Tools(tools.functions, required=True, only="clock")
    assert "get_weather" not in tool_grammar(named, "mistral", marker=5, schema=None, single=False)
