"""Other APIs by their own clients: OpenAI's responses, Anthropic's messages, Ollama's; and what drives a model through OpenAI's."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import openai
import pytest
from conftest import MODEL
from serving import Served

PARAMETERS: dict[str, Any] = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"], "additionalProperties": False,
}  # fmt: skip
PARIS = "The capital of France is"


@pytest.fixture(scope="module")
def said(served: Served) -> str:
    """What the model answers through chat completions."""
    return str(served.chat(PARIS).json["choices"][0]["message"]["content"])


# --- OpenAI's responses


@pytest.mark.long
def test_a_response_whole_and_as_events(client: openai.OpenAI, said: str) -> None:
    ask: dict[str, Any] = {"model": MODEL, "input": PARIS, "temperature": 0, "max_output_tokens": 24}
    whole = client.responses.create(**ask)
    assert whole.output_text == said and whole.status in ("completed", "incomplete")
    assert whole.usage is not None and whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(client.responses.create(stream=True, **ask))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds[:5] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta",
    ]  # fmt: skip
    assert kinds[5:8] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == said
    with client.responses.stream(**ask) as stream:  # the client puts the events together itself
        assert stream.get_final_response().output_text == said


@pytest.mark.long
def test_a_response_calls_a_function_and_goes_on(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    ask: dict[str, Any] = {"model": MODEL, "tools": [tool], "temperature": 0, "max_output_tokens": 60}
    first = client.responses.create(input="Weather in Paris?", tool_choice="required", **ask)
    (call,) = first.output
    assert call.type == "function_call" and json.loads(call.arguments).keys() == {"city"}
    events = list(
        client.responses.create(
            input="Weather in Paris?", tool_choice={"type": "function", "name": "weather"}, stream=True, **ask
        )
    )
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}]
    second = client.responses.create(input=result, previous_response_id=first.id, tool_choice="none", **ask)
    assert second.output_text and second.usage.input_tokens > 20
    whole: Any = [{"role": "user", "content": "Weather in Paris?"}, call.model_dump(), *result]
    again = client.responses.create(input=whole, tool_choice="none", **ask)
    assert again.output_text == second.output_text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(input="x", previous_response_id=second.id, **ask)


@pytest.mark.long
def test_a_response_in_a_schema_and_what_is_refused(client: openai.OpenAI, served: Served) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "place", "schema": PARAMETERS, "strict": True}}
    answer = client.responses.create(model=MODEL, input="A city.", text=form, max_output_tokens=40)
    assert json.loads(answer.output_text).keys() == {"city"}
    ask = {"model": MODEL, "input": "x", "max_output_tokens": 1}
    for fields, param in (
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
    ):
        refused = served.request("POST", "/v1/responses", ask | fields)
        assert (refused.status, refused.error["param"]) == (400, param), refused.body
    assert served.request("POST", "/v1/responses", ask | {"truncation": "disabled", "include": []}).status == 200


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True])
def test_what_has_one_conversation_and_one_answer_refuses_more(served: Served, stream: bool) -> None:
    turns = [{"role": "user", "content": "x"}]
    asks: dict[str, dict[str, Any]] = {
        "/v1/responses": {"input": "x", "max_output_tokens": 1},
        "/v1/messages": {"messages": turns, "max_tokens": 1},
        "/api/chat": {"messages": turns, "options": {"num_predict": 1}},
        "/api/generate": {"prompt": "x", "raw": True, "options": {"num_predict": 1}},
    }
    for path, ask in asks.items():
        body = {"model": MODEL, "stream": stream, **ask}
        assert served.request("POST", path, body | {"n": 1}).status == 200
        several = served.request("POST", path, body | {"n": 2})
        assert several.status == 400 and b"`n`" in several.body, (path, several.body)
    for path in ("/v1/responses", "/v1/messages"):
        beside = served.request("POST", path, {"model": MODEL, "stream": stream, **asks[path], "prompt": "x"})
        assert beside.status == 400 and b"`prompt`" in beside.body, (path, beside.body)


# --- Anthropic's messages


@pytest.mark.long
def test_anthropics_client(served: Served, said: str) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    ask: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 24,
        "messages": [{"role": "user", "content": PARIS}],
        "extra_body": {"temperature": 0},
    }
    whole = client.messages.create(**ask)
    assert [block.type for block in whole.content] == ["text"] and whole.content[0].text == said
    assert whole.stop_reason in ("end_turn", "max_tokens") and whole.usage.output_tokens > 0
    with client.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == said
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
    assert client.messages.create(**ask, system="Answer in French.").usage.input_tokens != whole.usage.input_tokens
    tools = [{"name": "weather", "description": "Weather", "input_schema": PARAMETERS}]
    forced = {**ask, "max_tokens": 60, "tools": tools, "tool_choice": {"type": "tool", "name": "weather"}}
    called = client.messages.create(**forced)
    (block,) = called.content
    assert (called.stop_reason, block.type, block.name, set(block.input)) == (
        "tool_use",
        "tool_use",
        "weather",
        {"city"},
    )
    with client.messages.stream(**forced) as stream:
        assert stream.get_final_message().content[0].input == block.input
    turns = [
        *ask["messages"],
        {"role": "assistant", "content": [block.model_dump()]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "18 degrees"}]},
    ]
    assert client.messages.create(**{**ask, "messages": turns, "tools": tools}).content
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ask, "model": "nothing"})
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(**{**ask, "messages": [{"role": "user", "content": "word " * 9000}]})
    with pytest.raises(anthropic.BadRequestError, match="images cannot be read"):
        client.messages.create(**{**ask, "messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]})


@pytest.mark.long
def test_anthropics_errors_have_their_shape(served: Served) -> None:
    for body in (
        {},
        {"model": MODEL, "max_tokens": 1},
        {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": 5}]},
    ):
        answer = served.request("POST", "/v1/messages", body)
        assert answer.status == 400
        assert answer.json["type"] == "error" and answer.json["error"]["type"] == "invalid_request_error"


# --- Ollama's


@pytest.mark.long
def test_ollamas_client(served: Served, said: str) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=served.url)
    options = {"temperature": 0, "num_predict": 24}
    hi = [{"role": "user", "content": PARIS}]
    whole = client.chat(MODEL, hi, options=options)
    assert whole.message.content == said and whole.done and whole.eval_count > 0
    parts = list(client.chat(f"{MODEL}:latest", hi, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == said and parts[-1].done_reason in ("stop", "length")
    generated = client.generate(MODEL, PARIS, options=options)
    assert generated.response == said
    raw = client.generate(MODEL, PARIS, raw=True, options={"temperature": 0, "num_predict": 4})
    assert raw.response.startswith(" Paris")
    formed = client.chat(MODEL, hi, format=PARAMETERS, options={"num_predict": 40})
    assert json.loads(formed.message.content).keys() == {"city"}
    assert client.generate(MODEL).done_reason == "load"
    assert MODEL in [model.model for model in client.list().models]
    assert client.show(MODEL).modelinfo["general.architecture"]
    assert [model.model for model in client.ps().models] == [MODEL]
    assert [part.status for part in client.pull(MODEL, stream=True)][-1] == "success"
    for wrong in (partial(client.chat, messages=hi), client.pull, client.show):
        with pytest.raises(ollama.ResponseError) as refused:
            wrong("nothing")
        assert refused.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="min_p"):
        client.chat(MODEL, hi, options={"min_p": 0.2})


@pytest.mark.long
def test_ollamas_api_without_its_client(served: Served, said: str) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": PARIS}],
        "options": {"temperature": 0, "num_predict": 24},
    }
    lines = [json.loads(line) for line in served.request("POST", "/api/chat", body).body.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == said
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    plain = served.request("POST", "/api/chat", body, Content_Type="text/plain")
    streamed = [json.loads(line) for line in plain.body.splitlines()]
    assert plain.status == 200 and "".join(line["message"]["content"] for line in streamed) == said
    assert served.request("GET", "/api/version").json["version"]
    assert served.request("GET", "/api/ps").json["coe"]["pool_mb"] > 0
    for path, wrong in (
        ("/api/chat", {}),
        ("/api/chat", {"model": MODEL, "messages": [{"role": "x", "content": "y"}]}),
        ("/api/nothing", {}),
    ):
        answer = served.request("POST", path, wrong)
        assert answer.status in (400, 404) and isinstance(answer.json["error"], str), answer.body
