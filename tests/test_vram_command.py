"""`coe vram plan` from outside: its JSON keys, formats, exit codes, and what it leaves unimported."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from typer.testing import CliRunner

from coe_cli.commands import vram
from coe_cli.core.memory.calibration import CalibrationRecord
from coe_cli.core.memory.footprint import ExactAccounting, ModelMemory
from coe_cli.core.models.model_spec import spec_from_catalog
from coe_cli.errors import ModelDamaged, ProfileInvalid, UsageError
from coe_cli.providers.installed import runtime_version
from coe_cli.runtime.college.costs import cost_in, slot_context
from coe_cli.runtime.folders import catalog_paths, profile_paths
from coe_cli.runtime.planning.calibration_store import CalibrationStore, model_digest
from coe_cli.runtime.settings import load_catalog, load_profiles

REPOSITORY = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.usefixtures("own_folders")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(vram.app, ["plan", *arguments])


def plan_json(*arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run("--format", "json", *arguments).stdout)
    return document


def test_json_keys_are_pinned() -> None:
    plan = plan_json("--experts", "python_backend,general_reasoner")
    assert list(plan) == [
        "schema_version", "accounting", "provider", "profile", "fixed_mb", "pool_mb", "models", "slots", "total_mb",
        "headroom_mb", "pressure", "fits", "max_slots", "max_context", "preload", "warnings",
        "max_prompt",
    ]  # fmt: skip
    assert list(plan["profile"]) == ["name", "vram_budget_mb", "max_concurrent_slots", "context_length"]
    assert list(plan["models"][0]) == [
        "name", "source", "weights_mb", "kv_bytes_per_token", "context_length", "slot_cost", "experts",
    ]  # fmt: skip
    assert list(plan["slots"][0]) == ["expert", "model", "context_length", "kv_mb", "activation_mb", "total_mb"]
    assert list(plan["pressure"]) == ["ratio", "level"]
    assert plan["schema_version"] == 1
    assert (plan["accounting"], plan["provider"], plan["fixed_mb"], plan["pool_mb"]) == ("exact", "dml", 2000, 30000)
    assert plan["models"][0]["source"] == "catalog"


@pytest.mark.parametrize(
    ("profile", "arguments", "tokens"),
    [
        ("compact", (), 2047),
        ("compact", ("--context", "8192"), 2047),
        ("compact", ("--vram-mb", "32000", "--context", "8192"), 4095),
        ("standard", (), 2047),
        ("minimal", (), 0),
        ("embedded", (), 4095),
    ],
)
def test_the_longest_prompt_is_what_the_college_takes(profile: str, arguments: tuple[str, ...], tokens: int) -> None:
    chosen = ("-p", profile, "-e", "general_reasoner", *arguments)
    plan = plan_json(*chosen)
    assert plan["max_prompt"] == tokens
    line = f"longest prompt: {tokens:,} tokens, for DirectML reads each whole"
    assert (line in run(*chosen).stdout) == (tokens > 0 and plan["provider"] == "dml")
    if not arguments and tokens:
        spec = spec_from_catalog(name := plan["models"][0]["name"], load_catalog(catalog_paths()).models[name])
        assert slot_context(spec, load_profiles(profile_paths()).select(profile)) == tokens + 1


def test_a_model_to_be_pulled_is_planned_as_pull_leaves_it() -> None:
    """On DirectML logits of 2048 tokens over 152,064 words, in fp16 and fp32, and of each shorter prompt, would take 6 GB more."""
    name = "Qwen2.5-Coder-7B-DML"
    spec = spec_from_catalog(name, load_catalog(catalog_paths()).models[name])
    pruned, whole = (
        ExactAccounting().slot(ModelMemory(spec, "dml", prunes_logits=prunes), 2048).activation_bytes / 2**20
        for prunes in (True, False)
    )
    (slot,) = plan_json("-p", "standard", "-e", "python_backend", "--slots", "1")["slots"]
    cost, context_length = cost_in(load_profiles(profile_paths()).select("standard"))(spec)
    assert context_length == 2048
    assert slot["activation_mb"] == pytest.approx(pruned, abs=1)
    assert slot["activation_mb"] == pytest.approx(cost.weights_mb - spec.weights_bytes / 2**20, abs=1), (
        "all slots share it"
    )
    assert cost.activation_mb == 0
    assert whole - pruned == pytest.approx(6141, abs=2)


@pytest.mark.parametrize(
    ("experts", "total_mb"),
    [
        ("python_backend", 10_000),
        ("python_backend,general_reasoner", 26_000),
        ("python_backend,sql_query,medical_expert", 26_000),
    ],
)
def test_guide_figures(experts: str, total_mb: int) -> None:
    assert plan_json("--accounting", "guide", "--experts", experts)["total_mb"] == total_mb


def test_exit_codes_and_the_nearest_change() -> None:
    assert run("--experts", "python_backend").exit_code == 0
    short = run("--profile", "minimal", "--vram-mb", "7000", "--format", "json")
    assert short.exit_code == 5
    plan = json.loads(short.stdout)
    assert plan["fits"] is False and plan["headroom_mb"] < 0
    assert "does_not_fit" in [warning["code"] for warning in plan["warnings"]]


@pytest.mark.parametrize(
    ("variable", "option"), [("context", "--context"), ("slots", "--slots"), ("vram", "--vram-mb")]
)
@pytest.mark.parametrize("accounting", ["exact", "formula"])
def test_solutions_are_tight(variable: str, option: str, accounting: str) -> None:
    base = ["--accounting", accounting, "--experts", "general_reasoner", "--profile", "compact"]
    plan = plan_json(*base, "--solve", variable)
    solution = plan["solution"]
    assert solution["variable"] == variable
    value, beyond = solution["value"], solution["value"] + (-1 if variable == "vram" else 1)
    if variable == "vram":  # with less memory a shorter context is planned, unless it is named
        base += ["--context", str(plan["slots"][0]["context_length"])]
    assert run(*base, option, str(value)).exit_code == 0
    assert run(*base, option, str(beyond)).exit_code == 5


def test_a_question_without_an_answer_is_0_and_exit_5() -> None:
    result = run("--profile", "minimal", "--vram-mb", "3000", "--solve", "slots", "--format", "json")
    assert json.loads(result.stdout)["solution"] == {"variable": "slots", "value": 0}
    assert result.exit_code == 5


def test_compare_puts_three_counts_side_by_side() -> None:
    rows = plan_json("--experts", "general_reasoner", "--compare")["compare"]
    assert [row["accounting"] for row in rows] == ["guide", "formula", "exact"]
    assert [row["kv_mb"] for row in rows] == [5000, 784, 112]


def folder_with_model(models: Path) -> Path:
    folder = models / "smollm2-135m"
    folder.mkdir(parents=True)
    decoder = {
        "filename": "model.onnx", "head_size": 64, "hidden_size": 576, "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3,
    }  # fmt: skip
    model = {"type": "llama", "context_length": 8192, "vocab_size": 49152, "decoder": decoder}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": {"chunk_size": 256}}))
    (folder / "model.onnx").write_bytes(b"")
    (folder / "model.onnx.data").write_bytes(bytes(100 * 2**20))
    return folder


def test_a_model_on_disk_wins_and_its_measurements_show(own_folders: Path) -> None:
    arguments = ("--profile", "embedded", "--experts", "general_reasoner")
    catalog = plan_json(*arguments)
    folder = folder_with_model(own_folders / "models")
    disk = plan_json(*arguments)
    assert (catalog["models"][0]["source"], disk["models"][0]["source"]) == ("catalog", "disk")
    assert disk["models"][0]["kv_bytes_per_token"] == 46_080
    assert disk["slots"][0]["activation_mb"] < plan_json(*arguments, "--chunk-size", "512")["slots"][0]["activation_mb"]
    store = CalibrationStore(own_folders / "state")
    version = runtime_version("cpu") or ""
    measured = CalibrationRecord(
        model_digest(folder), "cpu", version, "cpu", "load", 200 * 2**20, 250 * 2**20, 1_700_000_000.0
    )
    store.record(measured)
    assert plan_json(*arguments)["models"][0]["weights_mb"] == 250
    rows = plan_json(*arguments, "--compare")["compare"]
    assert rows[-1]["accounting"] == "measured"
    assert (rows[-1]["weights_mb"], rows[-2]["weights_mb"]) == (250, disk["models"][0]["weights_mb"])
    with store.path.open("ab") as file:
        file.write(b"garbage\nmore garbage\n")
    noisy = run(*arguments, "--format", "json")
    assert noisy.stderr.count("coe:") == 1
    assert json.loads(noisy.stdout)["models"][0]["weights_mb"] == 250


def test_where_prompts_are_read_whole_a_slot_has_the_context_that_fits() -> None:
    """DirectML takes a prompt in one run: a slot's context follows the budget, and --chunk-size is not named."""
    spec = spec_from_catalog("Qwen2.5-Coder-7B-DML", load_catalog(catalog_paths()).models["Qwen2.5-Coder-7B-DML"])
    profiles = load_profiles(profile_paths())
    compact = profiles.select("compact")
    budgets = (8_000, 10_000, 13_000, 16_000, 64_000)
    given = [structs.replace(compact, vram_budget_mb=budget, context_length=4096) for budget in budgets]
    assert [slot_context(spec, profile) for profile in given] == [512, 1024, 1024, 2048, 4096]
    on_cuda = structs.replace(spec, provider="cuda")
    assert slot_context(on_cuda, given[0]) == 4096
    warnings = plan_json("-p", "compact", "--context", "4096", "-e", "python_backend")["warnings"]
    (said,) = [warning["message"] for warning in warnings if warning["code"] == "does_not_fit"]
    assert "--context" in said and "--chunk-size" not in said


