"""Which expert and which model answer: a table of what is on disk and what was asked for."""

from __future__ import annotations

import pytest
from conftest import MODEL, REPOSITORY

from coe_cli.core.models.catalog import Catalog
from coe_cli.core.routing.router import Decision, Scored, swap_aware
from coe_cli.core.routing.selection import choose_model, choose_profile
from coe_cli.errors import ModelMissing, ProfileInvalid, UsageError
from coe_cli.runtime.settings import load_catalog, load_profiles

DEEPSEEK, SQL, LAW = "DeepSeek-R1-Distill-Qwen-7B-DML", "sqlcoder-7b-2-DML", "law-LLM-DML"
PROFILES = load_profiles([REPOSITORY / "profiles" / "hardware_profiles.yaml"])


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The shipped one, with an expert whose fallback is not the default model."""
    own = tmp_path_factory.mktemp("catalog") / "experts.yaml"
    own.write_text(f"experts:\n  lawyer: {{model: {LAW}, system_prompt: Law., fallback: {DEEPSEEK}}}\n")
    return load_catalog([REPOSITORY / "profiles" / "experts.yaml", own])


@pytest.mark.parametrize(
    ("on_disk", "expert", "model", "chosen", "fallback", "install", "missing"),
    [
        # the general expert
        ([DEEPSEEK, MODEL], None, None, (DEEPSEEK, "general_reasoner"), MODEL, False, 0),
        ([DEEPSEEK], None, None, (DEEPSEEK, "general_reasoner"), None, False, 0),
        ([MODEL], None, None, (MODEL, "general_reasoner"), None, False, 1),
        ([], None, None, (MODEL, "general_reasoner"), None, True, 1),
        # a named expert: own model, fallback, default
        ([LAW, DEEPSEEK, MODEL], "lawyer", None, (LAW, "lawyer"), DEEPSEEK, False, 0),
        ([LAW, MODEL], "lawyer", None, (LAW, "lawyer"), None, False, 0),
        ([DEEPSEEK, MODEL], "lawyer", None, (DEEPSEEK, "lawyer"), None, False, 1),
        ([MODEL], "lawyer", None, (MODEL, "lawyer"), None, False, 1),
        ([], "lawyer", None, (MODEL, "lawyer"), None, True, 1),
        # a named model: taken or refused, never replaced
        ([LAW, MODEL], None, LAW, (LAW, None), None, False, 0),
        (["my-own-model"], None, "my-own-model", ("my-own-model", None), None, False, 0),
        ([], None, MODEL, (MODEL, None), None, True, 0),
        ([LAW, MODEL], "medical_expert", LAW, (LAW, "medical_expert"), None, False, 0),
    ],
)
def test_choice(
    catalog: Catalog,
    on_disk: list[str],
    expert: str | None,
    model: str | None,
    chosen: tuple[str, str | None],
    fallback: str | None,
    install: bool,
    missing: int,
) -> None:
    choice = choose_model(catalog, on_disk, expert=expert, model=model)
    assert (choice.model, choice.expert) == chosen
    assert (choice.fallback, choice.install, choice.missing is not None) == (fallback, install, bool(missing))
    assert choice.system_prompt == catalog.experts[chosen[1] or "general_reasoner"].system_prompt


def test_a_model_without_a_chat_template_keeps_its_plain_one(catalog: Catalog) -> None:
    template = catalog.experts["sql_query"].template
    assert choose_model(catalog, [SQL], expert="sql_query", model=None).template == template
    assert choose_model(catalog, [SQL], expert=None, model=SQL).template == template
    assert choose_model(catalog, [SQL], expert="medical_expert", model=SQL).template == template
    assert choose_model(catalog, [MODEL], expert="sql_query", model=None).template is None
    assert choose_model(catalog, [MODEL], expert="sql_query", model=MODEL).template is None


def test_names_that_do_not_exist(catalog: Catalog) -> None:
    with pytest.raises(UsageError) as no_expert:
        choose_model(catalog, [], expert="math", model=None)
    assert "`math_expert`" in no_expert.value.hint and no_expert.value.exit_code == 2
    with pytest.raises(UsageError):
        choose_model(catalog, [MODEL], expert="math", model=MODEL)
    with pytest.raises(ModelMissing) as no_model:
        choose_model(catalog, ["my-own-model"], expert=None, model="my-own-mode")
    assert "`my-own-model`" in no_model.value.hint and no_model.value.exit_code == 4
    with pytest.raises(ModelMissing) as not_here:
        choose_model(catalog, [MODEL], expert=None, model=LAW)
    assert not_here.value.hint.endswith(f"coe models pull {LAW}")
    with pytest.raises(ModelMissing) as nothing_near:
        choose_model(catalog, [], expert=None, model="zzzzzz")
    assert all(name in nothing_near.value.hint for name in catalog.models)


@pytest.mark.parametrize(
    ("name", "provider", "profile"),
    [
        (None, "dml", "standard"),
        (None, "cpu", "embedded"),
        (None, "cuda", "standard"),
        ("minimal", "dml", "minimal"),
        ("minimal", "cpu", "minimal"),
    ],
)
def test_profile(name: str | None, provider: str, profile: str) -> None:
    assert choose_profile(PROFILES, name, provider).name == profile


def test_an_unknown_profile() -> None:
    with pytest.raises(ProfileInvalid) as caught:
        choose_profile(PROFILES, "performence", "dml")
    assert "`performance`" in caught.value.hint and caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("on_disk", "loaded", "chosen"),
    [
        ([SQL, LAW, MODEL], [], "sql_query"),
        ([SQL, LAW, MODEL], [LAW], "lawyer"),
        ([SQL, LAW, MODEL], [SQL, LAW], "sql_query"),
        ([SQL, DEEPSEEK, MODEL], [DEEPSEEK], "lawyer"),  # its fallback answers for it
        ([SQL, MODEL], [MODEL], "lawyer"),  # and so does the default model
        ([MODEL], [MODEL], "sql_query"),  # one model answers for both
    ],
)
def test_of_two_likely_experts_the_one_whose_answering_model_is_resident(
    catalog: Catalog, on_disk: list[str], loaded: list[str], chosen: str
) -> None:
    ranking = [Scored("sql_query", 0.5), Scored("lawyer", 0.45), Scored("general_reasoner", 0.05)]
    decision = swap_aware(Decision(ranking[:1], "single", False, 0.05, ranking), catalog, on_disk, loaded)
    assert decision.experts[0].name == chosen
    assert decision.preferred_resident is (chosen != "sql_query")
