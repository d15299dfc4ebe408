"""`coe route`: its output contract, its cache, and what it does with odd input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from routing_fixtures import EXAMPLES, build_sentence_transformer, write_catalog
from typer.testing import CliRunner

from coe_cli.commands.route import route
from coe_cli.errors import CoeError, ModelMissing, UsageError
from coe_cli.runtime import folders
from coe_cli.runtime.routing.embedder import Embedder

app = typer.Typer()
app.command()(route)


@app.callback()
def _group() -> None:
    """Keeps `route` a subcommand, as in `coe`."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    build_sentence_transformer(home / "source")
    write_catalog(home / "experts.yaml", EXAMPLES)
    return home


@pytest.fixture
def coe(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("CACHE", "CONFIG", "STATE", "MODELS"):
        monkeypatch.setenv(f"COE_{name}_DIR", str(home / name.lower()))
    # The shipped catalog would be trained too, each time: these tests replace it by a small one. The function that every
    # module has imported stays as it is, or one that imports it meanwhile would keep the small catalog.
    layers = folders._layers
    monkeypatch.setattr(
        folders,
        "_layers",
        lambda name, extra: [home / name] if name == "experts.yaml" else layers(name, extra),
    )
    embedder = ["--embedder", str(home / "source" / "model")]

    def run(*arguments: str, stdin: str | bytes | None = None, embed: list[str] = embedder) -> Any:
        return CliRunner().invoke(app, ["route", *arguments, *embed], input=stdin)

    return run


def objects(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.exception
    return [json.loads(line) for line in result.stdout.splitlines()]


def cached(home: Path) -> Path:
    (path,) = (home / "cache" / "router").glob("[!.]*.npz")
    return path


def test_jsonl_keys_are_the_contract(coe: Any) -> None:
    (line,) = objects(coe("how do i join two tables", "--format", "jsonl"))
    assert list(line) == ["text", "experts", "kind", "unsure", "latency_ms"]
    assert line["text"] == "how do i join two tables"
    assert list(line["experts"][0]) == ["name", "probability"]
    assert 0 <= line["experts"][0]["probability"] <= 1
    assert line["kind"] in ("single", "multi", "general")
    assert isinstance(line["unsure"], bool)
    assert line["latency_ms"] > 0


def test_the_same_decisions_every_time_and_in_any_company(coe: Any) -> None:
    questions = ["how do i join two tables", "is this clause law", "bake bread"]
    together = objects(coe("-", "--format", "jsonl", stdin="\n".join(questions)))
    again = objects(coe("-", "--format", "jsonl", stdin="\n".join(questions)))
    alone = [objects(coe(question, "--format", "jsonl"))[0] for question in questions]
    for key in ("text", "kind", "unsure"):
        assert [o[key] for o in together] == [o[key] for o in again] == [o[key] for o in alone]
    assert [o["experts"] for o in together] == [o["experts"] for o in again]
    assert [o["experts"][0]["name"] for o in together] == [o["experts"][0]["name"] for o in alone]


def test_odd_lines_each_get_an_answer(coe: Any) -> None:
    lines = ["", "🎉🎉", "これは何ですか", "x" * 100_000, "   ", "select"]
    found = objects(coe("-", "--format", "jsonl", stdin="\n".join(lines) + "\n"))
    assert [o["text"] for o in found] == lines
    assert found[0]["unsure"]
    assert found[0]["kind"] != "multi"


def test_bytes_that_are_not_utf8_are_replaced(coe: Any) -> None:
    assert len(objects(coe("-", "--format", "jsonl", stdin=b"\xf0\x28 bread\nselect\n"))) == 2


def test_human_and_json(coe: Any) -> None:
    human = coe("write a select query")
    assert human.exit_code == 0
    assert human.stdout.count("\n") == 1
    several = json.loads(coe("-", "--format", "json", stdin="one\ntwo\n").stdout)
    assert [o["text"] for o in several] == ["one", "two"]


def test_a_damaged_cache_is_rebuilt_with_a_warning(coe: Any, home: Path) -> None:
    before = objects(coe("select a table", "--format", "jsonl"))
    for content in (b"not a zip file", cached(home).read_bytes()[:500], b""):
        cached(home).write_bytes(content)
        result = coe("select a table", "--format", "jsonl")
        assert "damaged" in result.stderr
        assert objects(result)[0]["experts"] == before[0]["experts"]
    assert coe("select a table").stderr == ""


def test_weights_of_other_vectors_are_rebuilt(coe: Any, home: Path) -> None:
    coe("select a table")
    info = next((home / "cache" / "embedders").glob("*/embedder.json"))
    content = info.read_text(encoding="utf-8")
    other = json.loads(content)
    other["sha256"] = "0" * 64
    info.write_text(json.dumps(other), encoding="utf-8")
    try:
        assert "training" in coe("select a table").stderr
    finally:
        info.write_text(content, encoding="utf-8")
    assert "training" in coe("select a table").stderr


def test_examples_that_change_are_learned_by_itself(coe: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coe("select a table")
    try:
        garden = ["prune the roses", "sow carrots", "moss in the lawn", "compost for tomatoes"]
        write_catalog(home / "experts.yaml", {**EXAMPLES, "gardener": garden})
        embedded: list[str] = []
        embed = Embedder.embed

        def listed(self: Embedder, texts: list[str]) -> Any:
            embedded.extend(texts)
            return embed(self, texts)

        monkeypatch.setattr(Embedder, "embed", listed)
        result = coe("sow carrots", "--format", "jsonl")
        assert "training" in result.stderr
        assert objects(result)[0]["experts"][0]["name"] == "gardener"
        assert set(embedded) == {*garden, "gardener"}, "the vectors of the other examples were kept"
    finally:
        write_catalog(home / "experts.yaml", EXAMPLES)


def test_rebuild_trains_again_and_needs_no_question(coe: Any) -> None:
    coe("select a table")
    result = coe("--rebuild")
    assert result.exit_code == 0
    assert "training" in result.stderr
    assert "ready" in result.stderr


def test_an_embedder_that_may_not_be_fetched(coe: Any) -> None:
    result = coe("question", "--no-pull", embed=["--embedder", "all-MiniLM-L6-v2"])
    assert isinstance(result.exception, ModelMissing)
    assert "coe route --rebuild" in result.exception.hint


def test_a_cache_that_cannot_be_written_says_what_to_do(
    coe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("COE_CACHE_DIR", str(tmp_path / "cache"))
    error = coe("question").exception
    assert isinstance(error, CoeError)
    assert "cache cannot be written: " in error.message and "COE_CACHE_DIR" in error.hint


def test_no_question_at_all(coe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe_cli.commands.route._stdin_is_terminal", lambda: True)
    assert isinstance(coe().exception, UsageError)
