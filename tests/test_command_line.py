"""The command line as a contract: names of commands and options, help, version, completion, colour."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import MODEL, Coe

from coe_cli import __version__

OPTIONS = {
    ("ask",): {
        "-m --model",
        "-e --expert",
        "-p --profile",
        "-s --system",
        "--max-tokens",
        "--temperature",
        "--top-p",
        "--top-k",
        "--seed",
        "--format",
        "-x --extract",
        "--show-thinking",
        "--no-live",
        "--no-pull",
        "--timeout",
        "--profiles",
        "--catalog",
    },
    ("models", "list"): {"--format", "--catalog"},
    ("models", "pull"): {"--force", "--catalog"},
}


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_pinned(coe: Coe, command: tuple[str, ...]) -> None:
    """An option may be added; none of these may go."""
    shown = coe.run(*command, "--help", COLUMNS="200").check().stdout
    for option in OPTIONS[command]:
        for name in option.split():
            assert re.search(rf"(?<![\w-]){name}(?![\w-])", shown), f"{name} is gone"


def test_help_has_examples_and_the_commands(coe: Coe) -> None:
    top = coe.run("--help", COLUMNS="200").check()
    assert "ask" in top.stdout and "models" in top.stdout
    assert 'coe ask "' in top.stdout
    assert top.stderr == ""
    assert coe.run("-h", COLUMNS="200").check().stdout == top.stdout
    ask = coe.run("ask", "--help", COLUMNS="200").check().stdout
    assert "| coe ask" in ask and "coe ask -e python_backend" in ask
    assert "coe models list --format json" in coe.run("models", "list", "--help", COLUMNS="200").check().stdout
    assert "coe models pull smollm2-135m" in coe.run("models", "pull", "--help", COLUMNS="200").check().stdout


def test_version(coe: Coe) -> None:
    result = coe.run("--version").check()
    assert (result.stdout, result.stderr) == (f"coe {__version__}\n", "")


def test_an_unknown_command(coe: Coe) -> None:
    result = coe.run("aks", "Hi")
    assert (result.code, result.stdout) == (2, "")
    assert "aks" in result.stderr and result.stderr.count("\n") == 1 and "--help" in result.stderr


def test_models_list_is_pinned(coe: Coe) -> None:
    listed = json.loads(coe.run("models", "list", "--format", "json").check().stdout)
    assert list(listed) == ["schema_version", "models"] and listed["schema_version"] == 1
    keys = ["name", "on_disk", "size_mb", "context_length", "provider", "experts", "kv_bytes_per_token"]
    assert all(list(row)[:10] == [*keys, "duplicate_of", "default", "problem"] for row in listed["models"])
    rows = {row["name"]: row for row in listed["models"]}
    assert rows[MODEL] == {
        "name": MODEL,
        "on_disk": True,
        "size_mb": pytest.approx(108, abs=100),
        "context_length": 8192,
        "provider": "cpu",
        "experts": [],
        "kv_bytes_per_token": 2 * 30 * 3 * 64 * 4,
        "duplicate_of": [],
        "default": True,
        "problem": None,
        "hint": None,
        "runs_on": ["cpu"],
    }
    assert {name: row["kv_bytes_per_token"] for name, row in rows.items() if name.endswith("DML")} == {
        "DeepSeek-R1-Distill-Qwen-7B-DML": 57_344,
        "Qwen2.5-Coder-7B-DML": 57_344,
        "Qwen2.5-Math-7B-DML": 57_344,
        "BioMistral-7B-DML": 131_072,
        "sqlcoder-7b-2-DML": 524_288,
        "law-LLM-DML": 524_288,
    }
    assert rows["Qwen2.5-Coder-7B-DML"]["experts"] == ["python_backend", "sql_schema_architect", "html_css_specialist"]


@pytest.mark.parametrize("table_format", ["human", "csv", "md"])
def test_models_list_names_every_model(coe: Coe, table_format: str) -> None:
    result = coe.run("models", "list", "--format", table_format).check()
    assert result.stderr == "" and "\x1b" not in result.stdout
    assert all(name in result.stdout for name in (MODEL, "law-LLM-DML", "BioMistral-7B-DML"))
    if table_format == "csv":
        header, *rows = result.stdout.splitlines()
        assert header.startswith("name,on_disk,size_mb,context_length,provider,experts,kv_bytes_per_token")
        assert len(rows) == 8


def test_models_list_says_which_are_the_same_weights(bare_coe: Coe, copied_model: Path) -> None:
    shutil.copytree(copied_model, bare_coe.models / "again")
    result = bare_coe.run("models", "list").check()
    assert f"again holds the same weights as {MODEL}" in result.stderr
    rows = {r["name"]: r for r in json.loads(bare_coe.run("models", "list", "--format", "json").stdout)["models"]}
    assert rows["again"]["duplicate_of"] == [MODEL] and rows[MODEL]["duplicate_of"] == ["again"]


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        ("coe ask -m smol", {MODEL}, {"law-LLM-DML"}),
        ("coe ask --model ", {MODEL, "law-LLM-DML", "BioMistral-7B-DML"}, {"math_expert"}),
        ("coe ask -e m", {"math_expert", "medical_expert"}, {"python_backend"}),
        ("coe ask -p ", {"embedded", "minimal", "compact", "standard", "performance", "unlimited"}, set()),
        ("coe models pull B", {"BioMistral-7B-DML"}, {MODEL}),
        ("coe mod", {"models"}, {"ask"}),
    ],
)
def test_completion(coe: Coe, typed: str, offered: set[str], not_offered: set[str]) -> None:
    words = typed.split(" ")
    result = coe.run(_COE_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1))
    lines = set(result.stdout.split())
    assert offered <= lines, result.stderr
    assert not not_offered & lines


def test_completion_with_a_broken_catalog_is_silent(coe: Coe) -> None:
    (coe.config / "experts.yaml").write_text("experts: [")
    result = coe.run(_COE_COMPLETE="complete_bash", COMP_WORDS="coe ask -e ", COMP_CWORD="3")
    assert "sql_query" in result.stdout.split() and result.stderr == ""
