"""What a client is told when it is wrong: OpenAI's shape everywhere, the field's public name, words that clients look for."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from conftest import Coe
from model_store.saying_model import edit_config
from model_store.tiny_model import write_tiny_model
from serving import Served, serving

CHAT = "/v1/chat/completions"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def served(home: Coe) -> Iterator[Served]:
    write_tiny_model(home.models / "tiny", seed=3)
    write_tiny_model(home.models / "beams", seed=3)
    edit_config(home.models / "beams", "search", num_beams=4)
    with serving(home, COE_API_KEY=KEY) as it:
        yield it


def chat(served: Served, **fields: Any) -> Any:
    body = {"model": "tiny", "messages": HI, "max_tokens": 1} | fields
    return served.request("POST", CHAT, body, x_api_key=KEY)


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


PARAMS: list[tuple[dict[str, Any], str, str]] = [
    (part(type="image_url", image_url={"url": "http://x.invalid/a.png"}), "messages.0.content.0.type", "images cannot be read"),
    (part(type="input_audio", input_audio={"data": "", "format": "wav"}), "messages.0.content.0.type", "audio cannot be read"),
    (part(type="file", file={}), "messages.0.content.0.type", "files cannot be read"),
    (part(type="text", text=5), "messages.0.content.0.text", "string"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", ""),
    ({"messages": [{"role": "user"}]}, "messages.0.content", ""),
    ({"stop": [5]}, "stop.0", ""),
    ({"stop": ""}, "stop", "at least 1 character"),
    ({"stop": ["x"] * 17}, "stop", "at most 16 items"),
    ({"stream_options": 5}, "stream_options", "should be an object"),
    ({"chat_template_kwargs": {"a": []}}, "chat_template_kwargs", "`a` is neither"),
    ({"temperature": "warm"}, "temperature", ""),
    ({"model": None}, "model", ""),
    ({"model": "nothing"}, "model", "nothing"),
    ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages", "maximum context length is"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param", "words"), PARAMS, ids=[f"{n}-{param}" for n, (_, param, _) in enumerate(PARAMS)]
)
def test_the_param_is_the_public_name_of_the_field(
    served: Served, fields: dict[str, Any], param: str, words: str
) -> None:
    answer = chat(served, **fields)
    assert answer.status in (400, 404), answer.body
    assert answer.error["param"] == param and words in answer.error["message"], answer.body
    for internal in ("pydantic", "Literal", "TextPart", "function-", "list[", "0x", "dictionary", "Value error"):
        assert internal not in answer.body.decode()


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"model":"\xff"}', gzip.compress(b"{}"), b"[" * 100_000 + b"]" * 100_000],
    ids=["cut", "not UTF-8", "compressed", "deep"],
)
def test_a_body_that_is_no_json_is_called_so(served: Served, body: bytes) -> None:
    answer = served.request("POST", CHAT, body=body, x_api_key=KEY)
    assert (answer.status, answer.error["code"]) == (400, "invalid_json") and "not JSON" in answer.error["message"]


@pytest.mark.parametrize("value", [[1], "text", None])
def test_a_body_that_is_no_object_is_called_so(served: Served, value: Any) -> None:
    answer = served.request("POST", CHAT, body=json.dumps(value).encode(), x_api_key=KEY)
    assert (answer.status, answer.error["code"]) == (400, "invalid_value"), answer.body
    assert "dictionary" not in answer.error["message"]


def test_an_overflow_has_the_words_that_clients_look_for(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 9000}])
    assert refused.value.code == "context_length_exceeded"
    assert re.search(r"This model's maximum context length is \d+ tokens\. However, ", str(refused.value))
    longest = chat(served, messages=[{"role": "user", "content": "x" * 2_000_001}])
    assert (longest.error["code"], longest.error["param"]) == ("context_length_exceeded", "messages")
    assert "longer than the model's context length" in longest.error["message"]


def test_a_model_that_is_there_and_cannot_be_used_is_not_an_unknown_one(served: Served) -> None:
    answer = chat(served, model="beams")
    assert (answer.status, answer.error["code"], answer.error["type"]) == (500, "model_damaged", "server_error")
    assert (chat(served, model="nothing").status, chat(served, model="nothing").error["code"]) == (
        404,
        "model_not_found",
    )


WRONG: list[tuple[str, str, dict[str, str], int]] = [
    ("GET", "/v1", {}, 404),
    ("GET", "/nothing", {}, 404),
    ("POST", "/v1/nothing", {}, 404),
    ("GET", "/v1/models/", {}, 404),
    ("GET", CHAT, {}, 405),
    ("DELETE", "/v1/models", {}, 405),
    ("PUT", "/health", {}, 405),
    ("POST", CHAT, {"content_encoding": "gzip"}, 415),
    ("POST", CHAT, {"content_encoding": "br"}, 415),
    ("POST", CHAT, {"Content_Type": "text/plain"}, 400),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "headers", "status"), WRONG)
def test_what_is_not_there_is_said_as_json(
    served: Served, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    body = gzip.compress(json.dumps({"model": "tiny", "messages": HI}).encode()) if method == "POST" else None
    answer = served.request(method, path, body=body, x_api_key=KEY, **headers)
    assert answer.status == status and answer.error["message"] and answer.error["code"], answer.body
    assert answer.headers["content-type"] == "application/json"


FORM = {"Content_Type": "multipart/form-data; boundary=x"}
UPLOAD = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nrows\r\n--x--\r\n'
REMEDIES: list[tuple[str, str, bytes, dict[str, str], int, str]] = [
    ("POST", CHAT, b'{"model": }', {}, 400, "character 10). Send one JSON object"),
    ("POST", "/v1/completions", b'{"model": "tiny", "prompt": "x", "seed": 1e30}', {}, 400, "a smaller number"),
    ("POST", "/v1/completions", b'{"model": "tiny", "prompt": "x", "guided_json": ""}', {}, 400, "`guided_json`: the schema is not JSON"),
    ("POST", "/v1/files", b"rows", FORM, 400, "not multipart/form-data. Send the fields file and purpose"),
    ("POST", "/v1/files", UPLOAD, FORM, 400, "should be an uploaded file"),
    ("GET", "/v1/files/x", b"", {}, 404, "See /v1/files."),
    ("GET", "/v1/batches/x", b"", {}, 404, "See /v1/batches."),
    ("POST", CHAT, b"x", {"Content_Length": "9000000"}, 413, "Send it in parts."),
    ("POST", "/api/show", b"{}", {}, 400, "no model is named. Send one of /api/tags as `model`."),
    ("POST", "/api/pull", b"{}", {}, 400, "no model is named. Send one of /api/tags as `model`."),
    ("PUT", "/healthz", b"", {}, 405, "PUT is not for this address. Use GET."),
    ("DELETE", "/metrics", b"", {}, 405, "DELETE is not for this address. Use GET."),
    ("POST", "/v1/models", b"", {}, 405, "See /openapi.json."),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "words"), REMEDIES)
def test_a_refusal_says_what_to_do(
    served: Served, method: str, path: str, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = served.request(method, path, body=body, x_api_key=KEY, **headers)
    told = answer.json["error"] if path.startswith("/api/") else answer.error["message"]
    assert answer.status == status and words in told and "<class" not in told, answer.body
    assert ("allow" in answer.headers) is (status == 405)


def test_an_answer_that_is_cut_is_an_incomplete_item(served: Served) -> None:
    body = {"model": "tiny", "input": "Hi", "max_output_tokens": 8, "temperature": 0}
    whole = served.request("POST", "/v1/responses", body, x_api_key=KEY).json
    assert (whole["status"], whole["output"][-1]["status"]) == ("incomplete", "incomplete")
    streamed = served.request("POST", "/v1/responses", body | {"stream": True}, x_api_key=KEY).body.decode()
    last = json.loads(streamed.strip().splitlines()[-1].removeprefix("data: "))["response"]
    assert last["output"][-1]["status"] == "incomplete"
    assert last["output"][-1]["content"] == whole["output"][-1]["content"]


def test_a_stop_that_is_not_understood_stops_nothing(served: Served) -> None:
    bearer = f"Bearer {served.state['token']}"
    answer = served.request("POST", "/coe/stop", {"drain": 5}, authorization=bearer)
    assert answer.status == 400 and "drain" in answer.error["message"]
    assert served.request("GET", "/healthz").json["status"] == "ok"
    assert served.request("GET", "/coe/stop", authorization=bearer).headers["allow"] == "POST"


def test_head_is_a_get_without_its_body(served: Served) -> None:
    for path in ("/health", "/healthz", "/v1/health", "/v1/models", "/v1/models/tiny", "/metrics"):
        whole = served.request("GET", path, x_api_key=KEY)
        head = served.request("HEAD", path, x_api_key=KEY)
        assert (head.status, head.body) == (200, b"") and whole.status == 200 and whole.body, path
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert served.request("HEAD", "/v1/nothing", x_api_key=KEY).status == 404


def test_the_key_may_come_as_x_api_key(served: Served) -> None:
    assert served.request("GET", "/v1/models", x_api_key=KEY).status == 200
    assert served.request("GET", "/v1/models", authorization=f"Bearer {KEY}x", x_api_key=KEY).status == 401
    assert served.request("GET", "/v1/models", x_api_key=f"{KEY}x").status == 401


def test_each_answer_has_a_request_id_its_own_or_the_clients(served: Served) -> None:
    ids = {served.request("GET", path).headers["x-request-id"] for path in ("/health", "/health", "/v1/models", "/no")}
    assert len(ids) == 4 and all(re.fullmatch(r"req_[0-9a-f]{24}", each) for each in ids)
    assert served.request("GET", "/health", x_request_id="mine-1").headers["x-request-id"] == "mine-1"
    assert served.request("GET", "/health", x_request_id="x" * 129).headers["x-request-id"].startswith("req_")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=HI, max_tokens=1)
    assert raw.parse()._request_id == raw.headers["x-request-id"]


def test_a_fingerprint_stays_and_is_the_models(served: Served) -> None:
    prints = [chat(served).json["system_fingerprint"] for _ in range(2)]
    assert prints[0] == prints[1] and re.fullmatch(r"fp_[0-9a-f]{10}", prints[0])
    assert {chunk["system_fingerprint"] for chunk in chat(served, stream=True).chunks} == {prints[0]}
    text = served.request("POST", "/v1/completions", {"model": "tiny", "prompt": "Hi", "max_tokens": 1}, x_api_key=KEY)
    assert text.json["system_fingerprint"] == prints[0]
