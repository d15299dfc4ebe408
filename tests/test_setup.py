"""`coe setup`: what is proposed for a machine, that it goes on where it stopped, and what it says without a network."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, Coe, Result
from made_up_machine import MACHINES, pretend
from model_store.tiny_model import catalog_entry, write_tiny_model

from coe_cli.app import run
from coe_cli.core.hardware.machine import pick_profile
from coe_cli.runtime.folders import folders
from coe_cli.runtime.planning.setup_plan import GENERAL_ON_HOST, OWN_PROFILE, setup_plan
from coe_cli.runtime.settings import read_catalog, read_profiles
from coe_cli.use_cases import providing

SPECIALISTS = {
    "DeepSeek-R1-Distill-Qwen-7B-DML",
    "Qwen2.5-Coder-7B-DML",
    "Qwen2.5-Math-7B-DML",
    "BioMistral-7B-DML",
    "sqlcoder-7b-2-DML",
}
SMALL = {"smollm2-135m", GENERAL_ON_HOST}
PROPOSED = {
    "amd-16g": ("dml", OWN_PROFILE, {"smollm2-135m", *SPECIALISTS}),
    "igpu-32g": ("dml", "compact", {"smollm2-135m", *SPECIALISTS}),
    "nvidia-8g": ("cpu", "embedded", SMALL),
    "none-2g": ("cpu", "embedded", {"smollm2-135m"}),
    "none-4g": ("cpu", "embedded", {"smollm2-135m"}),
    "none-8g": ("cpu", "embedded", SMALL),
    "none-16g": ("cpu", "embedded", SMALL),
    "none-32g": ("cpu", "embedded", SMALL),
    "nvidia-24g-linux": ("cuda", OWN_PROFILE, {"smollm2-135m", *SPECIALISTS}),
    "amd-16g-linux": ("cpu", "embedded", SMALL),
}


@pytest.mark.parametrize("name", PROPOSED)
def test_what_is_proposed(bare_coe: Coe, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for key, value in bare_coe.environment.items():
        monkeypatch.setenv(key, value)
    pretend(name, monkeypatch.setattr)
    plan = setup_plan(read_catalog(), read_profiles(), folders())
    models = [model.name for model in plan.models]
    assert (plan.provider, plan.profile, set(models)) == PROPOSED[name]
    assert plan.download_mb == pytest.approx(sum(model.download_mb for model in plan.models))
    assert all(model.licence != "unknown" for model in plan.models)
    assert (plan.provider == "cpu") == (plan.default_model in models and not any(m.experts for m in plan.models))
    assert all(
        model.quant.startswith("Q") and not model.verified
        for model in plan.models
        if plan.provider == "cuda" and model.experts
    )
    assert ("unverified" in " ".join(plan.notes)) == (not all(model.verified for model in plan.models))
    assert ("For the card: pip " in " ".join(plan.notes)) == (name == "amd-16g-linux")
    if plan.own_profile is not None:
        assert plan.own_profile["vram_budget_mb"] == plan.budget_mb < plan.memory_mb


BUILDS = {
    "amd-16g": ("dml", True),
    "igpu-32g": ("dml", True),
    "nvidia-8g": ("dml", False),
    "none-2g": ("cpu", False),
    "none-4g": ("cpu", False),
    "none-8g": ("cpu", False),
    "none-16g": ("cpu", True),
    "none-32g": ("cpu", True),
    "nvidia-24g-linux": ("cuda", True),
    "amd-16g-linux": ("cpu", True),
}
"""The build of a 7B model that `models pull` takes where no profile is named, and whether it runs there."""


@pytest.fixture
def told(
    bare_coe: Coe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """coe in this process, with a model on disk; the exit code, and what it says in one line."""
    for key, value in bare_coe.environment.items():
        monkeypatch.setenv(key, value)
    write_tiny_model(bare_coe.models / "smollm2-135m")

    def call(*arguments: str) -> tuple[int, str]:
        with open(os.devnull) as nothing:  # noqa: PTH123
            monkeypatch.setattr(sys, "stdin", nothing)
            code = run(list(arguments))
        return code, " ".join("".join(capsys.readouterr()).split())

    return call


@pytest.mark.parametrize("name", BUILDS)
def test_the_build_that_runs_here_is_taken_and_none_proposed_that_does_not(
    told: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pretend(name, monkeypatch.setattr)
    build, runs = BUILDS[name]
    code, pulled = told("models", "pull", "Qwen2.5-Math-7B-DML")
    assert code == 4 and ("hf:bartowski/Qwen2.5-Math-7B-Instruct-GGUF/" in pulled) == (build != "dml")
    assert (f"will not run on this machine: its {build} build does not fit" in pulled) == (not runs)
    code, checked = told("profile", "check")
    assert code == 5 and ("coe models pull Qwen2.5-Math-7B-DML" in checked) == runs


def test_a_question_proposes_no_model_that_has_no_room(
    told: Callable[..., tuple[int, str]], bare_coe: Coe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("none-4g", monkeypatch.setattr)
    question = ("ask", "-e", "math_expert", "--max-tokens", "1", "Hi")
    code, fallen_back = told(*question)
    assert code == 0 and "smollm2-135m answers instead (profile embedded has no room for it here)" in fallen_back
    (bare_coe.config / "hardware_profiles.yaml").write_text("profiles: {embedded: {fallback: false}}\n")
    code, refused = told(*question)
    no_room = "not installed (4.4 GB), and profile embedded has no room for it here."
    assert code == 4 and f"{no_room} What suits this machine: coe setup --dry-run." in refused
    monkeypatch.setattr(providing, "is_interactive", lambda output: True)
    code, asked = told(*question)
    assert code == 4 and f"{no_room} Answer with smollm2-135m? [a]nswer, [q]uit:" in asked
    assert "coe models pull" not in told("doctor")[1]


def test_integrated_graphics_leave_half_of_the_memory(bare_coe: Coe) -> None:
    """A 32 GB laptop is not told to take 32 GB."""
    _, machine = MACHINES["igpu-32g"]
    assert pick_profile(machine, read_profiles())[0].vram_budget_mb <= 16384


def setup(coe: Coe, *arguments: str) -> Result:
    script = str(REPOSITORY / "tests" / "made_up_machine.py")
    return coe.run(command=[sys.executable, script, "none-4g", "setup", *arguments], COE_NO_ROUTE="0")


@pytest.fixture
def tiny(bare_coe: Coe, tmp_path: Path) -> Path:
    """A folder, still empty, that the default model is to be copied from."""
    source = tmp_path / "source"
    catalog = {"default_model": "tiny", "models": {"tiny": catalog_entry(f"file:{source}")}}
    (bare_coe.config / "experts.yaml").write_text(yaml.safe_dump(catalog))
    return source


def test_it_asks_first_goes_on_and_asks_a_question(bare_coe: Coe, tiny: Path) -> None:
    before = sorted(bare_coe.config.iterdir())
    dry = json.loads(setup(bare_coe, "--dry-run", "--json").check().stdout)
    assert [model["name"] for model in dry["models"]] == ["tiny"] and not dry["models"][0]["installed"]
    assert sorted(bare_coe.config.iterdir()) == before
    asked = setup(bare_coe)
    assert asked.code == 2 and "--yes" in asked.stderr
    failed = setup(bare_coe, "--yes")
    assert failed.code == 4 and "run `coe setup` again" in failed.stderr
    write_tiny_model(tiny)
    done = setup(bare_coe, "--yes").check()
    assert "default_profile is embedded" in done.stderr and "default_profile" not in failed.stderr
    assert "coe ask What is a deadlock?" in done.stdout
    assert "routing could not be prepared" in done.stderr, "without a network it says what it did without"
    assert "tiny" in done.stderr and "tiny is here" in " ".join(setup(bare_coe, "--dry-run").stdout.split()).replace(
        "every expert CC0-1.0 ", ""
    )
