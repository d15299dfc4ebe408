"""Profile and catalog files of the user's own: merged by key; a broken entry stops only the command that needs it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import MODEL, REPOSITORY, Coe
from hypothesis import given
from hypothesis import strategies as st
from operating_system import WINDOWS

from coe_cli.core.documents import Document
from coe_cli.core.layers import Layers
from coe_cli.errors import ProfileInvalid
from coe_cli.runtime.folders import folders, obstacle
from coe_cli.runtime.settings import load_catalog, load_profiles, read_profiles

PROFILES = REPOSITORY / "profiles" / "hardware_profiles.yaml"
CATALOG = REPOSITORY / "profiles" / "experts.yaml"


def _own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.yaml"
    path.write_bytes(text.encode("utf-8-sig"))
    return path


def test_a_key_of_an_entry_is_changed_and_the_others_stay(tmp_path: Path) -> None:
    own = _own(tmp_path, "profiles:\n  compact: {vram_budget_mb: 12345}\nrouting: {two_experts: false}\n")
    shipped, merged = load_profiles([PROFILES]), load_profiles([PROFILES, own], own)
    before, after = shipped.select("compact"), merged.select("compact")
    assert (after.vram_budget_mb, after.context_length, after.notes) == (12345, before.context_length, before.notes)
    assert (merged.routing.two_experts, merged.routing.prefer_resident) == (False, shipped.routing.prefer_resident)
    assert not merged.problems


def test_null_removes_a_key_and_an_entry(tmp_path: Path) -> None:
    own = _own(
        tmp_path, "experts:\n  sql_query: {prompt_format: chat_template, template: null}\n  medical_expert: null\n"
    )
    catalog = load_catalog([CATALOG, own], own)
    assert catalog.experts["sql_query"].template is None and catalog.experts["sql_query"].system_prompt
    assert load_catalog([CATALOG]).experts.keys() - catalog.experts.keys() == {"medical_expert"}


def test_a_file_that_is_written_again_at_one_reading_of_the_clock_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CACHE", "CONFIG"):
        monkeypatch.setenv(f"COE_{name}_DIR", str(tmp_path))
    file, now_ns = tmp_path / "hardware_profiles.yaml", 10**18
    monkeypatch.setattr("time.time_ns", lambda: now_ns)
    for slots in (3, 4):
        file.write_text(f"profiles: {{embedded: {{max_concurrent_slots: {slots}}}}}", encoding="utf-8")
        os.utime(file, ns=(now_ns, now_ns))
        assert read_profiles().select("embedded").max_concurrent_slots == slots


@pytest.mark.skipif(WINDOWS, reason="there such a file is none")
def test_a_file_of_ones_own_that_cannot_be_looked_at_is_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that another user has made, with sudo; a name that is too long fails for root too."""
    monkeypatch.setenv("COE_CONFIG_DIR", str(tmp_path / ("x" * 300)))
    assert "cannot be read" in read_profiles().problems[""].message
    assert obstacle(folders().config) == ""


def test_a_sum_that_one_part_breaks_is_reported_where_the_part_is(tmp_path: Path) -> None:
    own = _own(tmp_path, "\nvram_components:\n  fixed_overhead:\n    system_reserve: 1\n")
    with pytest.raises(ProfileInvalid) as caught:
        load_profiles([PROFILES, own])
    assert f"{own}:" in caught.value.message


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        ("experts:\n  bad: {modle: x}\n  good: {model: smollm2-135m, system_prompt: Hi}\n", ["experts.bad"]),
        ("experts:\n  bad: {model: nowhere, system_prompt: ''}\n  good: {model: smollm2-135m, system_prompt: Hi}\n", ["experts.bad"]),
        ("default_model: nobody\nexperts:\n  good: {model: smollm2-135m, system_prompt: Hi}\n", ["default_model"]),
        ("models: {bad: {}}\nexperts:\n  good: {model: smollm2-135m, system_prompt: Hi}\n  worse: {model: bad, system_prompt: ''}\n", ["models.bad", "experts.worse"]),
        ("wrong: 1\nexperts:\n  good: {model: smollm2-135m, system_prompt: Hi}\n", ["wrong"]),
        ("experts:\n  2024: {model: smollm2-135m}\n  good: {model: smollm2-135m, system_prompt: Hi}\n", ["experts.2024"]),
        ("2: 3\nexperts:\n  true: {}\n  good: {model: smollm2-135m, system_prompt: Hi}\n", ["experts.True", "2"]),
        ("experts: [\n", [""]),
        ("- a list\n", [""]),
    ],
)  # fmt: skip
def test_broken_entries_are_left_out_one_by_one(tmp_path: Path, text: str, left_out: list[str]) -> None:
    own = _own(tmp_path, text)
    catalog = load_catalog([CATALOG, own], own)
    assert list(catalog.problems) == left_out
    assert ("good" in catalog.experts) == (left_out != [""]) and len(catalog.experts) >= 10
    assert all(str(own) in problem.message for problem in catalog.problems.values())
    for key in left_out:
        section, _, name = key.partition(".")
        if section == "experts":
            with pytest.raises(ProfileInvalid):
                catalog.expert(name)
    with pytest.raises(ProfileInvalid):
        load_catalog([CATALOG, own])  # a file that the user named is not taken in parts


