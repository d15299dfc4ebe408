"""The OpenAI-compatible endpoints over the real embedded model: official client, plain HTTP, limits, cancellation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from conftest import ENDLESS, MODEL, Coe, eventually
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, serving

CHAT = "/v1/chat/completions"
PARIS: list[Any] = [{"role": "user", "content": "The capital of France is"}]


@pytest.fixture(scope="module")
def served(shared_coe: Coe) -> Iterator[Served]:
    config = shared_coe.config / "experts.yaml"
    config.write_text(f"experts:\n  shouter: {{model: {MODEL}, system_prompt: 'Answer in capital letters.'}}\n")
    with serving(shared_coe) as running:
        assert running.chat(max_tokens=1).status == 200
        yield running
    config.unlink()


# --- the official client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=PARIS, temperature=0, max_tokens=24)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=PARIS, temperature=0, max_tokens=24)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=PARIS,
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and whole.usage is not None and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions_go_past_the_chat_template(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0)
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.usage is not None and answer.usage.prompt_tokens == 5
    chunks = list(
        client.completions.create(
            model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"auto", MODEL, "shouter", "general_reasoner"} <= set(names)
    assert len(names) == len(set(names))
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_an_unknown_model_is_openais_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-nothing", messages=PARIS)
    assert error.value.code == "model_not_found"


@pytest.mark.long
def test_seeds_repeat_a_sampled_answer(client: openai.OpenAI) -> None:
    def sample(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Once upon a time"}],
            seed=seed,
            temperature=1.5,
            max_tokens=16,
        )
        return answer.choices[0].message.content

    assert sample(7) == sample(7)
    assert sample(-1) == sample(-1)
    assert any(sample(seed) != sample(7) for seed in range(5))


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "colour": {"enum": ["red", "green"]},
        "price": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "colour", "price"],
    "additionalProperties": False,
}


def test_a_json_schema_is_obeyed(client: openai.OpenAI) -> None:
    for seed in (1, 2, 3):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Tell me about an apple in prose."}],
            temperature=1.5,
            seed=seed,
            max_tokens=200,
            response_format={"type": "json_schema", "json_schema": {"name": "fruit", "schema": SCHEMA, "strict": True}},
        )
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)


def test_json_object_gives_an_object(served: Served) -> None:
    answer = served.chat("Say hello.", response_format={"type": "json_object"}, max_tokens=40)
    assert answer.json["choices"][0]["message"]["content"].startswith("{")


# --- roles, notes, thoughts


def test_auto_answers_and_says_who_stood_in(served: Served) -> None:
    answer = served.chat(model="auto")
    coe = answer.json["coe"]
    assert (coe["expert"], coe["model"]) == ("general_reasoner", MODEL)
    assert "not on disk" in coe["notes"][-1] and " | ".join(coe["notes"]) == answer.headers["x-coe-note"]
    stream = served.chat(model="auto", stream=True)
    assert stream.headers["x-coe-note"] == answer.headers["x-coe-note"]
    assert stream.chunks[0]["coe"]["notes"] == coe["notes"]


def test_a_role_brings_its_system_prompt_unless_there_is_one(served: Served) -> None:
    alone = served.chat(model="shouter", max_tokens=1).json
    own = served.chat(
        model="shouter",
        messages=[{"role": "system", "content": "Answer in capital letters."}, *PARIS],
        max_tokens=1,
    ).json
    developer = served.chat(
        model="shouter",
        messages=[{"role": "developer", "content": "Answer in capital letters."}, *PARIS],
        max_tokens=1,
    ).json
    plain = served.chat(max_tokens=1).json
    prompts = [answer["usage"]["prompt_tokens"] for answer in (alone, own, developer)]
    assert prompts[0] == prompts[1] == prompts[2] != plain["usage"]["prompt_tokens"]
    assert alone["coe"]["expert"] == "shouter" and plain["coe"]["expert"] is None


THINKER = f'experts:\n  thinker: {{model: {MODEL}, system_prompt: "", prompt_format: plain, template: "{{question}}\\n<think>\\n"}}\n'


@pytest.mark.long
def test_thoughts_are_kept_out_of_the_content(bare_coe: Coe, copied_model: Path) -> None:
    (bare_coe.config / "experts.yaml").write_text(THINKER)
    with serving(bare_coe) as served:
        _check_thoughts(served)


def _check_thoughts(served: Served) -> None:
    message = served.chat(model="thinker", max_tokens=8).json["choices"][0]["message"]
    assert message["content"] == "" and message["reasoning_content"]
    deltas = [c["choices"][0]["delta"] for c in served.chat(model="thinker", max_tokens=8, stream=True).chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert not any(delta.get("content") for delta in deltas)
    # A grammar leaves no place for thoughts.
    answer = served.chat(model="thinker", response_format={"type": "json_object"}, max_tokens=20)
    message = answer.json["choices"][0]["message"]
    assert message["content"].startswith("{") and "reasoning_content" not in message


def test_parts_of_text_are_one_message(served: Served) -> None:
    parts = [{"type": "text", "text": "The capital of "}, {"type": "text", "text": "France is"}]
    split = served.chat(messages=[{"role": "user", "content": parts}])
    assert split.json["choices"] == served.chat().json["choices"]


def test_a_conversation_that_continues_keeps_its_cache(served: Served) -> None:
    first = served.chat().json
    turns = [
        *PARIS,
        {"role": "assistant", "content": first["choices"][0]["message"]["content"]},
        {"role": "user", "content": "And of Spain?"},
    ]
    second = served.chat(messages=turns).json
    reused = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert reused == second["coe"]["reused_tokens"] >= 30


# --- the end of an answer


def test_stop_strings_end_it_and_are_not_shown(served: Served) -> None:
    whole = served.chat().json["choices"][0]["message"]["content"]
    word = whole.split()[3]
    for stop in (word, ["never said", word]):
        cut = served.chat(stop=stop).json["choices"][0]
        assert cut["message"]["content"] == whole.split(word)[0]
        assert cut["finish_reason"] == "stop"


def test_a_top_k_beyond_the_vocabulary_is_the_whole_of_it(served: Served) -> None:
    assert served.chat(top_k=10**6, temperature=1, max_tokens=1).status == 200


def test_max_tokens_ends_it(served: Served) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        asked: dict[str, Any] = {"max_tokens": None, field: 3}
        answer = served.chat(**asked).json
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 3


def test_a_client_that_goes_away_cancels_its_answer(served: Served) -> None:
    def running() -> int:
        return sum(model["running"] for model in served.snapshot()["models"])

    for stream in (True, False):
        connection = served.connect()
        messages = [{"role": "user", "content": ENDLESS}]
        body = {"model": MODEL, "messages": messages, "stream": stream, "temperature": 0}
        connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        eventually(running)
        assert connection.sock is not None
        connection.sock.close() if not stream else connection.getresponse().close()
        connection.close()
        eventually(lambda: not running())


def test_one_that_goes_away_in_the_queue_leaves_it(served: Served) -> None:
    async def many() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            asks = [
                asyncio.create_task(
                    client.chat.completions.create(
                        model=MODEL, messages=[{"role": "user", "content": ENDLESS}], temperature=0
                    )
                )
                for _ in range(6)
            ]
            while served.snapshot()["queue_length"] == 0:
                await asyncio.sleep(0.01)
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, return_exceptions=True)

    asyncio.run(many())
    eventually(lambda: served.snapshot()["queue_length"] == 0)
    assert served.chat().status == 200


# --- mistakes

BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x"}] * 1025}, "messages"),
    ({"n": 17}, "n"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"model": ""}, "model"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[param for _, param in BAD])
def test_what_is_not_supported_is_refused_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    answer = served.chat(**fields)
    assert answer.status == 400, answer.body
    assert answer.error["type"] == "invalid_request_error"
    assert str(answer.error["param"]).startswith(param)


def test_unknown_fields_are_ignored(served: Served) -> None:
    assert served.chat(user="me", metadata={"a": "b"}, store=False, max_tokens=1).status == 200


@pytest.mark.parametrize(
    "schema", [{"type": "banana"}, {"$ref": "http://x.invalid/y"}, {"type": "string", "pattern": "((("}]
)
def test_a_schema_that_cannot_be_used_is_the_clients_mistake(served: Served, schema: dict[str, Any]) -> None:
    answer = served.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert answer.status == 400
    assert "schema" in answer.error["message"]
    assert served.chat(max_tokens=1).status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"model": 1e999}'])
def test_a_body_that_is_not_a_request(served: Served, body: bytes) -> None:
    answer = served.request("POST", CHAT, body=body)
    assert answer.status == 400, answer.body
    assert answer.error["message"]


def test_json_under_another_type_is_told_the_header(served: Served) -> None:
    """What `curl -d` sends."""
    form = "application/x-www-form-urlencoded"
    answer = served.request("POST", CHAT, body=b'{"model": "auto", "messages": []}', Content_Type=form)
    assert answer.status == 400
    assert "Content-Type: application/json" in answer.error["message"]


@pytest.mark.parametrize("prompt", ["", " "])
def test_a_raw_prompt_without_a_token(served: Served, prompt: str) -> None:
    answer = served.request("POST", "/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 1})
    assert (answer.status, answer.error["param"]) == (400, "prompt"), answer.body


def test_a_prompt_that_is_too_long(served: Served) -> None:
    for question in ("word " * 5000, "x" * 2_100_000):
        answer = served.chat(question)
        assert answer.status == 400
        assert answer.error["code"] == "context_length_exceeded"


def test_a_body_that_is_too_large(served: Served) -> None:
    connection = served.connect()
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Length", str(9 * 2**20))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    connection = served.connect()
    connection.request("POST", CHAT, iter([b"x" * 2**20] * 9), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_paths_and_methods_that_are_not_there(served: Served) -> None:
    for method, path, status in [
        ("GET", "/v1/nothing", 404),
        ("GET", CHAT, 405),
        ("POST", "/healthz", 405),
        ("GET", "/docs", 404),
    ]:
        answer = served.request(method, path)
        assert answer.status == status, path
        assert answer.error["message"]


def test_a_model_that_is_known_but_not_on_disk_says_how_to_get_it(served: Served) -> None:
    answer = served.chat(model="law-LLM-DML")
    assert answer.status == 404
    assert "coe models pull law-LLM-DML" in answer.error["message"]


def test_embeddings_answer_or_say_why_not(served: Served) -> None:
    answer = served.request("POST", "/v1/embeddings", {"model": "auto", "input": ["a", "b"]})
    assert answer.status == 404
    assert answer.error["code"] == "no_embedder" and "coe route --rebuild" in answer.error["message"]


# --- figures


def test_metrics_are_prometheus_text_and_count(served: Served) -> None:
    def read() -> dict[str, float]:
        answer = served.request("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = text_string_to_metric_families(answer.body.decode())
        return {f"{s.name}{sorted(s.labels.values())}": s.value for f in families for s in f.samples}

    before = read()
    tokens = served.chat().json["usage"]["completion_tokens"]
    served.chat(model="nothing")
    after = read()
    assert after["coe_answers_total[]"] == before["coe_answers_total[]"] + 1
    assert after["coe_completion_tokens_total[]"] == before["coe_completion_tokens_total[]"] + tokens
    assert (
        after[f"coe_http_responses_total['{CHAT}', '200']"] == before[f"coe_http_responses_total['{CHAT}', '200']"] + 1
    )
    assert after[f"coe_http_responses_total['{CHAT}', '404']"] >= 1
    assert after[f"coe_model_measured_bytes['{MODEL}']"] > 50 * 2**20


@pytest.mark.long
def test_the_queue_refuses_when_it_is_full(served: Served) -> None:
    """257 more than can run at once: what finds no place is told when to come back."""

    async def flood() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            asks = [
                asyncio.create_task(
                    client.chat.completions.create(
                        model=MODEL, messages=PARIS, temperature=1.3, seed=1, max_tokens=3000
                    )
                )
                for _ in range(300)
            ]
            done, _ = await asyncio.wait(asks, return_when=asyncio.FIRST_EXCEPTION)
            refused = [ask.exception() for ask in done if ask.exception() is not None]
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
            return refused

    refused = asyncio.run(flood())
    assert all(isinstance(error, openai.RateLimitError) for error in refused)
    assert int(refused[0].response.headers["retry-after"]) >= 1
    assert refused[0].code in ("queue_full", "prompts_full")
    eventually(lambda: served.snapshot()["queue_length"] == 0)
