"""Amounts of memory as people write them, and what a plan says of several experts."""

from __future__ import annotations

import json

import pytest
from conftest import Coe

TWO = ("-e", "python_backend", "-e", "sql_query")


def test_amounts(bare_coe: Coe) -> None:
    plan = bare_coe.run("vram", "plan", "-p", "compact", "--vram-mb", "16G", "-e", "math_expert", "--format", "json")
    assert sum(json.loads(plan.check().stdout)[key] for key in ("fixed_mb", "pool_mb")) == 16384
    refused = bare_coe.run("vram", "plan", "--vram-mb", "lots")
    assert refused.code == 2 and "Write 16G" in refused.stderr
    (bare_coe.config / "hardware_profiles.yaml").write_text("profiles: {compact: {vram_budget_mb: 12G}}")
    shown = json.loads(bare_coe.run("profile", "show", "compact", "--format", "json").check().stdout)
    assert shown["profile"]["vram_budget_mb"] == 12288
    (bare_coe.config / "hardware_profiles.yaml").write_text("profiles: {compact: {vram_budget_mb: lots}}")
    wrong = bare_coe.run("profile", "show", "compact")
    assert wrong.code == 3 and "vram_budget_mb" in wrong.stderr and "Write 16G" in wrong.stderr


@pytest.mark.parametrize(
    ("amount", "said"), [("40G", "together: "), ("16G", "in turns: "), ("6G", "not even in turns: ")]
)
def test_how_several_experts_run(bare_coe: Coe, amount: str, said: str) -> None:
    result = bare_coe.run("vram", "plan", "-p", "compact", "--vram-mb", amount, *TWO)
    assert f"coe: {said}" in result.stderr and result.code == (0 if amount == "40G" else 5)
