"""Runs a benchmark: each row in a worker process of its own, from a settled memory baseline, then the swaps.

A row first fills the cache: its prompt behind ``depth`` tokens, all of it once and unmeasured. Each repeat then reads
another prompt behind the same ``depth`` tokens, which the slot still has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from msgspec import Struct, structs

from coe_cli.core.bench.bench_expected import bandwidth_share, planned_peak_bytes
from coe_cli.core.bench.bench_figures import RunFigures, run_figures, summarise
from coe_cli.core.bench.bench_grid import Point, prompt_ids
from coe_cli.core.bench.bench_rows import BenchReport, BenchRow, LoadTimes, Spread
from coe_cli.core.hardware.profile import Provider
from coe_cli.core.memory.footprint import ModelMemory
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.errors import CoeError, UsageError
from coe_cli.runtime.bench.bench_memory import RowMemory
from coe_cli.runtime.bench.bench_swap import Swaps
from coe_cli.runtime.bench.bench_worker import BenchWorker
from coe_cli.runtime.college.memory_probe import device_probe
from coe_cli.runtime.progress import OnProgress, Step

_LOAD_COST = 400
_GEN_TOKEN_COST = 8
"""Prompt tokens that take about as long as a load, and as one token of an answer: only the progress bar uses them."""


class BenchModel(Struct, frozen=True):
    """A model to measure. With a ``problem`` it cannot be opened, and each of its rows says so."""

    name: str
    provider: Provider
    points: list[Point]
    context_length: int = 0
    spec: ModelSpec | None = None
    memory: ModelMemory | None = None
    problem: CoeError | None = None


class BenchSettings(Struct, frozen=True):
    """``timeout_s`` bounds the silence of a worker; ``bandwidth_gb_per_s`` is provider → measured bandwidth."""

    repeats: int = 3
    warm_ups: int = 1
    timeout_s: float = 1800.0
    bandwidth_gb_per_s: dict[str, float | None] = {}


def run_bench(
    models: Sequence[BenchModel],
    settings: BenchSettings,
    report: BenchReport,
    on_progress: OnProgress,
    on_row: Callable[[BenchRow], None],
) -> list[CoeError]:
    """Measure every row into ``report``, then the swaps between the models that could be loaded; what failed.

    Ctrl-C ends it with what is finished.
    """
    errors: list[CoeError] = []
    progress = _Progress(models, settings, on_progress)

    def finished(row: BenchRow) -> None:
        report.rows.append(row)
        on_row(row)

    try:
        loaded = [model for model in models if _measure_model(model, settings, progress, report, errors, finished)]
        if len(loaded) > 1:
            pairs = [(m.spec, min(m.points[0].max_length, m.context_length)) for m in loaded if m.spec is not None]
            report.swaps += Swaps(pairs, settings.timeout_s).measure(settings.repeats, progress.swap)
    except KeyboardInterrupt:
        report.interrupted = True
    return errors


def _measure_model(
    model: BenchModel,
    settings: BenchSettings,
    progress: _Progress,
    report: BenchReport,
    errors: list[CoeError],
    finished: Callable[[BenchRow], None],
) -> bool:
    """Measure one model's rows; False when it cannot be loaded at all."""
    spec = model.spec
    try:
        if model.problem is not None or spec is None:
            raise model.problem or CoeError(f"`{model.name}` cannot be opened")
        progress.begin(f"{model.name}: first load", _LOAD_COST)
        with BenchWorker(settings.timeout_s) as worker:
            worker.load(spec)
            first_s = worker.load_s
    except CoeError as error:
        errors.append(error)
        for point in model.points:
            progress.skip(model, point)
            finished(_failed(model, point, settings, f"{error.code}: {error.message}"))
        return False
    loads: list[float] = []
    try:
        for point in model.points:
            try:
                row, load_s = _measure_row(model, spec, point, settings, progress, report.notes)
                loads.append(load_s)
            except CoeError as error:
                errors.append(error)
                row = _failed(model, point, settings, f"{error.code}: {error.message}")
            progress.skip(model, point)
            finished(row)
    finally:
        again = summarise(loads, 4)
        report.loads.append(
            LoadTimes(
                model=model.name,
                provider=model.provider,
                first_s=round(first_s, 4),
                repeat_s=again.median if again else None,
                repeat_range_s=again.range if again else None,
            )
        )
    return True


