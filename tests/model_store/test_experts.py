"""`coe experts`: experts of one's own over the shipped ones, in the same YAML that an editor would change."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from coe_cli.core.routing.router import Decision, Scored
from coe_cli.runtime.folders import catalog_paths
from coe_cli.runtime.routing.router_cache import training_set
from coe_cli.runtime.settings import load_catalog
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model

ADD = (
    "experts",
    "add",
    "haiku",
    "--model",
    "mine",
    "-d",
    "Haiku",
    "-s",
    "Three\nlines.",
    "--example",
    "A poem on rain",
)


@pytest.fixture
def own(coe: Coe) -> Path:
    """The user's file, with a comment; a model is on disk that no catalog knows."""
    write_tiny_model(coe.models / "mine")
    (coe.folder / "config").mkdir()
    path = coe.folder / "config" / "experts.yaml"
    path.write_text("# mine\nexperts:\n  math_expert: {model: mine}  # small\n", encoding="utf-8")
    return path


def test_an_expert_is_added_shown_changed_and_removed(coe: Coe, own: Path) -> None:
    before = own.read_text()
    assert coe(*ADD).code == 0
    assert before.strip() in own.read_text(), "what was there stays, with its comments"
    shown = coe("experts", "show", "haiku", "--format", "json").json
    assert (shown["model"], shown["installed"], shown["own"], shown["system_prompt"]) == (
        "mine",
        True,
        True,
        "Three\nlines.",
    )
    assert "Three" in coe("experts", "show", "haiku").stdout
    assert coe("experts", "edit", "haiku", "--example", "Autumn", "-d", "Short poems").code == 0
    entry = yaml.safe_load(own.read_text())["experts"]["haiku"]
    assert entry["examples"] == ["A poem on rain", "Autumn"]
    assert (entry["description"], entry["model"]) == ("Short poems", "mine")
    rows = {row["name"]: row for row in coe("experts", "list", "--format", "json").json["experts"]}
    assert (rows["haiku"]["examples"], rows["math_expert"]["own"], rows["sql_query"]["own"]) == (2, True, False)
    assert coe("experts", "rm", "haiku").code == 0
    assert own.read_text().strip() == before.strip()


def test_the_router_learns_what_was_added(coe: Coe, own: Path) -> None:
    coe(*ADD)
    catalog = load_catalog(catalog_paths(), own, ["mine"])
    learned = training_set(catalog)
    role = learned.roles.index("haiku")
    assert ("A poem on rain", role) in learned.single and ("Haiku", role) in learned.terms


def test_shipped_experts_are_changed_put_aside_and_brought_back(coe: Coe, own: Path) -> None:
    assert coe("experts", "edit", "sql_query", "--model", "mine").code == 0
    assert yaml.safe_load(own.read_text())["experts"]["sql_query"] == {"model": "mine"}
    prompt = coe("experts", "show", "sql_query", "--format", "json").json["system_prompt"]
    assert prompt.startswith("Write one SQL query")
    assert "as it was shipped" in coe("experts", "rm", "sql_query").stderr
    assert "put aside" in coe("experts", "rm", "legal_contracts").stderr
    assert coe("experts", "show", "legal_contracts").code == 2
    assert coe("experts", "rm", "legal_contracts").code == 0
    assert coe("experts", "show", "legal_contracts").code == 0


def test_a_model_that_is_removed_names_the_experts_that_need_it(coe: Coe, own: Path) -> None:
    """And what it says to do works, one expert after the other."""
    assert coe(*ADD).code == 0
    assert coe("experts", "edit", "sql_query", "--fallback", "mine").code == 0
    removed = coe("models", "rm", "mine")
    assert (removed.code, "coe models pull" in removed.stderr) == (0, False), "nobody has it"
    needed, gone = removed.stderr.splitlines()
    assert "sql_query, math_expert and haiku need mine" in needed and "is removed" in gone
    assert "coe experts edit sql_query --fallback NAME" in needed
    for expert, option in (("sql_query", "--fallback"), ("math_expert", "--model"), ("haiku", "--model")):
        assert coe("experts", "show", expert).code == 3
        changed = coe("experts", "edit", expert, option, "smollm2-135m")
        assert (changed.code, coe("experts", "show", expert).code) == (0, 0), changed.stderr


def test_a_model_of_the_catalog_that_is_removed_can_be_fetched_again(coe: Coe) -> None:
    for name in ("sqlcoder-7b-2-DML", "law-LLM-DML"):
        write_tiny_model(coe.models / name)
    removed = coe("models", "rm", "law-LLM-DML", "sqlcoder-7b-2-DML").stderr.splitlines()
    assert len(removed) == 3, "no expert uses the first"
    assert "sql_query needs sqlcoder-7b-2-DML: fetch it again (coe models pull sqlcoder-7b-2-DML)" in removed[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["add", "haiku", "--model", "nothing"], 4, "unknown model `nothing`"),
        (["add", "sql_query", "--model", "mine"], 2, "coe experts edit sql_query"),
        (["add", "a b", "--model", "mine"], 2, "cannot be the name of an expert"),
        (["add", "plain", "--model", "mine", "--template", "no place"], 3, "{question}"),
        (["edit", "nobody", "--model", "mine"], 2, "unknown expert `nobody`"),
        (["edit", "--model", "mine"], 2, "no expert is named"),
        (["rm", "general_reasoner"], 2, "what suits no other expert"),
        (["rm", "nobody"], 2, "unknown expert"),
        (["show", "nobody"], 2, "unknown expert"),
        (["test", "sql_query"], 2, "has no examples"),
    ],
)
def test_what_does_not_suit_changes_nothing(coe: Coe, own: Path, arguments: list[str], code: int, says: str) -> None:
    before = own.read_text()
    result = coe("experts", *arguments)
    assert (result.code, says in result.stderr) == (code, True), result.stderr
    assert own.read_text() == before


class _ByItsFirstWord:
    """Sends a question to the expert that its first word names."""

    def route_many(self, texts: list[str]) -> list[Decision]:
        chosen = [Scored(text.split()[0], 0.9) for text in texts]
        return [Decision([one], "single", False, 0.5, [one]) for one in chosen]


def test_a_trial_says_where_questions_go(coe: Coe, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe_cli.runtime.routing.router_cache.open_router", lambda *_, **__: _ByItsFirstWord())
    right = coe("experts", "test", "math_expert", "math_expert 2+2", "math_expert 3+3")
    assert (right.code, "2 of 2 go to math_expert" in right.stderr) == (0, True)
    wrong = coe("experts", "test", "math_expert", "sql_query join", "--format", "json")
    assert wrong.code == 1 and [row["hit"] for row in wrong.json["questions"]] == [False]
    assert coe("experts", "test", "sql_query", "sql_query join").code == 4, "its model is not here"