def test_one_slot_is_not_called_slots() -> None:
    text = run("--experts", "python_backend", "--vram-mb", "9130", "--context", "1024").stdout
    assert "at most 1 slot at this context" in " ".join(text.split())


def test_weights_under_two_names_are_named(own_folders: Path) -> None:
    import shutil

    catalog = own_folders / "own.yaml"
    catalog.write_text(
        "models:\n  twin:\n    provider: cpu\n    context_length: 8192\n    weights_mb: 100\n    shape: {num_hidden_layers: 30, "
        "hidden_size: 576, num_attention_heads: 9, num_key_value_heads: 3, head_size: 64, vocab_size: 49152}\n"
        "experts:\n  one: {model: twin, system_prompt: x}\n  two: {model: smollm2-135m, system_prompt: x}\n"
    )
    folder = folder_with_model(own_folders / "models")
    shutil.copytree(folder, folder.parent / "twin")
    plan = plan_json("--profile", "embedded", "--catalog", str(catalog), "--experts", "one,two")
    assert [w["code"] for w in plan["warnings"]].count("duplicate_weights") == 1


def test_csv_and_markdown_have_the_same_rows() -> None:
    rows = list(csv.DictReader(io.StringIO(run("--experts", "sql_query", "--format", "csv").stdout)))
    assert [row["part"] for row in rows] == ["fixed", "model", "slot", "total", "headroom"]
    assert rows[2]["kv_mb"] == "1024.0"
    lines = run("--experts", "sql_query", "--format", "md").stdout.splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[0].startswith("| part | name | expert |")