def _measure_row(
    model: BenchModel,
    spec: ModelSpec,
    point: Point,
    settings: BenchSettings,
    progress: _Progress,
    notes: list[str],
) -> tuple[BenchRow, float]:
    problem = point.problem(model.context_length)
    if problem is not None:
        raise UsageError(problem, "Choose shorter lengths, or a larger --max-length.")
    title = f"{model.name}: {describe(point)}"
    progress.begin(title, 0)
    with (
        contextlib.closing(RowMemory(device_probe(model.provider))) as memory,
        BenchWorker(settings.timeout_s) as worker,
    ):
        worker.load(spec, point.slots)
        memory.follow(worker.pid)
        progress.begin(title, _LOAD_COST)
        for number in range(max(settings.warm_ups, 1 if point.depth else 0)):
            worker.answer(_prompts(model, point, f"warm-up {number}"), point.gen_tokens, point.max_length)
            progress.begin(title, _warm_up_cost(point))
        runs = []
        for number in range(settings.repeats):
            prompts = _prompts(model, point, f"run {number}")
            runs.append(run_figures(worker.answer(prompts, point.gen_tokens, point.max_length)))
            progress.begin(title, _run_cost(point))
        memory.finish(worker.pid)
        load_s = worker.load_s
    if memory.peak_mb is None and memory.others is not None:
        notes.append(f"{title}: another program's memory changed meanwhile, so the peak is not known")
    return _row(model, point, settings, runs, load_s, memory), load_s


def _row(
    model: BenchModel,
    point: Point,
    settings: BenchSettings,
    runs: Sequence[RunFigures],
    load_s: float,
    memory: RowMemory,
) -> BenchRow:
    ttft, prefill, decode = (
        summarise([getattr(run, name) for run in runs], digits)
        for name, digits in (("ttft_s", 4), ("prefill_tps", 2), ("decode_tps", 2))
    )
    bandwidth = settings.bandwidth_gb_per_s.get(model.provider)
    assert model.memory is not None
    share = bandwidth_share(model.memory, point, decode.median if decode else None, bandwidth)
    return structs.replace(
        _unmeasured(model, point, len(runs)),
        load_s=round(load_s, 4),
        ttft_s=ttft.median if ttft else None,
        prefill_tps=prefill.median if prefill else None,
        decode_tps=decode.median if decode else None,
        peak_mb=None if memory.peak_mb is None else round(memory.peak_mb, 1),
        bandwidth_share=None if share is None else round(share, 4),
        spread=Spread(
            ttft_s=ttft.range if ttft else None,
            prefill_tps=prefill.range if prefill else None,
            decode_tps=decode.range if decode else None,
            others_mb=memory.others,
        ),
    )


def _failed(model: BenchModel, point: Point, settings: BenchSettings, error: str) -> BenchRow:
    return structs.replace(_unmeasured(model, point, settings.repeats), error=error)


def _unmeasured(model: BenchModel, point: Point, repeats: int) -> BenchRow:
    """A row with what is known before any run."""
    plan_mb = None if model.memory is None else round(planned_peak_bytes(model.memory, point) / BYTES_PER_MB, 1)
    return BenchRow(
        model=model.name,
        provider=model.provider,
        prompt_tokens=point.prompt_tokens,
        gen_tokens=point.gen_tokens,
        depth=point.depth,
        max_length=point.max_length,
        slots=point.slots,
        repeats=repeats,
        plan_mb=plan_mb,
    )


def _prompts(model: BenchModel, point: Point, run: str) -> list[list[int]]:
    """One prompt a slot: the slot's own ``depth`` tokens, the same in every run, and new ones behind them."""
    assert model.spec is not None
    vocabulary = model.spec.shape.vocab_size
    return [
        prompt_ids(vocabulary, point.depth, f"depth {slot}")
        + prompt_ids(vocabulary, point.prompt_tokens, f"{run}, slot {slot}")
        for slot in range(point.slots)
    ]


def describe(point: Point) -> str:
    """A point in words."""
    parts = [f"prompt {point.prompt_tokens}", f"depth {point.depth}" if point.depth else ""]
    parts += [f"context {point.max_length}", f"{point.slots} slots" if point.slots > 1 else ""]
    return ", ".join(filter(None, parts))


def _warm_up_cost(point: Point) -> int:
    return point.slots * (point.depth + point.prompt_tokens + _GEN_TOKEN_COST * point.gen_tokens)


def _run_cost(point: Point) -> int:
    return point.slots * (point.prompt_tokens + _GEN_TOKEN_COST * point.gen_tokens)


class _Progress:
    """How far the whole run is, in costs; a row that failed counts as done."""

    def __init__(self, models: Sequence[BenchModel], settings: BenchSettings, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._settings = settings
        self._done = self._before = 0
        measured = [model for model in models if model.problem is None]
        self._swaps = settings.repeats * len(measured) if len(measured) > 1 else 0
        self._total = sum(_LOAD_COST + sum(map(self._row_cost, model.points)) for model in models)
        self._total += self._swaps * _LOAD_COST

    def begin(self, stage: str, cost_done: int) -> None:
        """``stage`` goes on, after ``cost_done`` more."""
        self._done += cost_done
        self._on_progress(Step(stage, min(1.0, self._done / max(1, self._total)), 1.0))

    def swap(self, stage: str) -> None:
        self.begin(stage, _LOAD_COST)

    def skip(self, model: BenchModel, point: Point) -> None:
        """The row has ended, however far it came."""
        self._before += self._row_cost(point)
        self._done = max(self._done, self._before)

    def _row_cost(self, point: Point) -> int:
        warm_ups = max(self._settings.warm_ups, 1 if point.depth else 0)
        return _LOAD_COST + warm_ups * _warm_up_cost(point) + self._settings.repeats * _run_cost(point)
