"""`coe bench` with models that sleep known times, that fail, that are interrupted; and with the real one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import MODEL, Coe, eventually, is_gone, read_some, sleeping_model, worker_of
from operating_system import interrupt
from serving import serving

from coe_cli.package import install_command

LOAD_S, PREFILL_S, STEP_S = 0.3, 0.005, 0.03
PROMPT, GENERATED = 40, 6
QUICK = ("--prompt-tokens", "8", "--gen-tokens", "3", "-r", "1", "--warm-up", "0")

NUMBER = {"type": ["number", "null"]}
RANGE = {
    "anyOf": [
        {"type": "null"},
        {
            "type": "object",
            "properties": {"min": {"type": "number"}, "max": {"type": "number"}},
            "required": ["min", "max"],
            "additionalProperties": False,
        },
    ]
}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


INTEGER, TEXT = {"type": "integer"}, {"type": "string"}
ROW = _object(
    model=TEXT,
    provider={"enum": ["cpu", "cuda", "dml"]},
    prompt_tokens=INTEGER,
    gen_tokens=INTEGER,
    depth=INTEGER,
    max_length=INTEGER,
    slots=INTEGER,
    repeats=INTEGER,
    load_s=NUMBER,
    ttft_s=NUMBER,
    prefill_tps=NUMBER,
    decode_tps=NUMBER,
    peak_mb=NUMBER,
    plan_mb=NUMBER,
    bandwidth_share=NUMBER,
    spread=_object(ttft_s=RANGE, prefill_tps=RANGE, decode_tps=RANGE, others_mb=RANGE),
    error={"type": ["string", "null"]},
)
SCHEMA = _object(
    schema_version={"const": 1},
    measured_at=TEXT,
    machine=_object(
        system=TEXT,
        cpu=TEXT,
        cores=INTEGER,
        threads=INTEGER,
        memory_mb=NUMBER,
        adapters={"type": "array", "items": TEXT},
        bandwidth_gb_per_s={"type": "object", "additionalProperties": NUMBER},
    ),
    versions={"type": "object", "additionalProperties": TEXT, "required": ["coe", "python"]},
    rows={"type": "array", "items": ROW},
    loads={
        "type": "array",
        "items": _object(model=TEXT, provider=TEXT, first_s={"type": "number"}, repeat_s=NUMBER, repeat_range_s=RANGE),
    },
    swaps={
        "type": "array",
        "items": _object(
            from_model=TEXT,
            to_model=TEXT,
            repeats=INTEGER,
            swap_s=NUMBER,
            range_s=RANGE,
            error={"type": ["string", "null"]},
        ),
    },
    interrupted={"type": "boolean"},
    notes={"type": "array", "items": TEXT},
)
"""The contract of ``--format json`` and ``--save``."""


def report_of(coe: Coe, *arguments: str, code: int = 0) -> dict[str, Any]:
    result = coe.run("bench", *arguments, "--format", "json")
    assert result.code == code, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.mark.long
def test_no_figure_is_better_than_the_known_times_allow(sleeper: Coe) -> None:
    """Sleeps last at least as long as they were asked for, on a busy machine longer: so every bound has one side."""
    sleeping_model(sleeper, "known", load_s=LOAD_S, prefill_s_per_token=PREFILL_S, step_s=STEP_S)
    report = report_of(
        sleeper, "known", "--prompt-tokens", str(PROMPT), "--gen-tokens", str(GENERATED), "-r", "3", "--warm-up", "0"
    )
    jsonschema.validate(report, SCHEMA)
    (row,) = report["rows"]
    first_token_s = PROMPT * PREFILL_S + STEP_S
    assert row["load_s"] >= LOAD_S and report["loads"][0]["first_s"] >= LOAD_S
    assert row["ttft_s"] >= first_token_s
    assert row["prefill_tps"] <= PROMPT / first_token_s and row["decode_tps"] <= 1 / STEP_S
    assert row["prefill_tps"] == pytest.approx(PROMPT / row["ttft_s"], rel=0.02)
    assert report["loads"][0]["repeat_s"] == row["load_s"]


@pytest.mark.long
def test_depth_is_cached_and_slots_take_turns(sleeper: Coe) -> None:
    """At a depth only the prompt is read again; two slots share the steps, so that their rate together stays the same."""
    prefill_s, step_s = 0.005, 0.02
    sleeping_model(sleeper, "known", prefill_s_per_token=prefill_s, step_s=step_s)
    report = report_of(
        sleeper, *("known", "--prompt-tokens", "24", "--gen-tokens", "6", "--depth", "24"), "--slots", "1,2", "-r", "1"
    )
    one, two = report["rows"]
    assert (one["slots"], two["slots"], one["depth"]) == (1, 2, 24)
    assert 24 * prefill_s + step_s <= one["ttft_s"]
    assert two["prefill_tps"] <= 48 / (48 * prefill_s + 2 * step_s) * 1.01
    assert 0 < two["decode_tps"] <= 1 / step_s * 1.01


@pytest.mark.long
def test_a_failing_model_gives_its_rows_an_error_and_the_rest_goes_on(sleeper: Coe) -> None:
    sleeping_model(sleeper, "a-full", fail_load="CUDA out of memory")
    sleeping_model(sleeper, "b-lost", fail_generator="887A0005: the device was removed")
    sleeping_model(sleeper, "c-dead", crash_at_step=2)
    sleeping_model(sleeper, "d-fine")
    (sleeper.models / "e-torn").mkdir()
    (sleeper.models / "e-torn" / "genai_config.json").write_text("{")
    report = report_of(sleeper, *QUICK, "--prompt-tokens", "8,9000")
    jsonschema.validate(report, SCHEMA)
    errors = {row["model"]: row["error"] for row in report["rows"] if row["prompt_tokens"] == 8}
    assert errors["a-full"].startswith("out_of_memory: ")
    assert errors["b-lost"].startswith("device_lost: ") and "887A0005" in errors["b-lost"]
    assert errors["c-dead"].startswith("device_lost: ") and "41" in errors["c-dead"]
    assert errors["d-fine"] is None
    assert errors["e-torn"].startswith("model_damaged: ")
    long = next(row for row in report["rows"] if row["model"] == "d-fine" and row["prompt_tokens"] == 9000)
    assert "9003 tokens do not fit" in long["error"]
    failed = next(row for row in report["rows"] if row["model"] == "a-full")
    figures = ("load_s", "ttft_s", "prefill_tps", "decode_tps", "peak_mb", "bandwidth_share")
    assert all(failed[name] is None for name in figures)


@pytest.mark.long
def test_the_exit_code_is_the_failure_when_nothing_could_be_measured(sleeper: Coe) -> None:
    sleeping_model(sleeper, "full", fail_load="CUDA out of memory")
    result = sleeper.run("bench", "full", *QUICK)
    assert result.code == 6
    assert "out_of_memory" in result.stdout
    assert sleeper.run("bench", "nothing-of-this-name").code == 4
    assert "coe models pull" in sleeper.run("bench", MODEL).stderr


@pytest.mark.long
def test_two_models_have_swap_times_and_peaks_of_their_own(sleeper: Coe) -> None:
    """A swap holds the other model's load, a prompt of 16 tokens and the first token, not the start of its process."""
    sleeping_model(sleeper, "one", load_s=0.05, step_s=0.05, memory_mb=16)
    sleeping_model(sleeper, "two", load_s=0.35, step_s=0.05, memory_mb=316)
    report = report_of(sleeper, *QUICK)
    swaps = {(swap["from_model"], swap["to_model"]): swap["swap_s"] for swap in report["swaps"]}
    assert set(swaps) == {("one", "two"), ("two", "one")}
    assert swaps["one", "two"] >= 0.4 and swaps["two", "one"] >= 0.1
    one, two = report["rows"]
    assert two["peak_mb"] - one["peak_mb"] == pytest.approx(300, abs=25)
    assert one["spread"]["others_mb"]["min"] > 0


