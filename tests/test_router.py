"""Routing decisions: repeatable, calibrated, bounded; odd catalogs and odd input."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_fixtures import EXAMPLES, write_catalog

from coe_cli.core.routing.router import Decision, Router, Scored, prefer_resident
from coe_cli.core.routing.router_examples import TrainingSet
from coe_cli.core.routing.router_features import MAX_CLAUSES, bounded, clauses
from coe_cli.errors import ProfileInvalid
from coe_cli.runtime.routing.router_cache import examples_digest, training_set
from coe_cli.runtime.routing.router_training import train_router
from coe_cli.runtime.settings import load_catalog

SHIPPED = Path(__file__).resolve().parent.parent / "profiles" / "experts.yaml"


def bag_of_words(texts: Sequence[str]) -> Any:
    """A real, if small, embedder: counts of hashed words, of length 1."""
    rows = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            rows[row, zlib.crc32(word.encode("utf-8", "replace")) % 64] += 1
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def decide(router: Router, text: str) -> Decision:
    whole = bounded(text)
    pieces = [whole, *router.clauses_to_embed(whole, bag_of_words([whole])[0])]
    return router.route(pieces, bag_of_words(pieces))


@pytest.fixture(scope="module")
def shipped() -> TrainingSet:
    return training_set(load_catalog([SHIPPED]))


@pytest.fixture(scope="module")
def router(shipped: TrainingSet) -> Router:
    """Trained on a part of the shipped examples, to stay quick."""
    return Router(train_router(TrainingSet(shipped.roles, shipped.single[::8], [], shipped.double[::2]), bag_of_words))


def small(tmp_path: Path, examples: dict[str, list[str]]) -> Router:
    catalog = load_catalog([write_catalog(tmp_path / "experts.yaml", examples)])
    return Router(train_router(training_set(catalog), bag_of_words))


def test_shipped_examples_cover_every_role_once(shipped: TrainingSet) -> None:
    counts = np.bincount([role for _, role in shipped.single], minlength=len(shipped.roles))
    assert counts.min() >= 100
    texts = [text.lower() for text, _ in [*shipped.single, *shipped.double]]
    assert len(texts) == len(set(texts))
    assert all(len({first, second}) == 2 for _, (first, second) in shipped.double)


@pytest.mark.long
def test_training_and_decisions_repeat_exactly(shipped: TrainingSet) -> None:
    some = TrainingSet(shipped.roles, shipped.single[::16], [], shipped.double[::8])
    router, again = (Router(train_router(some, bag_of_words)) for _ in range(2))
    for text in ("Write a SELECT that counts orders", "Is this clause binding?", "hello", "日本語の質問", "🎉"):
        assert decide(router, text) == decide(again, text) == decide(router, text)


@pytest.mark.long
def test_neighbours_vote_as_much_as_they_are_worth(shipped: TrainingSet) -> None:
    """Vectors that say nothing get next to no vote; many small groups, each of one role, get a good one."""
    some = TrainingSet(shipped.roles, shipped.single[::8], [], shipped.double[::8])
    role_of = dict(some.single)
    groups = np.random.default_rng(1).normal(size=(20, len(some.roles), 16)).astype(np.float32)

    def embedder(spread: float) -> Any:
        def embed(texts: Sequence[str]) -> Any:
            rows = np.random.default_rng(2).normal(size=(len(texts), 16)).astype(np.float32) * spread
            rows += np.stack([groups[zlib.crc32(text.encode()) % 20, role_of.get(text, 0)] for text in texts])
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

        return embed

    assert train_router(some, embedder(100.0)).neighbour_weight < 0.2
    assert train_router(some, embedder(0.1)).neighbour_weight > 0.5


def test_probabilities_are_probabilities_and_ranked(router: Router) -> None:
    decision = decide(router, "Prove that the sum of two even numbers is even")
    values = [scored.probability for scored in decision.ranking]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-4)
    assert decision.margin == pytest.approx(values[0] - values[1], abs=1e-5)


@settings(max_examples=examples(60))
@given(st.text(max_size=400))
def test_any_text_gets_a_decision(shipped: TrainingSet, router: Router, text: str) -> None:
    decision = decide(router, text)
    assert len(decision.ranking) == len(shipped.roles)
    assert len(decision.experts) == (2 if decision.kind == "multi" else 1)
    assert decision.kind != "general" or decision.experts[0].name == "general_reasoner"
    assert not decision.unsure or decision.experts[0].name == "general_reasoner"


def test_two_domains_are_found_and_plain_questions_are_not(shipped: TrainingSet, router: Router) -> None:
    multi = [decide(router, text).kind == "multi" for text, _ in shipped.double]
    plain = [decide(router, text).kind == "multi" for text, _ in shipped.single[1::16]]
    assert np.mean(multi) > 0.6
    assert np.mean(plain) < 0.05


def test_both_experts_of_a_two_domain_question(router: Router) -> None:
    decision = decide(router, "Write the SQL for weekly signups and a Python plot of it")
    assert decision.kind == "multi"
    assert {scored.name for scored in decision.experts} == {"sql_query", "python_backend"}


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_question_is_general_and_unsure(router: Router, text: str) -> None:
    decision = decide(router, text)
    assert (decision.experts[0].name, decision.kind, decision.unsure) == ("general_reasoner", "general", True)


def test_a_question_without_a_likely_role_is_unsure_and_general(router: Router) -> None:
    hesitant = Router(router.weights, unsure_below=1.0)
    decision = decide(hesitant, "SELECT name FROM customers ORDER BY name")
    assert decision.unsure
    assert decision.kind == "general"
    assert [scored.name for scored in decision.experts] == ["general_reasoner"]
    assert decision.ranking[0].name in ("sql_query", "sql_schema_architect")


def test_long_input_is_bounded_and_keeps_both_ends(router: Router) -> None:
    text = "How do I join two tables? " + "filler " * 15_000 + "the end"
    assert len(text) > 100_000
    assert len(bounded(text)) < 2_000
    assert bounded(text).startswith("How do I join")
    assert bounded(text).endswith("the end")
    assert decide(router, text) == decide(router, text)


@settings(max_examples=examples(200))
@given(st.text(alphabet="ab ,.;?&\n", max_size=200), st.sampled_from([" and ", "; ", ", then ", "? "]))
def test_clauses_keep_the_words_and_stay_few(text: str, joint: str) -> None:
    parts = clauses(f"{text}{joint}{text}")
    assert 1 <= len(parts) <= MAX_CLAUSES
    assert len(parts) == 1 or all(part.strip() for part in parts)


def test_clauses_split_a_question_that_asks_two_things() -> None:
    assert clauses("Write the SQL for weekly sales and plot them in Python") == [
        "Write the SQL for weekly sales",
        "plot them in Python",
    ]
    assert clauses("Salt and pepper") == ["Salt and pepper"]


def test_one_role_only(tmp_path: Path) -> None:
    router = small(tmp_path, {"sql_query": EXAMPLES["sql_query"]})
    decision = decide(router, "anything at all")
    assert decision.experts == [Scored("sql_query", 1.0)]
    assert (decision.kind, decision.unsure) == ("single", False)


def test_two_roles_with_the_same_examples_are_a_tie(tmp_path: Path) -> None:
    same = EXAMPLES["sql_query"]
    router = small(tmp_path, {"first": same, "second": same})
    decision = decide(router, same[0])
    assert decision.ranking[0].probability == pytest.approx(0.5, abs=0.05)
    assert decision.margin < 0.1
    assert decide(router, same[0]) == decision


def test_roles_of_the_users_own_are_learned(tmp_path: Path) -> None:
    garden = ["how do i prune roses", "when to sow carrots", "my lawn has moss", "which compost for tomatoes"]
    router = small(tmp_path, {**EXAMPLES, "gardener": garden})
    assert decide(router, "prune roses and sow carrots").experts[0].name == "gardener"
    assert decide(router, "join two tables").experts[0].name == "sql_query"


def test_a_role_without_examples_is_known_by_its_description(tmp_path: Path) -> None:
    router = small(tmp_path, {**EXAMPLES, "steam_locomotives": []})
    assert decide(router, "steam locomotives").experts[0].name == "steam_locomotives"


def test_the_digest_follows_examples_and_descriptions(tmp_path: Path) -> None:
    first = load_catalog([write_catalog(tmp_path / "experts.yaml", EXAMPLES)])
    same = examples_digest(first)
    assert examples_digest(first) == same
    changed = load_catalog([write_catalog(tmp_path / "experts.yaml", {**EXAMPLES, "extra": ["one more"]})])
    assert examples_digest(changed) != same
    (tmp_path / "routing_examples.yaml").write_text("origin: x\n", encoding="utf-8")
    assert examples_digest(first) != same


def test_a_bad_examples_file_names_file_and_line(tmp_path: Path) -> None:
    catalog = load_catalog([write_catalog(tmp_path / "experts.yaml", EXAMPLES)])
    bad = tmp_path / "routing_examples.yaml"
    bad.write_text("origin: x\nlicence: y\nsingle: {}\nterms: {}\ndouble: {}\nextra: 1\n", encoding="utf-8")
    with pytest.raises(ProfileInvalid, match=r"routing_examples\.yaml:6: extra"):
        training_set(catalog)


def decision_of(*scored: tuple[str, float], unsure: bool = False) -> Decision:
    ranking = [Scored(*pair) for pair in scored]
    return Decision(ranking[:1], "single", unsure, ranking[0].probability - ranking[1].probability, ranking)


MODELS = {"a": "model-a", "b": "model-b", "c": "model-c", "general_reasoner": "model-g"}


@pytest.mark.parametrize(
    ("ranking", "loaded", "expected"),
    [
        ((("a", 0.48), ("b", 0.44)), {"model-b"}, "b"),
        ((("a", 0.48), ("b", 0.44)), {"model-a", "model-b"}, "a"),
        ((("a", 0.48), ("b", 0.44)), set(), "a"),
        ((("a", 0.70), ("b", 0.20)), {"model-b"}, "a"),
        ((("a", 0.40), ("b", 0.30), ("c", 0.29)), {"model-c"}, "c"),
        ((("a", 0.48), ("general_reasoner", 0.44)), {"model-g"}, "a"),
        ((("general_reasoner", 0.48), ("b", 0.44)), {"model-b"}, "general_reasoner"),
    ],
)
def test_a_resident_model_is_preferred_within_the_margin(
    ranking: tuple[tuple[str, float], ...], loaded: set[str], expected: str
) -> None:
    before = decision_of(*ranking)
    after = prefer_resident(before, MODELS, loaded)
    assert after.experts[0].name == expected
    assert after.preferred_resident == (expected != ranking[0][0])
    assert after.ranking == before.ranking


def test_an_unsure_decision_is_not_swapped() -> None:
    unsure = decision_of(("a", 0.48), ("b", 0.44), unsure=True)
    assert prefer_resident(unsure, MODELS, {"model-b"}) == unsure
