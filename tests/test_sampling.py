"""Sampling does what a request says, or the request is refused by the parameter's name, through every way in; so do grammars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Coe
from model_store.saying_model import edit_config
from model_store.tiny_model import write_tiny_model
from serving import Served, serving
from ways import APIS, refusal, say

from coe_cli.core.answers.sampling import Sampling, search_options

GREEDY: dict[str, Any] = {"do_sample": False}
OPTIONS: list[tuple[Sampling, dict[str, Any], dict[str, Any]]] = [
    (Sampling(), {"top_k": 1}, {}),
    (Sampling(seed=3), {"do_sample": True}, {"random_seed": 3}),
    (Sampling(temperature=0), {"do_sample": True}, GREEDY),
    (Sampling(top_p=0), {"do_sample": True}, GREEDY),
    (Sampling(temperature=1.5, top_p=0), {}, GREEDY),
    (Sampling(temperature=1.5, top_k=1), {}, GREEDY),
    (Sampling(temperature=1.5), {"top_k": 1}, {"do_sample": True, "temperature": 1.5, "top_k": 50}),
    (Sampling(top_p=0.9), {"top_k": 1}, {"do_sample": True, "top_p": 0.9, "top_k": 50}),
    (Sampling(top_p=0.9), {"temperature": 0}, {"do_sample": True, "top_p": 0.9, "temperature": 1.0}),
    (Sampling(temperature=1.5, top_k=4), {"top_k": 1}, {"do_sample": True, "temperature": 1.5, "top_k": 4}),
    (Sampling(temperature=0.7), {"top_k": 20}, {"do_sample": True, "temperature": 0.7}),
]


@pytest.mark.parametrize(("sampling", "configured", "options"), OPTIONS)
def test_what_the_runtime_is_told(sampling: Sampling, configured: dict[str, Any], options: dict[str, Any]) -> None:
    assert search_options(sampling, configured) == options


@pytest.fixture(scope="module")
def served(home: Coe) -> Iterator[Served]:
    """A model whose configuration leaves one candidate, and one that wants beams."""
    write_tiny_model(home.models / "narrow", seed=3)
    edit_config(home.models / "narrow", "search", do_sample=True, top_k=1)
    write_tiny_model(home.models / "beams", seed=3)
    edit_config(home.models / "beams", "search", num_beams=4)
    with serving(home) as it:
        yield it


@pytest.mark.parametrize(
    "way",
    ["ask, served", "/v1", "Client", *APIS, *(pytest.param(way, marks=pytest.mark.long) for way in ("chat", "batch"))],
)
def test_a_request_is_not_held_to_the_configurations_one_candidate(way: str, served: Served) -> None:
    def text(**fields: Any) -> str:
        return say(way, served, model="narrow", max_tokens=12, **fields).text

    greedy = text(temperature=0)
    assert text(top_p=0, seed=1) == greedy
    assert len({text(temperature=1.5, seed=seed) for seed in (1, 2, 3)}) == 3


@pytest.mark.parametrize("way", ["ask", "/v1"])
def test_beams_are_refused_by_name(way: str, served: Served) -> None:
    if way == "ask":
        result = served.coe.run("ask", "-m", "beams", "--no-log", "Hi")
        assert result.code == 4 and "num_beams" in result.stderr
    else:
        body = {"model": "beams", "messages": [{"role": "user", "content": "Hi"}]}
        response = served.request("POST", "/v1/chat/completions", body)
        assert response.status >= 400 and "num_beams" in response.error["message"]


REFUSED: dict[str, Any] = {
    "min_p": 0.1,
    "repetition_penalty": 0.5,
    "presence_penalty": 0.5,
    "frequency_penalty": -1,
    "logit_bias": {"5": 1},
}
NEUTRAL: dict[str, Any] = {
    "min_p": 0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0,
    "logit_bias": {},
}


@pytest.mark.parametrize(
    ("way", "name"),
    [
        *((way, name) for way in ("batch", "/v1", "/v1/completions", "Client", *APIS) for name in REFUSED),
        *((way, "min_p") for way in ("ask", "chat")),  # an option that is not there is refused by its name
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(way: str, name: str, served: Served) -> None:
    words = refusal(way, served.coe, served, "narrow", {name: REFUSED[name]})
    assert name in words.replace("--" + name.replace("_", "-"), name), words


@pytest.mark.parametrize("way", ["batch", "/v1", *APIS])
def test_what_asks_for_nothing_is_taken(way: str, served: Served) -> None:
    assert say(way, served, model="narrow", max_tokens=2, temperature=0, **NEUTRAL).finish_reason == "length"


SCHEMAS: list[tuple[dict[str, Any], str]] = [
    ({"const": "é"}, '"é"'),
    ({"type": "string", "pattern": "^ü{2}$"}, '"üü"'),
    (
        {"type": "object", "properties": {"größe": {"const": 1}}, "required": ["größe"], "additionalProperties": False},
        '{"größe":1}',
    ),
    ({"enum": ["😀"]}, ""),
    ({"enum": ["日本", "😀b"]}, ""),
]


@pytest.mark.parametrize(
    ("way", "schema", "answer"),
    [(way, *case) for way in ("/v1", "/v1, streamed") for case in SCHEMAS]
    + [("batch", *case) for case in (SCHEMAS[0], SCHEMAS[3])],
)
def test_text_outside_ascii_in_a_schema(way: str, schema: dict[str, Any], answer: str, served: Served) -> None:
    """It is answered, or the request is at fault and the reason said."""
    body: dict[str, Any] = {
        "model": "narrow",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0,
        "max_tokens": 40,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    if way == "batch":
        row = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
        (served.coe.folder / "in.jsonl").write_text(json.dumps(row) + "\n")
        served.coe.run("batch", "in.jsonl", "-o", "out.jsonl", "--restart")
        response = json.loads((served.coe.folder / "out.jsonl").read_text(encoding="utf-8"))["response"]
        status, found = response["status_code"], response["body"]
    elif way == "/v1":
        whole = served.request("POST", "/v1/chat/completions", body)
        status, found = whole.status, whole.json
    else:
        stream = served.request("POST", "/v1/chat/completions", body | {"stream": True})
        last = stream.body.decode().strip().split("\n\n")[-1].removeprefix("data: ")
        status = 200 if last == "[DONE]" else 400
        found = {} if last == "[DONE]" else json.loads(last)
    if status == 200:
        if way != "/v1, streamed" and answer:
            assert found["choices"][0]["message"]["content"] == answer
        return
    assert not answer and status == 400
    assert "outside ASCII" in found["error"]["message"] and found["error"]["type"] == "invalid_request_error"
    assert found["error"]["param"] == "response_format.json_schema.schema"
