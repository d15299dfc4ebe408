"""`coe ask` without -e and -m: the question is routed, what it says of that, and that routing never costs an answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, Coe, Result, copy_model, one_line, with_router
from serving import Served, serving

SQL = "Write a SELECT statement that counts the rows of the table orders, grouped by customer"
LEGAL = "Is this indemnification clause of my contract enforceable?"
JOINT = "Write the SQL for weekly signups and a Python plot of it"


@pytest.fixture(scope="module")
def college(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, routing_home: Path) -> Iterator[Served]:
    coe = with_router(Coe(tmp_path_factory.mktemp("routed"), models_dir), routing_home)
    coe.environment["COE_NO_SERVE"] = "0"
    with serving(coe) as served:
        yield served


@pytest.fixture
def routed_coe(college: Served) -> Coe:
    """coe whose questions a running college routes and answers."""
    return college.coe


def answer(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(result.check().stdout)
    return value


def ask(coe: Coe, *arguments: str, **environment: Any) -> Result:
    return coe.run("ask", "--max-tokens", "2", *arguments, **environment)


def test_a_question_goes_to_its_expert_and_stderr_stays_clean_in_json(routing_coe: Coe) -> None:
    result = ask(routing_coe, "--format", "json", SQL)
    assert result.stderr == ""
    assert answer(result)["expert"] == "sql_query"
    assert "routing" not in answer(result)


@pytest.mark.long
def test_explain_says_what_route_says_before_the_answer(routing_coe: Coe, routed_coe: Coe) -> None:
    routed = routing_coe.run("route", SQL).check().stdout.strip()
    told = ask(routing_coe, "--explain", SQL).check()
    first = told.stderr.splitlines()[0]
    assert first.startswith(f"coe: {routed} · routed by coe itself in ")
    assert "routed" not in told.stdout
    as_json = answer(ask(routed_coe, "--explain", "--format", "json", SQL))["routing"]
    line = json.loads(routing_coe.run("route", "--format", "jsonl", SQL).check().stdout)
    assert list(as_json) == ["experts", "kind", "unsure", "latency_ms", "preferred_resident", "parts"]
    assert {key: as_json[key] for key in ("experts", "kind", "unsure")} == {
        key: line[key] for key in ("experts", "kind", "unsure")
    }


@pytest.mark.parametrize(
    ("arguments", "expert", "says"),
    [
        (("-m", MODEL), None, f"not routed: {MODEL} was named"),
        (("-e", "math_expert"), "math_expert", "not routed: math_expert was named"),
        (("--no-route",), "general_reasoner", "not routed: routing is off"),
    ],
)
def test_who_is_named_is_not_routed(routed_coe: Coe, arguments: tuple[str, ...], expert: str | None, says: str) -> None:
    result = ask(routed_coe, *arguments, "--explain", "--format", "json", SQL)
    assert answer(result)["expert"] == expert
    assert says in one_line(result.stderr)


@pytest.mark.long
def test_a_profile_key_turns_routing_off(routing_coe: Coe) -> None:
    (routing_coe.config / "hardware_profiles.yaml").write_text("routing: {enabled: false}\n")
    rows = "".join(json.dumps({"prompt": question, "max_tokens": 2}) + "\n" for question in (SQL, LEGAL))
    batch = routing_coe.run("batch", "-", stdin=rows).check()
    assert {json.loads(line)["expert"] for line in batch.stdout.splitlines()} == {"general_reasoner"}
    assert batch.stderr.count("routing is off") == 1
    with serving(routing_coe) as served:
        asked = ask(routing_coe, "--format", "json", SQL, COE_NO_SERVE="0")
        assert answer(asked)["expert"] == "general_reasoner"
        coe = served.chat(SQL, model="auto", max_tokens=2).json["coe"]
        assert coe["expert"] == "general_reasoner" and not any("rout" in note for note in coe["notes"])
        assert served.chat(SQL, model="sql_query", max_tokens=2).json["coe"]["expert"] == "sql_query", "named is named"
    shown = routing_coe.run("route", SQL).check()
    assert "sql_query" in shown.stdout and "routing is off" in one_line(shown.stderr)


@pytest.mark.long
def test_two_domains_are_asked_together_unless_the_profile_says_no(routing_coe: Coe, routed_coe: Coe) -> None:
    both = answer(ask(routed_coe, "--format", "json", JOINT))
    asked = [draft["expert"] for draft in both["drafts"]]
    assert sorted(asked) == ["python_backend", "sql_query"]
    (routing_coe.config / "hardware_profiles.yaml").write_text("routing: {two_experts: false}\n")
    alone = answer(ask(routing_coe, "--format", "json", JOINT))
    assert (alone["expert"], "drafts" in alone) == (asked[0], False)


@pytest.mark.long
def test_a_question_that_can_be_split_is(routed_coe: Coe) -> None:
    """`coe route` and `--explain` show the same parts, and they make up the question."""
    routed = routed_coe.run("route", JOINT).check().stdout.splitlines()
    told = ask(routed_coe, "--explain", JOINT).check().stderr.splitlines()
    parts = [line.strip() for line in routed[1:]]
    assert len(parts) == 2
    assert all(f"coe: {part}" in told for part in parts)
    words = {word for part in parts for word in part.partition(" is asked: ")[2].split()}
    assert words <= set(JOINT.split())
    assert {"SQL", "Python", "plot"} <= words


def test_an_unsure_route_says_so(routed_coe: Coe) -> None:
    words = [
        "clause",
        "fever",
        "join",
        "integral",
        "shard",
        "proof",
        "court",
        "patient",
        "schema",
        "generator",
        "token",
        "index",
    ]
    candidates = [f"the {one} of the {other}" for one, other in itertools.permutations(words, 2)]
    routed = routed_coe.run("route", "-", "--format", "jsonl", stdin="\n".join(candidates)).check().stdout
    unsure = [line["text"] for line in map(json.loads, routed.splitlines()) if line["unsure"]]
    assert unsure, "one of these leaves the router unsure"
    result = ask(routed_coe, unsure[0]).check()
    assert "general_reasoner (unsure" in result.stderr.splitlines()[0]
    assert result.stdout


@pytest.mark.long
def test_without_a_router_and_a_network_the_general_reasoner_answers(coe: Coe) -> None:
    offline = {
        "HF_HUB_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
        "COE_NO_ROUTE": "0",
        "COE_EMBEDDER": "no-such-owner/no-such-model",
    }
    first = ask(coe, SQL, **offline).check()
    (note,) = [line for line in first.stderr.splitlines() if "general_reasoner answers (coe route" in line]
    assert "routing could not be prepared" in note and " was skipped because HF_HUB_OFFLINE is set; pypi:" in note
    second = ask(coe, SQL, **offline).check()
    once = "a while ago (the embedder `all-MiniLM-L6-v2` could not be fetched): general_reasoner answers"
    assert once in second.stderr, "it is not tried again at every question, nor told at length"
    refused = ask(coe, "--no-pull", SQL, **offline).check()
    assert "--no-pull forbids" in refused.stderr


def test_a_cache_that_cannot_be_written_costs_a_note_that_says_what_to_do(coe: Coe) -> None:
    (coe.folder / "file").write_text("")
    result = ask(coe, SQL, COE_NO_ROUTE="0", COE_CACHE_DIR=str(coe.folder / "file")).check()
    (note,) = [line for line in result.stderr.splitlines() if "routing could not be prepared" in line]
    assert note.endswith("general_reasoner answers (Make it writable, or set COE_CACHE_DIR)")
    assert result.stdout


@pytest.mark.slow
def test_a_broken_router_costs_a_note_and_no_answer(routing_coe: Coe, routing_home: Path) -> None:
    """The export is damaged and its source is gone."""
    (tokenizer,) = (routing_coe.folder / "cache" / "embedders").glob("*/tokenizer.json")
    gone = "nowhere/to-be-found"
    tokenizer.parent.rename(tokenizer.parents[1] / "nowhere-to-be-found")
    (tokenizer.parents[1] / "nowhere-to-be-found" / "tokenizer.json").write_text("{")
    result = ask(routing_coe, SQL, COE_EMBEDDER=gone, HF_HUB_OFFLINE="1", PIP_NO_INDEX="1").check()
    assert "general_reasoner answers" in result.stderr
    assert result.stdout


def test_the_running_college_routes(routed_coe: Coe) -> None:
    told = ask(routed_coe, "--explain", SQL).check()
    assert "routed by the running college in" in told.stderr.splitlines()[0]
    assert answer(ask(routed_coe, "--format", "json", LEGAL))["expert"] == "legal_contracts"


def requests_served(college: Served) -> dict[str, float]:
    """Path → how many requests the college has answered so far, these looks left out."""
    lines = college.request("GET", "/metrics").body.decode().splitlines()
    counted = [line for line in lines if line.startswith("coe_http_responses_total{") and '"/metrics"' not in line]
    return {line.split('path="')[1].split('"')[0]: float(line.split()[-1]) for line in counted}


@pytest.mark.parametrize("arguments", [(SQL,), ("-m", MODEL, "Hi"), ("-e", "math_expert", "Hi")])
def test_a_question_to_the_running_college_is_one_request(college: Served, arguments: tuple[str, ...]) -> None:
    before = requests_served(college)
    answered = answer(ask(college.coe, "--format", "json", *arguments))
    assert answered["model"] == MODEL and answered["usage"]["completion_tokens"] > 0
    after = requests_served(college)
    new = {path: count - before.get(path, 0) for path, count in after.items() if count != before.get(path, 0)}
    assert new == {"/coe/ask": 1}


def test_a_follow_up_stays_with_its_expert(routed_coe: Coe) -> None:
    first = answer(ask(routed_coe, "--format", "json", LEGAL))
    second = answer(ask(routed_coe, "--format", "json", "-c", SQL))
    assert first["expert"] == second["expert"] == "legal_contracts"


RIVALS = """
models:
  other:
    provider: cpu
    context_length: 8192
    weights_mb: 100
    shape: {num_hidden_layers: 30, hidden_size: 576, num_attention_heads: 9, num_key_value_heads: 3, head_size: 64, vocab_size: 49152}