def test_a_broken_profile_is_no_other_profile(tmp_path: Path) -> None:
    own = _own(tmp_path, "profiles:\n  standard: {vram_budget_mb: little}\n")
    profiles = load_profiles([PROFILES, own], own)
    assert profiles.select("compact").name == "compact"
    for name in ("standard", None):  # the shipped one of that name has another budget
        with pytest.raises(ProfileInvalid, match=r"profiles\.standard\.vram_budget_mb"):
            profiles.select(name)


_trees = st.recursive(
    st.one_of(st.integers(0, 3), st.text("ab", max_size=2)),
    lambda children: st.dictionaries(st.sampled_from("abcd"), children, max_size=3),
    max_leaves=8,
)


@given(layers=st.lists(st.dictionaries(st.sampled_from("abcd"), _trees, max_size=3), min_size=1, max_size=3))
def test_every_leaf_is_that_of_the_last_file_which_has_it(layers: list[dict[str, object]]) -> None:
    documents = [Document(Path(f"{number}.yaml"), json.dumps(layer)) for number, layer in enumerate(layers)]
    merged = Layers(documents).data

    def check(value: object, path: list[str]) -> None:
        found = [at for layer in layers if (at := _at(layer, path)) is not None]
        if isinstance(value, dict):
            assert isinstance(found[-1], dict)
            for key in value:
                check(value[key], [*path, key])
        else:
            assert value == found[-1]

    check(merged, [])


def _at(tree: object, path: list[str]) -> object:
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


@pytest.mark.long
def test_a_broken_own_file_stops_only_what_needs_it(coe: Coe) -> None:
    (coe.config / "experts.yaml").write_text(
        "experts:\n  bad: {modle: x}\n  haiku: {model: smollm2-135m, system_prompt: Answer with a haiku.}\n"
    )
    (coe.config / "hardware_profiles.yaml").write_text("profiles:\n  mine: {vram: 1}\n")
    ask = ("-m", MODEL, "--max-tokens", "2", "--temperature", "0", "What is the capital of France?")
    answered = coe.run("ask", *ask).check()
    assert "coe: warning: " in answered.stderr and "experts.bad.modle: unknown key" in answered.stderr
    assert answered.stderr.count("experts.bad.modle") == 1 and answered.stdout.strip()
    assert coe.run("ask", "-e", "haiku", "--max-tokens", "1", "Rain").code == 0
    assert coe.run("ask", "-e", "bad", "Rain").code == 3
    assert coe.run("ask", "-p", "mine", "Rain").code == 3
    assert coe.run("models", "list").code == 0
    assert coe.run("vram", "plan", "-p", "compact").code == 0
    doctor = json.loads(coe.run("doctor", "--format", "json").stdout)
    assert [f["level"] for f in doctor["findings"] if f["check"] == "configuration"] == ["error", "error"]
    (coe.config / "hardware_profiles.yaml").write_text("profiles: [\n")
    broken = coe.run("doctor", "--format", "json", "--catalog", str(coe.folder / "nowhere.yaml"))
    said = [f["message"] for f in json.loads(broken.stdout)["findings"] if f["check"] == "configuration"]
    assert (
        broken.code == 1
        and any("nowhere.yaml" in text for text in said)
        and any("not valid YAML" in text for text in said)
    )


def test_a_model_on_disk_is_a_model(bare_coe: Coe, copied_model: Path) -> None:
    copied_model.rename(copied_model.with_name("mine"))
    (bare_coe.config / "experts.yaml").write_text(
        "experts:\n  haiku: {model: mine, system_prompt: Answer with a haiku.}\n"
    )
    answered = bare_coe.run("ask", "-e", "haiku", "--max-tokens", "1", "--format", "json", "Rain").check()
    assert json.loads(answered.stdout)["model"] == "mine" and not answered.stderr
    planned = json.loads(
        bare_coe.run("vram", "plan", "-p", "embedded", "-e", "haiku", "--format", "json").check().stdout
    )
    assert "mine" in json.dumps(planned)
