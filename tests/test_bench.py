"""The arithmetic of a benchmark, and how its report is written."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_cli.core.bench.bench_compare import compare, differences
from coe_cli.core.bench.bench_figures import (
    MeasuredAnswer,
    bandwidth_share,
    decode_bytes,
    own_peak_mb,
    planned_peak_bytes,
    run_figures,
    summarise,
)
from coe_cli.core.bench.bench_grid import Grid, Point, points, prompt_ids
from coe_cli.core.bench.bench_rows import (
    BenchMachine,
    BenchReport,
    BenchRow,
    LoadTimes,
    Range,
    Spread,
    SwapTime,
    decode_report,
)
from coe_cli.core.memory.footprint import ModelMemory
from coe_cli.core.models.catalog import ModelShape
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.models.onnx_graph import GraphFacts
from coe_cli.output.bench_plot import draw
from coe_cli.output.bench_view import BenchFormat, Comparison, write_report
from coe_cli.output.console import Output
from coe_cli.runtime.bench import bench_job

MACHINE = BenchMachine("Linux x86_64", "A Processor", 4, 4, 16000.0, ["A Card"], {"cpu": 20.0, "dml": None})
ROW = BenchRow(
    *("a-model", "cpu", 16, 64, 0, 4096, 1, 3),
    load_s=0.5,
    ttft_s=0.1,
    prefill_tps=160.0,
    decode_tps=50.0,
    peak_mb=300.0,
    plan_mb=310.0,
    bandwidth_share=0.4,
    spread=Spread(Range(0.09, 0.12), Range(150.0, 170.0), Range(45.0, 55.0), Range(1000.0, 1010.0)),
)
FAILED = BenchRow("b|model", "dml", 16, 64, 0, 4096, 1, 3, error="out_of_memory: no room")
REPORT = BenchReport(
    MACHINE,
    {"coe": "1", "onnxruntime-genai": "0.18.0"},
    [ROW, msgspec.structs.replace(ROW, prompt_tokens=512, depth=256, decode_tps=46.0), FAILED],
    loads=[LoadTimes("a-model", "cpu", 0.8, 0.5, Range(0.4, 0.6))],
    swaps=[SwapTime("a-model", "b|model", 3, 1.25, Range(1.2, 1.5))],
    measured_at="2026-01-01T00:00:00+00:00",
)
SHAPE = ModelShape(
    num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_size=16, vocab_size=1000
)
MODEL = ModelMemory(
    ModelSpec("a-model", "disk", "cpu", 8192, SHAPE, weights_bytes=10_000_000),
    "cpu",
    graph=GraphFacts(
        quantized_bytes=4_000_000, embedding_bytes=3_000_000, embedding_row_bytes=256, cache_element_bytes=4
    ),
)


def _written(report: BenchReport, output_format: BenchFormat, comparison: Comparison | None = None) -> str:
    stdout = io.StringIO()
    write_report(Output(stdout, io.StringIO()), report, output_format, comparison)
    return stdout.getvalue()


# The grid


def test_default_lengths_are_those_that_fit() -> None:
    assert [p.prompt_tokens for p in points(Grid(), 8192, 4096)] == [16, 512, 4096]
    assert [p.max_length for p in points(Grid(), 8192, 4096)] == [4096, 4096, 8192]
    assert [p.prompt_tokens for p in points(Grid(), 2048, 2048)] == [16, 512]
    (only,) = points(Grid(depths=(5000,)), 2048, 2048)
    assert only.problem(2048) is not None


def test_lengths_that_were_asked_for_stay_and_say_what_is_wrong() -> None:
    short, long = points(Grid(prompt_tokens=(16, 9000)), 8192, 4096)
    assert short.problem(8192) is None
    assert long.problem(8192) == "9064 tokens do not fit a max_length of 8192"
    (wide,) = points(Grid(prompt_tokens=(16,), max_lengths=(16384,)), 8192, 4096)
    assert wide.problem(8192) == "a max_length of 16384 is beyond the model's context of 8192"


@given(
    prompts=st.lists(st.integers(1, 3000), min_size=1, max_size=3, unique=True),
    depths=st.lists(st.integers(0, 3000), min_size=1, max_size=3, unique=True),
    lengths=st.none() | st.lists(st.integers(2, 9000), min_size=1, max_size=2, unique=True),
    slots=st.lists(st.integers(1, 4), min_size=1, max_size=2, unique=True),
    context=st.sampled_from([512, 2048, 8192]),
)
def test_every_combination_is_there_once(
    prompts: list[int], depths: list[int], lengths: list[int] | None, slots: list[int], context: int
) -> None:
    grid = Grid(tuple(prompts), 8, tuple(depths), tuple(lengths) if lengths else None, tuple(slots))
    found = points(grid, context, 512)
    assert len(found) == len(set(found)) == len(prompts) * len(depths) * len(lengths or [0]) * len(slots)
    for point in found:
        fits = point.tokens <= point.max_length <= context
        assert (point.problem(context) is None) == fits
        if lengths is None:
            assert fits == (point.tokens <= context)


def test_prompts_are_the_same_for_the_same_seed_and_leave_control_tokens_out() -> None:
    one = prompt_ids(49152, 200, "a")
    assert one == prompt_ids(49152, 200, "a") != prompt_ids(49152, 200, "b")
    assert all(4915 <= token < 49152 - 4915 for token in one)
    assert prompt_ids(49152, 0, "a") == []


# Figures


def test_figures_of_one_answer() -> None:
    figures = run_figures([MeasuredAnswer(10.0, (12.0, 12.5, 13.0, 13.5), 100)])
    assert (figures.ttft_s, figures.prefill_tps, figures.decode_tps) == (2.0, 50.0, 2.0)
    assert run_figures([MeasuredAnswer(10.0, (12.0,), 100)]).decode_tps is None


def test_figures_of_answers_that_wait_for_each_other() -> None:
    """The second prompt is read after the first: its first token comes later, and only then are both decoding."""
    first = MeasuredAnswer(0.0, (1.0, 2.1, 2.3, 2.5, 2.7), 100)
    second = MeasuredAnswer(1.0, (2.0, 2.2, 2.4, 2.6, 2.8), 100)
    figures = run_figures([first, second])
    assert figures.ttft_s == 1.5
    assert figures.prefill_tps == 100.0
    assert figures.decode_tps == pytest.approx(10.0)


@given(step_s=st.floats(0.001, 1.0), tokens=st.integers(2, 50), slots=st.integers(1, 4), began=st.floats(0, 1000))
def test_slots_that_take_turns_decode_at_the_rate_of_their_steps(
    step_s: float, tokens: int, slots: int, began: float
) -> None:
    answers = [
        MeasuredAnswer(began, tuple(began + step_s * (turn * slots + slot + 1) for turn in range(tokens)), 5)
        for slot in range(slots)
    ]
    decode = run_figures(answers).decode_tps
    assert decode is not None
    # The last of the slots starts last and the first ends first: the steps between are all there.
    window = (tokens - 1) * slots - (slots - 1)
    assert window == 0 or decode == pytest.approx(1 / step_s, rel=0.01 + 1 / max(1, window))


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=9), st.integers(0, 4))
def test_a_median_lies_within_its_range(values: list[float | None], digits: int) -> None:
    summary = summarise(values, digits)
    known = [value for value in values if value is not None]
    assert (summary.median is None) == (summary.range is None) == (not known)
    if summary.median is not None and summary.range is not None:
        assert summary.range.min <= summary.median <= summary.range.max
        assert summary.range.min == round(min(known), digits)


def test_memory_of_another_program_is_not_taken_for_the_models() -> None:
    assert own_peak_mb(5000.0, 1000.0, 1010.0) == 4000.0
    assert own_peak_mb(5000.0, 1000.0, 2000.0) is None, "whose 1000 MB these are is not known"


# What arithmetic expects


def test_bytes_of_a_decoded_token() -> None:
    """Weights without the embedding table, and 2 · layers · KV heads · head size · 4 bytes for each token before."""
    assert decode_bytes(MODEL, 0) == 7_000_000
    assert decode_bytes(MODEL, 1000) == 7_000_000 + 1000 * 2 * 2 * 2 * 16 * 4


def test_the_share_of_the_bandwidth() -> None:
    point = Point(prompt_tokens=900, gen_tokens=200, depth=0, max_length=2048, slots=1)
    share = bandwidth_share(MODEL, point, 100.0, 20.0)
    assert share == pytest.approx(100 * decode_bytes(MODEL, 1000) / 20e9)
    assert bandwidth_share(MODEL, point, None, 20.0) is None
    assert bandwidth_share(MODEL, point, 100.0, None) is None


@given(prompt=st.integers(1, 4000), more=st.integers(1, 4000), slots=st.integers(1, 4))
def test_more_tokens_slots_or_context_never_plan_less(prompt: int, more: int, slots: int) -> None:
    point = Point(prompt, 64, 0, 8192, slots)
    least = planned_peak_bytes(MODEL, point)
    for wider in (
        Point(prompt + more, 64, 0, 8192, slots),
        Point(prompt, 64, more, 8192, slots),
        Point(prompt, 64, 0, 16384, slots),
        Point(prompt, 64, 0, 8192, slots + 1),
    ):
        assert planned_peak_bytes(MODEL, wider) >= least


# Comparing


def test_ratios_above_one_are_better() -> None:
    faster = msgspec.structs.replace(ROW, load_s=0.25, ttft_s=0.2, prefill_tps=80.0, decode_tps=100.0, peak_mb=None)
    (ratio,) = compare([faster, FAILED], msgspec.structs.replace(REPORT, rows=[ROW]))
    assert (ratio.load_s, ratio.ttft_s, ratio.prefill_tps, ratio.decode_tps) == (2.0, 0.5, 0.5, 2.0)
    assert ratio.peak_mb is None and not ratio.lost
    assert len(ratio.complaints(0.95)) == 2 and "ttft_s is at 0.500" in ratio.complaints(0.95)[0]
    assert ratio.complaints(0.5) == []


def test_load_time_and_memory_are_shown_but_not_judged() -> None:
    heavier = msgspec.structs.replace(ROW, load_s=50.0, peak_mb=3000.0)
    (ratio,) = compare([heavier], REPORT)
    assert ratio.load_s == 0.01 and ratio.complaints(0.95) == []


def test_a_row_that_fails_now_is_worse_than_any_limit() -> None:
    lost = msgspec.structs.replace(FAILED, model="a-model", provider="cpu")
    (ratio,) = compare([lost], REPORT)
    assert ratio.lost and len(ratio.complaints(0.01)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("cpu", "Another"), ("cores", 8), ("threads", 2), ("adapters", []), ("memory_mb", 8000.0), ("memory_mb", None)],
)
def test_another_machine_is_told(field: str, value: object) -> None:
    assert differences(MACHINE, REPORT.versions, REPORT) == []
    other = msgspec.structs.replace(MACHINE, **{field: value})
    (told,) = differences(other, REPORT.versions, REPORT)
    assert told.startswith("another machine: ")


def test_other_versions_are_told_and_memory_may_differ_a_little() -> None:
    same = msgspec.structs.replace(MACHINE, memory_mb=16100.0, bandwidth_gb_per_s={})
    told = differences(same, {"coe": "2", "onnxruntime-genai": "0.18.0", "python": "3.13"}, REPORT)
    assert told == ["other versions: coe was 1 and is 2", "other versions: python was missing and is 3.13"]


# Writing


def test_a_report_comes_back_as_it_was_saved() -> None:
    assert decode_report(msgspec.json.encode(REPORT)) == REPORT
    with pytest.raises(msgspec.ValidationError, match="schema_version is 2"):
        decode_report(msgspec.json.encode(msgspec.structs.replace(REPORT, schema_version=2)))


def test_json_says_null_where_nothing_was_measured() -> None:
    failed = json.loads(_written(REPORT, BenchFormat.JSON))["rows"][2]
    assert failed["decode_tps"] is None and failed["peak_mb"] is None and failed["spread"]["ttft_s"] is None


def test_csv_has_every_figure_and_ratios_to_an_earlier_run() -> None:
    comparison = Comparison("before.json", [], compare(REPORT.rows, msgspec.structs.replace(REPORT, rows=[ROW])))
    rows = list(csv.DictReader(io.StringIO(_written(REPORT, BenchFormat.CSV, comparison))))
    assert rows[0]["decode_tps"] == "50.0" and rows[0]["decode_tps_max"] == "55.0"
    assert rows[0]["decode_tps_ratio"] == "1.000" and rows[1]["decode_tps_ratio"] == ""
    assert rows[2]["decode_tps"] == "" and rows[2]["error"] == "out_of_memory: no room"


def test_markdown_is_one_table() -> None:
    lines = _written(REPORT, BenchFormat.MD).splitlines()
    assert len(lines) == 2 + 3
    assert "50.0 (45.0–55.0)" in lines[2] and "b\\|model" in lines[4]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_human_table_keeps_its_columns_within_the_terminal(width: int) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stdout = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.setenv("TERM", "dumb")
        write_report(Output(stdout, io.StringIO()), REPORT, BenchFormat.HUMAN)
    text = stdout.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    assert "█" in text
    for part in ("A Processor", "50.0 ±10%", "unknown", "out_of_memory: no room", "first load 0.80 s", "not measured"):
        assert part in text.replace("\n", " ")


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("rows", [REPORT.rows, [FAILED], []])
def test_a_picture_is_drawn_whatever_was_measured(tmp_path: Path, suffix: str, rows: list[BenchRow]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"picture{suffix}"
    draw(msgspec.structs.replace(REPORT, rows=rows), path)
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert list(tmp_path.iterdir()) == [path]


def test_many_rows_give_a_picture_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    combinations = itertools.product((16, 512, 2048), (0, 1024), (4096, 8192), (1, 2))
    rows = [
        msgspec.structs.replace(ROW, prompt_tokens=p, depth=d, max_length=m, slots=s, peak_mb=None if s == 2 else 300.0)
        for p, d, m, s in combinations
    ]
    draw(msgspec.structs.replace(REPORT, rows=rows), tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 10_000


def test_a_machine_that_does_not_tell_its_load_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows with its performance counters disabled."""

    def refuse() -> tuple[float, float, float]:
        raise RuntimeError("PdhAddEnglishCounterW failed. Performance counters may be disabled.")

    monkeypatch.setattr("psutil.getloadavg", refuse)
    assert not any("busy" in note for note in bench_job._machine_notes())