experts:
  first_rival: {model: smollm2-135m, system_prompt: "Answer.", description: "Zebras", examples: &zebras [zebra stripes, feed a zebra, can zebras swim, zebra zebra]}
  second_rival: {model: other, system_prompt: "Answer.", description: "Zebras", examples: *zebras}
"""


def answered_over_http(served: Served) -> list[tuple[str, str, list[str]]]:
    """Expert, model and notes of `model: auto`, by each completion endpoint, whole and in chunks."""
    body = {"model": "auto", "max_tokens": 2, "temperature": 0}
    chat = body | {"messages": [{"role": "user", "content": "can zebras swim"}]}
    plain = body | {"prompt": "can zebras swim"}
    answers = []
    for path, fields in (("/v1/chat/completions", chat), ("/v1/completions", plain)):
        whole = served.request("POST", path, fields).json
        first = served.request("POST", path, fields | {"stream": True}).chunks[0]
        for value in (whole, first):
            assert value["model"] == value["coe"]["model"]
            answers.append((value["coe"]["expert"], value["model"], value["coe"]["notes"]))
    return answers


@pytest.mark.slow
def test_of_two_likely_experts_the_loaded_one_answers_unless_the_profile_says_no(
    routing_coe: Coe, models_dir: Path, tmp_path: Path
) -> None:
    """Two roles with the same examples and different models, of which the college has loaded one."""
    models = tmp_path / "both"
    for name in (MODEL, "other"):
        copy_model(models_dir / MODEL, models / name)
    routing_coe.environment["COE_MODELS_DIR"] = str(models)
    (routing_coe.config / "experts.yaml").write_text(RIVALS)
    routing_coe.run("route", "can zebras swim").check()
    likeliest = json.loads(routing_coe.run("route", "--format", "jsonl", "can zebras swim").check().stdout)
    first = likeliest["experts"][0]["name"]
    loaded_model = "other" if first == "first_rival" else MODEL
    second = "second_rival" if first == "first_rival" else "first_rival"
    served = {"COE_NO_SERVE": "0"}
    with serving(routing_coe) as college:
        ask(routing_coe, "-m", loaded_model, "hello", **served).check()
        note = f"{second} answers because its model is loaded; {first} is as likely"
        assert answered_over_http(college) == [(second, loaded_model, [note])] * 4
        told = ask(routing_coe, "--explain", "can zebras swim", **served).check()
        assert f"coe: {second}" in told.stderr and "taken because its model is loaded" in told.stderr
        chosen = answer(ask(routing_coe, "--explain", "--format", "json", "can zebras swim", **served))
        assert (chosen["expert"], chosen["model"]) == (second, loaded_model)
        assert chosen["routing"]["preferred_resident"] is True
    (routing_coe.config / "hardware_profiles.yaml").write_text("routing: {prefer_resident: false}\n")
    with serving(routing_coe):
        ask(routing_coe, "-m", loaded_model, "hello", **served).check()
        plain = answer(ask(routing_coe, "--explain", "--format", "json", "can zebras swim", **served))
        assert plain["expert"] == first
        assert plain["routing"]["preferred_resident"] is False
    with serving(routing_coe) as college:
        ask(routing_coe, "-m", loaded_model, "hello", **served).check()
        first_model = MODEL if loaded_model == "other" else "other"
        assert [answer[:2] for answer in answered_over_http(college)] == [(first, first_model)] * 4