def test_the_human_view_shows_the_budget_as_one_bar() -> None:
    text = run("--experts", "python_backend", "--compare").stdout
    bar = next(line for line in text.splitlines() if line.startswith("["))
    assert len(bar) == 62
    assert all(glyph in bar for glyph in "▒█▓·")
    assert "fits" in text and "guide" in text


def test_the_human_view_says_what_is_not_on_disk(own_folders: Path) -> None:
    assert "not on disk yet: Qwen2.5-Coder-7B-DML\n" in run("-e", "python_backend").stdout
    folder_with_model(own_folders / "models")
    assert "not on disk" not in run("-p", "embedded").stdout


def test_mistakes_are_told_with_the_nearest_name(own_folders: Path) -> None:
    wrong = run("--experts", "python_backed")
    assert isinstance(wrong.exception, UsageError) and "python_backend" in wrong.exception.hint
    assert isinstance(run("--experts", ",").exception, UsageError)
    assert isinstance(run("--profile", "standart").exception, ProfileInvalid)
    (own_folders / "models" / "smollm2-135m").mkdir(parents=True)
    (own_folders / "models" / "smollm2-135m" / "genai_config.json").write_text("{")
    assert isinstance(run("--profile", "embedded").exception, ModelDamaged)


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys; from coe_cli.commands import vram\n"
        "try: vram.app(['plan', '--format', 'json', '--compare'], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "heavy = {'onnxruntime', 'onnxruntime_genai', 'numpy', 'torch', 'sentence_transformers', 'transformers', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["schema_version"] == 1
