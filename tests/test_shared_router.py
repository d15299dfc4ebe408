"""The router of a long-lived process: one for all threads, never a download; the college's door to it."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Coe, eventually
from serving import serving

from coe_cli.core.models.catalog import Catalog
from coe_cli.core.routing.router import RouteRequest
from coe_cli.errors import CoeError, ModelMissing
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing.router_cache import examples_digest, open_router
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.runtime.settings import load_catalog

SHIPPED = Path(__file__).resolve().parent.parent / "profiles" / "experts.yaml"
OTHER = """
experts:
  zebra_keeper:
    model: smollm2-135m
    system_prompt: You keep zebras.
    description: Zebras and their stripes
    examples: [zebra stripes, how many stripes has a zebra, feed a zebra, zebra crossing stripes, can zebras swim]
"""
QUESTIONS = [
    "Write a SELECT that counts orders",
    "Is this clause in my contract binding?",
    "Solve x^2 - 5x + 6 = 0",
    "",
    "Center a div with CSS grid",
]


@pytest.fixture
def where(tmp_path: Path, routing_home: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    monkeypatch.setenv("COE_EMBEDDER", str(routing_home / "model"))
    shutil.copytree(routing_home / "cache", tmp_path / "cache")
    return Folders(models=tmp_path, config=tmp_path, state=tmp_path, cache=tmp_path / "cache")


def test_threads_get_the_decisions_of_a_single_one(where: Folders) -> None:
    alone = open_router(load_catalog([SHIPPED]), where, lambda _: None)
    expected = [alone.route(question) for question in QUESTIONS]
    shared = SharedRouter(load_catalog([SHIPPED]), where)
    with ThreadPoolExecutor(8) as threads:
        for decisions in threads.map(lambda _: [shared.route_many([question])[0] for question in QUESTIONS], range(24)):
            assert decisions == expected


def test_what_is_not_prepared_is_refused_without_making_it(where: Folders) -> None:
    shutil.rmtree(where.cache / "router")
    shared = SharedRouter(load_catalog([SHIPPED]), where)
    with pytest.raises(ModelMissing, match="not trained"):
        shared.route_many(["hello"])
    assert not (where.cache / "router").exists()
    shutil.rmtree(where.cache / "embedders")
    with pytest.raises(ModelMissing, match="not prepared"):
        shared.route_many(["hello"])


def test_a_router_that_was_trained_again_is_read_again(where: Folders) -> None:
    shared = SharedRouter(load_catalog([SHIPPED]), where)
    shared.route_many(["hello"])
    first = shared._opened
    shared.route_many(["hello"])
    assert shared._opened is first
    path = next((where.cache / "router").glob("*.npz"))
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    copy.replace(path)
    shared.route_many(["hello"])
    assert shared._opened is not first


def with_zebras(where: Folders) -> Catalog:
    own = where.config / "experts.yaml"
    own.write_text(OTHER, encoding="utf-8")
    return load_catalog([SHIPPED, own])


@pytest.mark.long
def test_until_changed_examples_are_learned_an_earlier_router_decides(where: Folders) -> None:
    """Learning is begun once; what it writes is taken up."""
    catalog, begun, may_end = with_zebras(where), threading.Semaphore(0), threading.Event()

    def learn() -> None:
        begun.release()
        assert may_end.wait(200)
        open_router(catalog, where, lambda _: None)

    shared = SharedRouter(catalog, where, learn=learn)
    before = open_router(load_catalog([SHIPPED]), where, lambda _: None)
    for _ in range(2):
        decision, _, note = shared.decide(QUESTIONS[0])
        assert decision == before.route(QUESTIONS[0])
        assert "being learned" in note
    assert begun.acquire(timeout=200) and not begun.acquire(blocking=False)
    with pytest.raises(ModelMissing, match="not trained"):  # who asks for these examples gets no others
        shared.route_many(["zebra stripes"])
    may_end.set()
    (thread,) = shared._learning.values()
    thread.join()
    decision, _, note = shared.decide("zebra stripes")
    assert (decision.experts[0].name, note) == ("zebra_keeper", "")


def test_with_nothing_trained_at_all_it_says_that_it_learns(where: Folders) -> None:
    shutil.rmtree(where.cache / "router")
    begun = threading.Event()
    shared = SharedRouter(load_catalog([SHIPPED]), where, learn=begun.set)
    with pytest.raises(CoeError, match="still being trained") as refused:
        shared.decide("hello")
    assert not isinstance(refused.value, ModelMissing), "a client need not prepare it too"
    assert begun.wait(200)


@pytest.mark.long
def test_a_college_learns_changed_examples_behind_its_answers(routing_coe: Coe) -> None:
    (routing_coe.config / "experts.yaml").write_text(OTHER)
    with serving(routing_coe) as served:
        asked = ("ask", "--max-tokens", "1", "--explain", "zebra crossing stripes")
        told = routing_coe.run(*asked, COE_NO_SERVE="0").check().stderr
        assert "training" not in told, "the client prepares nothing"
        assert "being learned" in told or "zebra_keeper" in told

        def over_http() -> str:
            coe = served.chat("zebra crossing stripes", model="auto", max_tokens=1).json["coe"]
            known = coe["expert"] == "zebra_keeper"
            assert known or any("being learned" in note for note in coe["notes"])
            return str(coe["expert"])

        eventually(lambda: over_http() == "zebra_keeper", within_s=240)
        told = routing_coe.run(*asked, COE_NO_SERVE="0").check().stderr
        assert "zebra_keeper" in told and "being learned" not in told


def test_other_examples_or_another_embedder_are_not_answered_for(where: Folders) -> None:
    catalog = load_catalog([SHIPPED])
    shared = SharedRouter(catalog, where)
    digest = examples_digest(catalog)
    answer = shared.answer(RouteRequest(QUESTIONS, digest), ["m"])
    assert answer is not None
    assert answer.loaded_models == ["m"]
    assert answer.decisions == shared.route_many(QUESTIONS)
    assert shared.answer(RouteRequest(QUESTIONS, "0" * 64), []) is None
    assert shared.answer(RouteRequest(QUESTIONS, digest, "bge-m3"), []) is None


def test_the_college_routes_for_those_who_know_its_token(routing_coe: Coe) -> None:
    with serving(routing_coe) as served:
        body = {"texts": QUESTIONS, "digest": examples_digest(load_catalog([SHIPPED]))}
        bearer = f"Bearer {served.state['token']}"
        response = served.request("POST", "/coe/route", body, authorization=bearer)
        assert response.status == 200, response.body
        assert list(response.json) == ["decisions", "latency_ms", "embedder", "loaded_models"]
        names = [decision["experts"][0]["name"] for decision in response.json["decisions"]]
        assert len(names) == len(QUESTIONS)
        assert set(names) <= set(load_catalog([SHIPPED]).experts)
        assert served.request("POST", "/coe/route", body).status == 401
        assert served.request("GET", "/coe/route", authorization=bearer).status == 405
        assert served.request("POST", "/coe/route", {"texts": 1}, authorization=bearer).status == 400
        other = served.request("POST", "/coe/route", body | {"digest": "x"}, authorization=bearer)
        assert other.status == 409
        assert other.error["code"] == "other_examples"


@pytest.mark.long
def test_coe_route_asks_the_running_college_and_says_the_same(routing_coe: Coe) -> None:
    alone = {q: routing_coe.run("route", "--format", "jsonl", q).check().stdout for q in QUESTIONS if q}
    with serving(routing_coe):
        heavy = ["route", "--format", "jsonl"]
        for question, line in alone.items():
            served = json.loads(routing_coe.run(*heavy, question).check().stdout)
            for key in ("text", "experts", "kind", "unsure"):
                assert served[key] == json.loads(line)[key]
        command = [sys.executable, "-X", "importtime", "-m", "coe_cli", *heavy, QUESTIONS[0]]
        imported = routing_coe.run(command=command).check().stderr
        assert "onnxruntime" not in imported and "numpy" not in imported, "the college did the work"
        (routing_coe.config / "experts.yaml").write_text(OTHER)
        changed = routing_coe.run(*heavy, "zebra crossing stripes").check()
        assert json.loads(changed.stdout)["experts"][0]["name"] == "zebra_keeper", "a changed catalog is routed here"


def test_a_college_without_a_router_says_how_to_prepare_one(coe: Coe) -> None:
    with serving(coe) as served:
        body = {"texts": ["hello"], "digest": examples_digest(load_catalog([SHIPPED]))}
        response = served.request("POST", "/coe/route", body, authorization=f"Bearer {served.state['token']}")
        assert response.status == 404
        assert "coe route --rebuild" in json.dumps(response.json)
