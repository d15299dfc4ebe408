"""Models of the catalog with builds for several providers: which is taken, what is said before, and what is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from importing.gguf_files import write_gguf

from coe_cli.core.providers import names
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.settings import load_catalog
from model_store.conftest import Coe
from model_store.hub_server import COMMIT, Hub
from model_store.tiny_model import catalog_entry, write_tiny_model

URI = "hf:someone/tiny-GGUF/tiny-Q4_1.gguf"
SHIPPED = Path(__file__).parents[2] / "profiles" / "experts.yaml"
GGUF_SHAPE = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_size": 16,
    "vocab_size": 300,
}


@pytest.fixture
def entry(coe: Coe, hub: Hub, tmp_path: Path) -> dict[str, Any]:
    """A model that was built for DirectML, with a GGUF file of unknown licence for the CPU."""
    hub.repositories["someone/tiny-GGUF"] = {
        "tiny-Q4_1.gguf": write_gguf(tmp_path / "tiny.gguf", kind="Q4_1").read_bytes()
    }
    hub.add_folder("someone/tiny", write_tiny_model(tmp_path / "published"))
    build = {"sources": [{"uri": URI, "size_mb": 1}], "verified": False}
    found = {**catalog_entry("hf:someone/tiny"), "provider": "dml", "shape": GGUF_SHAPE, "builds": {"cpu": build}}
    coe.catalog(tiny=found)
    return found


def test_pull_takes_the_build_for_the_profile_and_says_the_hubs_licence_first(
    coe: Coe, hub: Hub, entry: dict[str, Any]
) -> None:
    hub.licences["someone/tiny-GGUF"] = "mit"
    result = coe("models", "pull", "tiny", "-p", "embedded")
    assert result.code == 0, result.stderr
    assert "tiny: licence mit, as the hub says (the catalog: CC0-1.0), 1 MB" in result.stderr
    assert result.stderr.index("licence mit") < result.stderr.index("tiny is ready")
    origin = json.loads((coe.models / "tiny" / "coe_manifest.json").read_text())["origin"]
    assert (origin["uri"], origin["revision"]) == (URI, COMMIT)
    assert spec_from_folder("tiny", coe.models / "tiny").provider == "cpu"
    fetched = {path.rsplit("/", 1)[-1] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert fetched == {"tiny-Q4_1.gguf"}
    assert coe("models", "pull", "tiny", "--force").code == 0
    assert spec_from_folder("tiny", coe.models / "tiny").provider == "cpu", "it stays in its build"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"shape": {**GGUF_SHAPE, "hidden_size": 64}}, "another shape than the catalog says"),
        ({"builds": {"cpu": {"sources": [{"uri": "hf:someone/none/a.gguf"}], "verified": False}}}, "someone/none"),
    ],
)
def test_a_build_that_is_not_what_the_catalog_says_is_refused(
    coe: Coe, entry: dict[str, Any], changed: dict[str, Any], words: str
) -> None:
    coe.catalog(tiny={**entry, **changed})
    result = coe("models", "pull", "tiny", "-p", "embedded")
    assert result.code == 4 and words in result.stderr
    assert not (coe.models / "tiny").exists()


def test_more_than_10_gb_of_a_build_are_asked_for(coe: Coe, hub: Hub, entry: dict[str, Any]) -> None:
    entry["builds"]["cpu"]["sources"][0]["size_mb"] = 20_000
    coe.catalog(tiny=entry)
    result = coe("models", "pull", "tiny", "-p", "embedded")
    assert result.code == 2 and "more than 10 GB" in result.stderr
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


def test_show_lists_the_builds_and_plans_with_the_profiles(coe: Coe, entry: dict[str, Any]) -> None:
    card = coe("models", "show", "tiny", "--format", "json").json
    assert (card["provider"], card["origin"]) == ("dml", "hf:someone/tiny")
    on_cpu = coe("models", "show", "tiny", "--format", "json", "-p", "embedded").json
    assert (on_cpu["provider"], on_cpu["plan"]["provider"], on_cpu["origin"]) == ("cpu", "cpu", URI)
    assert [build["provider"] for build in card["builds"]] == ["dml", "cpu"]
    last = {"format": "gguf", "uri": URI, "licence": "CC0-1.0", "download_mb": 1.0, "verified": False}
    assert on_cpu["builds"][-1] == {"provider": "cpu", **last}
    assert "checked when it is pulled first" in " ".join(coe("models", "show", "tiny").stdout.split())


def test_a_build_of_ones_own_is_merged_by_its_provider(tmp_path: Path) -> None:
    own = tmp_path / "experts.yaml"
    own.write_text("models: {BioMistral-7B-DML: {builds: {cpu: {sources: [{uri: 'hf:me/mine/a.gguf'}]}}}}\n")
    builds = load_catalog([SHIPPED, own], own).models["BioMistral-7B-DML"].builds
    assert builds["cpu"].sources[0].uri == "hf:me/mine/a.gguf"
    assert builds["cuda"].sources[0].uri.startswith("hf:MaziyarPanahi/")
    own.write_text("models: {BioMistral-7B-DML: {builds: {tpu: {sources: [{uri: 'hf:me/mine/a.gguf'}]}}}}\n")
    assert "models.BioMistral-7B-DML" in load_catalog([SHIPPED, own], own).problems


def test_cards_are_looked_for_only_where_that_tells_which_build(
    coe: Coe, hub: Hub, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    monkeypatch.setattr("coe_cli.runtime.probe.probes", lambda: looked.append(True) or [])
    one_build = catalog_entry("hf:someone/tiny")
    coe.catalog(tiny=entry, plain=one_build, large={**one_build, "weights_mb": 2**30})
    for name in ("plain", "hf:someone/tiny", "large"):
        pulled = coe("models", "pull", name, "--yes")
        assert looked == [], name
        assert ("will not run on this machine: its cpu build" in pulled.stderr) == (name == "large")
    assert coe("models", "pull", "tiny", "--force").code == 0
    assert looked == [True]


def test_each_specialist_has_a_build_for_each_provider() -> None:
    catalog = load_catalog([SHIPPED])
    specialists = [entry for entry in catalog.models.values() if entry.provider == "dml"]
    assert len(specialists) == 6
    for entry in specialists:
        assert {entry.provider, *entry.builds} == set(names())
        assert all(entry.on(name).format == "gguf" and entry.on(name).download_mb < 5000 for name in entry.builds)