@pytest.mark.long
def test_against_an_earlier_run(sleeper: Coe, tmp_path: Path) -> None:
    sleeping_model(sleeper, "known", step_s=0.02)
    saved = tmp_path / "earlier.json"
    sleeper.run("bench", *QUICK, "--save", str(saved)).check()
    earlier = json.loads(saved.read_bytes())
    jsonschema.validate(earlier, SCHEMA)

    def rewrite(factor: float) -> None:
        for row in earlier["rows"]:
            row.update({name: row[name] * factor for name in ("prefill_tps", "decode_tps")})
            row["ttft_s"] /= factor
        saved.write_text(json.dumps(earlier))

    rewrite(1e-3)  # as if the machine had been a thousand times slower
    same = sleeper.run("bench", *QUICK, "--against", str(saved), "--fail-below", "0.7").check()
    assert "another machine" not in same.stderr and "other versions" not in same.stderr

    earlier["machine"]["cpu"] = "Another Processor 9000"
    earlier["versions"]["onnxruntime"] = "0.0.1"
    rewrite(1e6)
    slower = sleeper.run("bench", *QUICK, "--against", str(saved), "--fail-below", "0.7", "--format", "json")
    assert slower.code == 1 and "decode_tps is at 0.0" in slower.stderr
    assert "another machine: cpu was Another Processor 9000" in slower.stderr
    assert "other versions: onnxruntime was 0.0.1" in slower.stderr
    report = json.loads(slower.stdout)
    (ratio,) = report["against"]["ratios"]
    expected = report["rows"][0]["decode_tps"] / earlier["rows"][0]["decode_tps"]
    assert ratio["decode_tps"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fail-below", "0.9"), "--fail-below needs an earlier run"),
        (("--against", "missing.json"), "cannot be read"),
        (("--against", "text.json"), "is no benchmark"),
        (("--against", "other.json"), "no row of this run"),
        (("--prompt-tokens", "16,x"), "--prompt-tokens is `16,x`"),
        (("--depth", "-1"), "--depth is `-1`"),
        (("--slots", "0"), "--slots is `0`"),
        (("--plot", "picture.gif"), "neither .png nor .svg"),
        (("--save", "no/such/folder/file.json"), "cannot be written"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    sleeper: Coe, arguments: tuple[str, ...], message: str
) -> None:
    sleeping_model(sleeper, "known", load_s=100)
    (sleeper.folder / "text.json").write_text("[]")
    empty = {"machine": {"system": "", "cpu": "", "cores": 1, "threads": 1, "memory_mb": None, "adapters": []}}
    (sleeper.folder / "other.json").write_text(json.dumps(empty | {"versions": {}, "rows": []}))
    result = sleeper.run("bench", *QUICK, *arguments)
    assert result.code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.long
def test_an_interrupt_prints_the_finished_rows(sleeper: Coe, tmp_path: Path) -> None:
    sleeping_model(sleeper, "a-quick")
    sleeping_model(sleeper, "b-slow", step_s=50)
    saved = tmp_path / "saved.json"
    saved.write_text("as it was")
    process = sleeper.start("bench", *QUICK, "--format", "json", "--save", str(saved))
    read = b""
    while b"b-slow: prompt" not in read:
        assert process.stderr is not None
        read += read_some(process.stderr)
    worker = worker_of(process)
    interrupt(process)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 130
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    assert report["interrupted"] is True
    assert [row["model"] for row in report["rows"]] == ["a-quick"]
    assert saved.read_text() == "as it was"
    eventually(lambda: is_gone(worker))


@pytest.mark.long
def test_json_lines_come_while_it_runs(sleeper: Coe) -> None:
    sleeping_model(sleeper, "a-quick")
    sleeping_model(sleeper, "b-slow", step_s=50)
    process = sleeper.start("bench", *QUICK, "--format", "jsonl")
    read = b""
    while read.count(b"\n") < 2:
        read += read_some(process.stdout)
    head, row = map(json.loads, read.splitlines()[:2])
    assert head["type"] == "run" and head["schema_version"] == 1 and "cpu" in head["machine"]
    assert row.pop("type") == "row" and row["model"] == "a-quick"
    jsonschema.validate(row, ROW)


def test_without_matplotlib_one_line_says_what_to_install(sleeper: Coe, tmp_path: Path) -> None:
    """Before the run starts: this model would load for longer than the test may take."""
    sleeping_model(sleeper, "known", load_s=1000)
    hook = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n, *a: None if n == 'matplotlib' else find(n, *a)"
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(hook)
    path = os.pathsep.join([str(tmp_path / "without"), sleeper.environment["PYTHONPATH"]])
    result = sleeper.run("bench", *QUICK, "--plot", "picture.png", PYTHONPATH=path)
    assert result.code == 2
    assert install_command("plot") in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.long
def test_the_real_model_beside_a_running_college(coe: Coe) -> None:
    with serving(coe):
        result = coe.run(
            *("bench", MODEL, "--prompt-tokens", "48", "--gen-tokens", "6", "--depth", "0,32", "-r", "2"),
            *("--max-length", "512", "--format", "json", "--plot", "picture.svg"),
        ).check()
    assert "a college is running" in result.stderr
    report = json.loads(result.stdout)
    jsonschema.validate(report, SCHEMA)
    assert [(row["prompt_tokens"], row["depth"]) for row in report["rows"]] == [(48, 0), (48, 32)]
    for row in report["rows"]:
        assert row["error"] is None and row["max_length"] == 512
        figures = ("load_s", "ttft_s", "prefill_tps", "decode_tps", "peak_mb", "plan_mb", "bandwidth_share")
        assert all(row[name] > 0 for name in figures)
        assert row["plan_mb"] == pytest.approx(row["peak_mb"], rel=0.2)
        for name in ("ttft_s", "prefill_tps", "decode_tps"):
            assert row["spread"][name]["min"] <= row[name] <= row["spread"][name]["max"]
    assert report["machine"]["bandwidth_gb_per_s"]["cpu"] > 0
    assert (coe.folder / "picture.svg").read_bytes().startswith(b"<?xml")
