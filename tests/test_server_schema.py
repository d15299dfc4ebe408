"""Whatever the OpenAPI description allows, and much that it does not, is answered without a failure of the server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import Coe, examples
from hypothesis import HealthCheck, given, settings
from serving import Served, serving

if TYPE_CHECKING:
    import schemathesis

OPERATIONS = {
    "POST /v1/chat/completions": 40,
    "POST /v1/completions": 30,
    "GET /v1/models": 1,
    "GET /v1/models/{name}": 20,
    "POST /v1/embeddings": 20,
    "POST /v1/responses": 30,
    "GET /v1/responses/{response_id}": 10,
    "DELETE /v1/responses/{response_id}": 10,
    "POST /v1/messages": 30,
    "POST /v1/messages/count_tokens": 10,
    "POST /api/chat": 30,
    "POST /api/generate": 30,
    "GET /api/tags": 1,
    "POST /api/show": 10,
    "GET /api/ps": 1,
    "POST /api/pull": 10,
    "POST /api/embed": 10,
    "GET /api/version": 1,
    "POST /completion": 20,
    "POST /infill": 20,
    "POST /tokenize": 20,
    "POST /detokenize": 20,
    "POST /apply-template": 20,
    "GET /props": 10,
    "GET /slots": 5,
    "POST /v1/files": 10,
    "GET /v1/files": 5,
    "GET /v1/files/{file_id}": 10,
    "DELETE /v1/files/{file_id}": 10,
    "GET /v1/files/{file_id}/content": 10,
    "POST /v1/batches": 10,
    "GET /v1/batches": 5,
    "GET /v1/batches/{batch_id}": 10,
    "POST /v1/batches/{batch_id}/cancel": 10,
}
"""Every endpoint of the description, with the number of examples."""


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

    made = schemathesis.openapi.from_dict(description)
    made.config.update(base_url=served.url)
    return made


CASES = [
    (name, mode)
    for name in OPERATIONS
    for mode in ("positive", "negative")
    if mode == "positive" or ("POST" in name and "{" not in name)
]


@pytest.mark.parametrize("share", [0.2, pytest.param(1.0, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_no_failure_of_the_server(schema: Any, name: str, mode: str, share: float) -> None:
    import schemathesis
    from schemathesis.specs.openapi.checks import response_schema_conformance

    method, path = name.split(" ")
    seen: list[int] = []

    @settings(
        max_examples=examples(max(1, round(share * OPERATIONS[name]))), derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=schema[path][method].as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def answers(case: schemathesis.Case) -> None:
        if mode == "positive" and isinstance(case.body, dict):
            _make_answerable(case.body)
        response = case.call(timeout=60)
        seen.append(response.status_code)
        assert response.status_code < 500, response.text
        if "json" in response.headers.get("content-type", ""):
            case.validate_response(response, checks=[response_schema_conformance])

    answers()
    if mode == "positive" and "completions" in path and share == 1:
        assert 200 in seen


def _make_answerable(body: dict[str, Any]) -> None:
    """Texts that a model can be given, a model that is there, and a short answer."""
    texts = json.dumps(body, ensure_ascii=False).replace("\\u0000", "").encode("utf-8", "ignore")
    body.clear()
    body |= json.loads(texts)
    body["model"] = "auto"
    body["max_output_tokens" if "input" in body else "max_tokens"] = 2
    body["options"] = {"num_predict": 2}
    for name in ("max_completion_tokens", "chat_template_kwargs", "continue_final_message", "tools", "tool_choice"):
        body.pop(name, None)
    for name in ("grammar", "guided_grammar", "guided_regex", "guided_json", "json_schema", "structured_outputs"):
        if body.get("stream"):  # what these have at random is hardly ever one
            body.pop(name, None)


def test_the_description_is_complete(description: dict[str, Any]) -> None:
    found = [f"{method.upper()} {path}" for path, methods in description["paths"].items() for method in methods]
    assert found == list(OPERATIONS)
