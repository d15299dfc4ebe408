"""`coe profile` from outside: list, show, check, and files that people got wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from coe_cli.commands import profile as command
from coe_cli.core.hardware.machine import Adapter, Machine
from coe_cli.core.memory.profile_check import CheckReport
from coe_cli.errors import CoeError, ProfileInvalid, UsageError
from coe_cli.runtime.folders import catalog_paths, folders, profile_paths
from coe_cli.runtime.planning import profile_report
from coe_cli.runtime.planning.profile_report import check
from coe_cli.runtime.settings import load_catalog, load_profiles

pytestmark = pytest.mark.usefixtures("own_folders")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(command.app, list(arguments))


def checked(name: str | None, machine: Machine, *, auto: bool = False) -> CheckReport:
    return check(
        load_profiles(profile_paths()), name, load_catalog(catalog_paths()), folders(), auto=auto, machine=machine
    )


def levels(report: CheckReport) -> dict[str, str]:
    return {finding.check: finding.level for finding in report.findings}


def card(size_mb: float, used_mb: float | None = 500.0) -> Machine:
    return Machine((Adapter("card", "nvml", size_mb, used_mb=used_mb),), True, 64_000.0, 50_000.0)


def test_list_names_every_profile() -> None:
    document = json.loads(run("list", "--format", "json").stdout)
    assert list(document) == ["schema_version", "default_profile", "profiles"]
    assert [entry["name"] for entry in document["profiles"]] == [
        "embedded", "minimal", "compact", "standard", "performance", "unlimited",
    ]  # fmt: skip
    assert "standard *" in run("list").stdout
    assert len(run("list", "--format", "csv").stdout.splitlines()) == 7


def test_show_gives_every_setting() -> None:
    document = json.loads(run("show", "compact", "--format", "json").stdout)
    assert document["profile"]["vram_budget_mb"] == 16_000
    assert "vram_components.per_slot_estimate.total" in run("show", "compact").stdout
    assert isinstance(run("show", "compakt").exception, ProfileInvalid)


def test_a_card_with_room_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe_cli.runtime.planning.profile_report.free_mb", lambda folder: 100_000.0)
    report = checked("standard", card(48_000.0))
    assert report.passed
    assert levels(report)["card"] == levels(report)["in_use"] == levels(report)["plan"] == "ok"
    assert all(finding.fix for finding in report.findings if finding.level != "ok")


@pytest.mark.parametrize(
    ("machine", "topic", "level"),
    [
        (card(24_000.0), "card", "error"),
        (card(33_000.0), "card", "warning"),
        (card(48_000.0, used_mb=30_000.0), "in_use", "warning"),
        (card(48_000.0, used_mb=None), "in_use", "warning"),
        (Machine(gpu_known=True), "card", "error"),
        (Machine(gpu_known=False), "card", "warning"),
        (Machine(gpu_known=False, problems=("nvml: no",)), "probe", "warning"),
    ],
)
def test_findings_about_the_machine(machine: Machine, topic: str, level: str) -> None:
    assert levels(checked("standard", machine))[topic] == level


def test_a_budget_in_which_the_slots_would_take_turns_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "tight.yaml"
    file.write_text("profiles: {tight: {vram_budget_mb: 17200, max_concurrent_slots: 2, context_length: 1024}}\n")
    document = json.loads(run("check", "tight", "--profiles", str(file), "--format", "json").stdout)
    (plan,) = [finding for finding in document["findings"] if finding["topic"] == "plan"]
    assert plan["level"] == "warning" and "15.8 GB for 2 slots" in plan["message"]
    assert "take turns" in plan["action"] and "--vram-mb" in plan["action"]


@pytest.mark.parametrize(
    ("profile", "level", "words"),
    [
        ("minimal", "error", "8.9 GB for 1 slot"),
        ("compact", "ok", "12.9 GB for 1 slot"),
        ("performance", "warning", "47.8 GB for 4 slots, more than there is at once: they take turns"),
        ("unlimited", "warning", "102 GB for 6 slots, more than there is at once: they take turns"),
    ],
)
def test_a_budget_that_holds_no_model_is_an_error_and_one_for_fewer_slots_a_warning(
    profile: str, level: str, words: str
) -> None:
    (plan,) = [finding for finding in checked(profile, card(98_304.0)).findings if finding.check == "plan"]
    assert plan.level == level and words in plan.message and ("short of" in plan.fix) == (level != "ok")


def test_missing_models_and_short_contexts_are_warned_of() -> None:
    findings = checked("standard", card(48_000.0)).findings
    assert any(f.check == "model" and "coe models pull Qwen2.5-Coder-7B-DML" in f.fix for f in findings)
    assert any(f.check == "context" and "Qwen2.5-Math-7B-DML" in f.message for f in findings)


def test_a_damaged_model_is_an_error(own_folders: Path) -> None:
    folder = own_folders / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "genai_config.json").write_text("{}")
    assert levels(checked("embedded", card(8_000.0)))["model"] == "error"


def test_measurements_and_their_age_are_told(own_folders: Path) -> None:
    from test_vram_command import folder_with_model

    from coe_cli.core.memory.calibration import CalibrationRecord
    from coe_cli.providers.installed import runtime_version
    from coe_cli.runtime.planning.calibration_store import CalibrationStore, model_digest

    folder = folder_with_model(own_folders / "models")
    assert "no measurements yet" in str(checked("embedded", card(8_000.0)).findings)
    record = CalibrationRecord(
        model_digest(folder), "cpu", runtime_version("cpu") or "", "cpu", "load", 2**28, 2**28, 1_000_000_000.0
    )
    CalibrationStore(own_folders / "state").record(record)
    finding = next(f for f in checked("embedded", card(8_000.0)).findings if f.check == "calibration")
    assert finding.level == "warning" and "days ago" in finding.message


def test_auto_picks_by_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_report, "sys", SimpleNamespace(platform="win32"))
    assert checked(None, card(24_576.0), auto=True).profile.name == "compact"
    small = checked(None, card(12_288.0), auto=True)
    assert (
        small.profile.name == "embedded" and "no profile of 10.8 GB or less runs an expert's model here" in small.reason
    )
    monkeypatch.setattr(profile_report, "sys", SimpleNamespace(platform="linux"))
    elsewhere = checked(None, card(24_576.0), auto=True)
    assert elsewhere.profile.name == "embedded" and "see `coe setup --dry-run`" in elsewhere.reason
    report = checked(None, Machine(gpu_known=True, memory_mb=16_000.0, memory_free_mb=9_000.0), auto=True)
    assert report.profile.name == "embedded"
    assert levels(report)["card"] == "ok"
    assert isinstance(run("check", "standard", "--auto").exception, UsageError)


def test_check_here_ends_in_0_or_5_and_its_keys_are_pinned(own_folders: Path) -> None:
    result = run("check", "--auto", "--format", "json")
    document = json.loads(result.stdout)
    assert list(document) == ["schema_version", "profile", "reason", "machine", "findings", "passed"]
    assert list(document["findings"][0]) == ["level", "topic", "message", "action"]
    assert result.exit_code == (0 if document["passed"] else 5)
    assert (own_folders / "state" / "machine.json").exists()


def test_an_invalid_file_is_profile_invalid(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("profiles:\n  p: {vram_budget_mb: -5}\n")
    error = run("check", "--profiles", str(wrong)).exception
    assert isinstance(error, ProfileInvalid) and error.exit_code == 3


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
keys = st.sampled_from(
    ["profiles", "default_profile", "vram_components", "pressure_thresholds", "auto_detect", "eviction_policy", "standard", "keep_alive",
     "vram_budget_mb", "max_concurrent_slots", "context_length", "provider", "elevated", "total", "fixed_overhead"]
)  # fmt: skip
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@settings(max_examples=examples(80))
@given(documents.map(yaml.safe_dump) | st.text(max_size=80))
def test_no_profile_file_ends_in_a_traceback(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.yaml"
        path.write_text(text, encoding="utf-8", errors="replace")
        result = run("list", "--format", "json", "--profiles", str(path))
        assert result.exit_code == 0 or isinstance(result.exception, CoeError)
