"""`model: auto` and /v1/embeddings over HTTP: the same router and the same embedder as `coe route`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from conftest import MODEL, REPOSITORY, Coe
from serving import Response, Served, serving

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import DeviceLost, ModelMissing, ProfileInvalid
from coe_cli.runtime.college import resolver as resolver_module
from coe_cli.runtime.college.chat_request import AUTO, ChatRequest
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing.embedder import Embedder, embedder_folder
from coe_cli.runtime.routing.router_cache import open_router
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.runtime.settings import load_catalog, load_profiles
from coe_cli.runtime.store.model_store import open_model
from coe_cli.runtime.worker.protocol import ChatMessage

SHIPPED = REPOSITORY / "profiles"
QUESTIONS = [
    "Write a SELECT that counts the orders of each customer",
    "Is this clause in my employment contract binding?",
    "Solve x^2 - 5x + 6 = 0",
    "Center a div with CSS grid",
    "How do I parse JSON in Python?",
    "",
]


def at(cache: Path, **folders: Path) -> Folders:
    return Folders(**{"models": cache, "config": cache, "state": cache, "cache": cache} | folders)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, routing_home: Path) -> Iterator[Served]:
    import shutil

    coe = Coe(tmp_path_factory.mktemp("auto"), models_dir)
    shutil.copytree(routing_home / "cache", coe.folder / "cache")
    coe.environment |= {"COE_EMBEDDER": str(routing_home / "model")}
    with serving(coe) as running:
        yield running


@pytest.mark.long
def test_auto_asks_the_expert_that_the_router_names(
    served: Served, routing_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COE_EMBEDDER", str(routing_home / "model"))
    router = open_router(load_catalog([SHIPPED / "experts.yaml"]), at(routing_home / "cache"), lambda _: None)
    expected = [router.route(question).experts[0].name for question in QUESTIONS]
    answered = [served.chat(question, model=AUTO, max_tokens=1).json["coe"]["expert"] for question in QUESTIONS]
    assert answered == expected
    assert len(set(expected)) > 2, "the questions are for several experts"
    earlier = [{"role": "user", "content": QUESTIONS[3]}, {"role": "assistant", "content": "With place-items."}]
    last = served.chat(model=AUTO, max_tokens=1, messages=[*earlier, {"role": "user", "content": QUESTIONS[0]}])
    assert last.json["coe"]["expert"] == expected[0], "the last question decides"


def test_embeddings_are_those_of_the_router(served: Served, routing_home: Path) -> None:
    texts = ["Write a query", "", "contract law " * 20]
    embedder = Embedder(embedder_folder(str(routing_home / "model"), at(served.coe.folder / "cache")))
    client = served.client()
    for name in (AUTO, embedder.info.name):
        answer = client.embeddings.create(model=name, input=texts)
        assert np.allclose([item.embedding for item in answer.data], embedder.embed(texts), atol=1e-6)
        assert [item.index for item in answer.data] == [0, 1, 2]
        assert answer.usage.prompt_tokens == sum(count for count, _ in embedder.token_counts(texts)) > 40
    as_numbers = client.embeddings.create(model=AUTO, input="Write a query", encoding_format="float")
    assert np.allclose(as_numbers.data[0].embedding, embedder.embed(texts[:1])[0], atol=1e-6)
    with pytest.raises(openai.NotFoundError, match="no embedder is called"):
        client.embeddings.create(model="text-embedding-3-small", input="x")


LONG, BLANK = "contract law " * 200, " " * 100_000


@pytest.mark.parametrize("text", [LONG, BLANK], ids=["tokens", "characters"])
def test_a_text_that_is_too_long_is_refused_or_cut_as_each_api_has_it_and_never_silently(
    served: Served, text: str
) -> None:
    def asked(path: str, given: str | list[str], **fields: object) -> Response:
        return served.request("POST", path, {"model": AUTO, "input": given, **fields})

    for given, field in ((text, "input"), (["a", "b", text], "input.2")):
        refused = asked("/v1/embeddings", given)
        assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded"), refused.body
        assert refused.error["param"] == field
        assert "This model's maximum context length is 64 tokens. However, " in refused.error["message"]
        note = f"`{field}` was cut to 64 tokens"
        cut = asked("/v1/embeddings", given, truncate_prompt_tokens=-1)
        assert (cut.status, cut.headers["x-coe-note"]) == (200, note)
        assert (
            asked("/api/embed", given).json["coe"]
            == {"notes": [note]}
            == asked("/api/embed", given, truncate=True).json["coe"]
        )
        refused = asked("/api/embed", given, truncate=False)
        assert refused.status == 400 and f"`{field}` exceeds the context length" in refused.json["error"]
    for path in ("/v1/embeddings", "/api/embed"):
        whole = asked(path, ["a", "contract law"])
        assert whole.status == 200 and "coe" not in whole.json and "x-coe-note" not in whole.headers


def test_without_a_router_the_general_expert_answers_and_says_so(tmp_path: Path, models_dir: Path) -> None:
    import asyncio

    catalog = load_catalog([SHIPPED / "experts.yaml"])
    profile = load_profiles([SHIPPED / "hardware_profiles.yaml"]).select("embedded")
    where = at(tmp_path, models=models_dir)
    resolver = RequestResolver(catalog, models_dir, profile, SharedRouter(catalog, where))
    request = ChatRequest([ChatMessage("user", QUESTIONS[0])])
    resolved = asyncio.run(resolver.resolve(request))
    assert resolved.told.expert == "general_reasoner"
    assert "coe route --rebuild" in resolved.told.notes[0].text

    class Broken(SharedRouter):
        def decide(self, text: str) -> object:  # type: ignore[override]
            raise ProfileInvalid("routing_examples.yaml:3: no such role", "Fix it.")

    resolver.router = Broken(catalog, where)
    resolved = asyncio.run(resolver.resolve(request))
    assert resolved.told.expert == "general_reasoner" and "no such role" in resolved.told.notes[0].text


@pytest.mark.parametrize(("name", "expected"), [(AUTO, [MODEL]), (MODEL, [])])
def test_the_only_model_that_can_answer_loads_while_a_question_is_routed(
    tmp_path: Path, models_dir: Path, name: str, expected: list[str]
) -> None:
    import asyncio

    from coe_cli.runtime.server.openai_app import build_openai_app

    catalog, heard = load_catalog([SHIPPED / "experts.yaml"]), list[str]()

    class Colleges:
        loaded_models = ()

        def expect(self, spec: ModelSpec) -> None:
            heard.append(spec.name)

        def ask(self, ask: object) -> object:
            raise ModelMissing("nobody is here", "Ask elsewhere.")

    class Router(SharedRouter):
        def decide(self, text: str) -> object:  # type: ignore[override]
            assert heard == [MODEL], "it loads meanwhile"
            raise ProfileInvalid("no examples", "Fix it.")

    profile = load_profiles([SHIPPED / "hardware_profiles.yaml"]).select("embedded")
    resolver = RequestResolver(catalog, models_dir, profile, Router(catalog, at(tmp_path, models=models_dir)))
    app = build_openai_app(Colleges(), resolver, None)  # type: ignore[arg-type]
    bodies = [json.dumps({"model": name, "messages": [{"role": "user", "content": "Hi"}]}).encode()]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bodies.pop()} if bodies else await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b""}
    asyncio.run(app(scope | {"headers": [(b"content-type", b"application/json")]}, receive, send))
    assert heard == expected and sent[0]["status"] == 404 and b"nobody is here" in sent[1]["body"]


def test_a_model_built_for_another_device_runs_slower_and_says_so(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    import msgspec

    catalog = load_catalog([SHIPPED / "experts.yaml"])
    profile = load_profiles([SHIPPED / "hardware_profiles.yaml"]).select("standard")

    def open_for_dml(name: str, folder: Path) -> ModelSpec:
        return msgspec.structs.replace(open_model(name, folder), provider="dml")

    monkeypatch.setattr(resolver_module, "open_model", open_for_dml)
    request = ChatRequest([ChatMessage("user", "Hi")], name=MODEL)
    for installed, provider, said in ((["dml", "cpu"], "dml", ""), (["cpu"], "cpu", "slower: ")):
        monkeypatch.setattr(resolver_module, "installed_providers", lambda installed=installed: installed)
        resolver = RequestResolver(catalog, models_dir, profile, SharedRouter(catalog, at(models_dir)))
        resolved = asyncio.run(resolver.resolve(request))
        assert resolved.ask.model.provider == provider
        assert "".join(resolved.told.warnings).startswith(said) and bool(resolved.told.notes) == bool(said)
        assert resolver.open(MODEL).provider == provider
    monkeypatch.setattr(resolver_module, "installed_providers", list)
    with pytest.raises(DeviceLost, match="dml is not installed"):
        RequestResolver(catalog, models_dir, profile, SharedRouter(catalog, at(models_dir))).open(MODEL)
