"""Amounts of memory as people write them, and what a plan says of several experts."""

from __future__ import annotations

import json

import pytest
from conftest import Coe
from importing.gguf_files import write_gguf

TWO = ("-e", "python_backend", "-e", "sql_query")


def test_amounts(bare_coe: Coe) -> None:
    plan = bare_coe.run("vram", "plan", "-p", "compact", "--vram-mb", "16G", "-e", "math_expert", "--format", "json")
    assert sum(json.loads(plan.check().stdout)[key] for key in ("fixed_mb", "pool_mb")) == 16384
    small, large = (
        json.loads(bare_coe.run("vram", "plan", "--vram-mb", amount, "-e", "math_expert", "--format", "json").stdout)[
            "slots"
        ][0]
        for amount in ("9G", "32G")
    )
    assert small["context_length"] < large["context_length"], (
        "a smaller card has shorter contexts where prompts are read whole"
    )
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


def test_a_gguf_file_is_planned_by_its_header(bare_coe: Coe) -> None:
    """Beside a model by its name."""
    write_gguf(bare_coe.folder / "small.gguf")
    plan = bare_coe.run("vram", "plan", "-p", "compact", "-m", "small.gguf", "-m", "Qwen2.5-Coder-7B-DML").check()
    assert "small.gguf" in plan.stdout and "Qwen2.5-Coder-7B-DML" in plan.stdout
    assert plan.stderr.startswith("coe: together: ")
    fitted = json.loads(bare_coe.run("fit", "16G", "--model", "small.gguf", "--format", "json").check().stdout)
    (row,) = fitted["devices"][0]["experts"]
    assert (row["model"], row["how"]) == ("small.gguf", "together") and 0 < row["weights_mb"] < 100
    for name, code in (("nofile.gguf", 4), ("nothing", 4)):
        for command in (("vram", "plan"), ("fit", "16G")):
            refused = bare_coe.run(*command, "-m", name)
            assert refused.code == code and name in refused.stderr and not refused.stdout
