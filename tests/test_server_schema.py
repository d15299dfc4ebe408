"""Whatever the OpenAPI description allows, and much that it does not, is answered without a failure of the server."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import REPOSITORY, Coe, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Served, serving

if TYPE_CHECKING:
    pass

ENDPOINTS = [
    f"{method.upper()} {path}"
    for file in sorted((REPOSITORY / "coe_cli" / "runtime" / "server").glob("*.py"))
    for method, path in re.findall(r'@app\.([a-z]+)\(\s*"([^"]+)"', file.read_text(encoding="utf-8"))
]
EXAMPLES = {
    "POST /v1/chat/completions": 40, "POST /v1/completions": 30, "POST /v1/responses": 30, "POST /v1/messages": 30,
    "POST /api/chat": 30, "POST /api/generate": 30, "GET /v1/models/{name}": 20, "POST /v1/embeddings": 20, "POST /completion": 20,
    "POST /infill": 20, "POST /tokenize": 20, "POST /detokenize": 20, "POST /apply-template": 20,
}  # fmt: skip
"""How many, where it is not 10."""
ANSWERED = (
    "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "POST /v1/messages", "POST /api/chat",
    "POST /completion", "POST /tokenize", "POST /detokenize",
)  # fmt: skip
CONSTRAINTS = (
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "json_schema", "grammar",
)  # fmt: skip
LONGEST = {
    "/v1/chat/completions": "max_tokens", "/v1/completions": "max_tokens", "/v1/messages": "max_tokens", "/v1/responses": "max_output_tokens",
    "/completion": "n_predict", "/infill": "n_predict",
}  # fmt: skip
"""The field that bounds the answer, for each path that writes one."""
COUNTS = ("max_completion_tokens", "min_tokens", "n", "best_of", "logprobs", "top_logprobs", "n_predict", "n_probs")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, routing_home: Path) -> Iterator[Served]:
    coe = Coe(tmp_path_factory.mktemp("schema"), models_dir)
    shutil.copytree(routing_home / "cache", coe.folder / "cache")
    coe.environment |= {"COE_EMBEDDER": str(routing_home / "model")}
    with serving(coe) as running:
        yield running


@pytest.fixture(scope="module")
def description(served: Served) -> dict[str, Any]:
    return served.request("GET", "/openapi.json").json


@pytest.fixture(scope="module")
def schema(served: Served, description: dict[str, Any]) -> Any:
    import schemathesis

    schemathesis.openapi.format("lark", st.sampled_from(['start: "a"', 'start: "yes" | "no"', "start: /[0-9]{1,4}/"]))
    schemathesis.openapi.format("json-object", st.sampled_from(["{}", '{"type": "object"}', '{"enum": [1, "a"]}']))
    made = schemathesis.openapi.from_dict(description)
    made.config.update(base_url=served.url)
    return made


CASES = [
    (name, mode)
    for name in ENDPOINTS
    for mode in ("positive", "negative")
    if mode == "positive" or ("POST" in name and "{" not in name)
]


@pytest.mark.long
@pytest.mark.parametrize("share", [0.2, pytest.param(1.0, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_no_failure_of_the_server(schema: Any, name: str, mode: str, share: float) -> None:
    import schemathesis
    from schemathesis.specs.openapi.checks import response_schema_conformance

    method, path = name.split(" ")
    seen: list[int] = []

    @settings(
        max_examples=examples(max(1, round(share * EXAMPLES.get(name, 10)))), derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=schema[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def answers(case: Any) -> None:
        if mode == "positive" and isinstance(case.body, dict):
            _make_answerable(case.body, path)
        response = case.call(timeout=200)
        seen.append(response.status_code)
        assert response.status_code < 500, response.text
        if "json" in response.headers.get("content-type", ""):
            case.validate_response(response, checks=[response_schema_conformance])

    answers()
    print(name, mode, Counter(seen))
    if mode == "positive" and name in ANSWERED and share == 1:
        assert 4 * seen.count(200) >= len(seen)


def _make_answerable(body: dict[str, Any], path: str) -> None:
    """Texts that a model can be given, a model that is there, few and short answers, and what no schema says: which fields go together."""
    texts = json.dumps(body, ensure_ascii=False).replace("\\u0000", "").encode("utf-8", "ignore")
    body.clear()
    body |= _smaller(json.loads(texts)) | {"model": "auto"}
    if path in LONGEST:
        body[LONGEST[path]] = 2
    for name in COUNTS:
        if type(body.get(name)) in (int, float):
            body[name] = min(2, body[name])
    if isinstance(outputs := body.get("structured_outputs"), dict):
        body["structured_outputs"] = dict(list(outputs.items())[:1])
    if isinstance(body.get("json_schema"), dict):
        body["json_schema"] = {"enum": ["a"]}
    for name in [each for each in CONSTRAINTS if body.get(each) is not None][1:]:
        del body[name]
    if body.get("top_logprobs"):
        body["logprobs"] = True
    if body.get("continue_final_message"):
        body["messages"] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He"}]
        body["add_generation_prompt"] = False
    if path in ("/api/chat", "/api/generate"):
        body["options"] = {"num_predict": 2}
    if path == "/api/generate":
        body.pop("messages", None)
    if path == "/api/chat":
        body["messages"] = [{"role": "user"} | message for message in body.get("messages") or [{"content": "Hi"}]]
    if body.get("tools") or body.get("tool_choice"):
        _make_callable(body)
    if path == "/completion":
        body.setdefault("prompt", "ab")
    for name in ("prompt", "tokens"):
        if isinstance(body.get(name), list):
            body[name] = _known_ids(body[name])
    if "prompt" in body:
        echoes = isinstance(body["prompt"], str) and body.get("logprobs") is None
        body |= {"suffix": None, "echo": body.get("echo") if echoes else None}
        body["best_of"] = 2 if body.get("best_of") and not body.get("stream") else None


def _make_callable(body: dict[str, Any]) -> None:
    """Functions of different names, where the description says what one is, and a choice among them."""
    tools = [tool for tool in body.get("tools") or () if isinstance(tool.get("function"), dict)]
    body["tools"] = list({str(tool["function"].get("name")): tool for tool in tools}.values())
    if body.get("tool_choice") not in ("auto", "none"):
        body["tool_choice"] = "required" if tools else None


def _known_ids(value: Any) -> Any:
    """``value`` with ids of tokens that each model has."""
    if isinstance(value, list):
        return [_known_ids(part) for part in value]
    return value if isinstance(value, str) else int(value) % 1000


def _smaller(value: Any, name: str = "") -> Any:
    """``value`` with little to read, and with a schema of which a grammar can be made wherever any object is allowed."""
    if isinstance(value, str):
        return value if name in ("guided_regex", "regex") else value[:24]
    if isinstance(value, list):
        return [_smaller(part, f"one of {name}") for part in value[:2]]
    if not isinstance(value, dict):
        return value
    if name in ("schema", "json", "guided_json", "parameters"):
        return {"type": "object", "properties": {"a": {"type": "boolean"}}}
    if name in ("one of content", "one of system") and value.get("type") not in ("text", "input_text", "output_text"):
        return {"type": "text", "text": "Hi"}
    return {key: _smaller(part, key) for key, part in value.items()}


@pytest.mark.long
def test_the_description_is_complete(description: dict[str, Any]) -> None:
    found = [f"{method.upper()} {path}" for path, methods in description["paths"].items() for method in methods]
    assert sorted(found) == sorted(ENDPOINTS)


def test_every_endpoint_is_on_a_page() -> None:
    pages = "".join((REPOSITORY / "docs" / name).read_text(encoding="utf-8") for name in ("serving.md", "api.md"))
    assert {path for _, path in map(str.split, ENDPOINTS) if f"`{path.partition('/{')[0]}`" not in pages} == set()


def test_responses_are_counted_by_endpoint(served: Served) -> None:
    """What somebody asks for that is not there has one name, however many addresses they try."""
    for path in ("/v1/models/no-such", "/v1/models/nor-this", "/v1/nothing", "/nothing", "/api/version"):
        served.request("GET", path)
    text = served.request("GET", "/metrics").body.decode()
    counted = set(re.findall(r'coe_http_responses_total\{path="(.*?)",status="(\d+)"\}', text))
    assert {("/v1/models/{name}", "404"), ("other", "404"), ("/api/version", "200")} <= counted
    assert {path for path, _ in counted if path.startswith("/v1/")} <= {name.split()[1] for name in ENDPOINTS}
