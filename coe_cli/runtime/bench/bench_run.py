"""Runs a benchmark: each row in a worker process of its own, from a settled memory baseline, then the swaps.

A row first fills the cache: its prompt behind ``depth`` tokens, all of it once and unmeasured. Each repeat then reads
another prompt behind the same ``depth`` tokens, which the slot still has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from msgspec import Struct, structs

from coe_cli.core.bench.bench_figures import RunFigures, bandwidth_share, planned_peak_bytes, run_figures, summarise
from coe_cli.core.bench.bench_grid import Grid, Point, prompt_ids
from coe_cli.core.bench.bench_rows import BenchReport, BenchRow, LoadTimes, Spread
from coe_cli.core.hardware.profile import Provider
from coe_cli.core.memory.footprint import ModelMemory
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.errors import CoeError, UsageError
from coe_cli.runtime.bench.bench_memory import RowMemory
from coe_cli.runtime.bench.bench_worker import BenchWorker, Swaps
from coe_cli.runtime.college.memory_probe import device_probe
from coe_cli.runtime.progress import OnProgress, Step

_LOAD_COST = 400
_GEN_TOKEN_COST = 8
"""Prompt tokens that take about as long as a load, and as one token of an answer: only the progress bar uses them."""


class BenchRequest(Struct, frozen=True):
    """What was asked for; no names stand for every model on disk. ``timeout_s`` bounds the silence of a worker."""

    names: tuple[str, ...] = ()
    grid: Grid = Grid()
    repeats: int = 3
    warm_ups: int = 1
    provider: Provider | None = None
    timeout_s: float = 1800.0


class BenchModel(Struct, frozen=True):
    """A model to measure. With a ``problem`` it cannot be opened, and each of its rows says so."""

    name: str
    provider: Provider
    points: list[Point]
    context_length: int = 0
    spec: ModelSpec | None = None
    memory: ModelMemory | None = None
    problem: CoeError | None = None

    def row(self, point: Point, repeats: int) -> BenchRow:
        """A row with what is known before any run."""
        plan_mb = None if self.memory is None else round(planned_peak_bytes(self.memory, point) / BYTES_PER_MB, 1)
        return BenchRow(self.name, self.provider, repeats=repeats, plan_mb=plan_mb, **structs.asdict(point))


def run_bench(
    models: Sequence[BenchModel],
    request: BenchRequest,
    report: BenchReport,
    on_progress: OnProgress,
    on_row: Callable[[BenchRow], None],
) -> list[CoeError]:
    """Measure every row into ``report``, then the swaps between the models that could be loaded; what failed.

    Ctrl-C ends it with what is finished.
    """
    bench = _Bench(request, report, _Progress(models, request, on_progress), on_row)
    try:
        loaded = [model for model in models if bench.measure(model)]
        if len(loaded) > 1:
            pairs = [(m.spec, min(m.points[0].max_length, m.context_length)) for m in loaded if m.spec is not None]
            report.swaps += Swaps(pairs, request.timeout_s).measure(request.repeats, bench.progress.swap)
    except KeyboardInterrupt:
        report.interrupted = True
    return bench.errors


class _Bench:
    """One run; ``errors`` are those of rows and of models that cannot be loaded."""

    def __init__(
        self, request: BenchRequest, report: BenchReport, progress: _Progress, on_row: Callable[[BenchRow], None]
    ) -> None:
        self._request, self._report, self.progress, self._on_row = request, report, progress, on_row
        self.errors: list[CoeError] = []

    def measure(self, model: BenchModel) -> bool:
        """Measure one model's rows; False when it cannot be loaded at all."""
        spec = model.spec
        try:
            if model.problem is not None or spec is None:
                raise model.problem or CoeError(f"`{model.name}` cannot be opened")
            self.progress.begin(f"{model.name}: first load", _LOAD_COST)
            with BenchWorker(self._request.timeout_s) as worker:
                worker.load(spec)
                first_s = worker.load_s
        except CoeError as error:
            self.errors.append(error)
            for point in model.points:
                self._finish(point, self._failed(model, point, error))
            return False
        loads: list[float] = []
        try:
            for point in model.points:
                try:
                    row, load_s = self._row(model, spec, point)
                    loads.append(load_s)
                except CoeError as error:
                    self.errors.append(error)
                    row = self._failed(model, point, error)
                self._finish(point, row)
        finally:
            again = summarise(loads, 4)
            self._report.loads.append(
                LoadTimes(model.name, model.provider, round(first_s, 4), again.median, again.range)
            )
        return True

    def _finish(self, point: Point, row: BenchRow) -> None:
        self.progress.skip(point)
        self._report.rows.append(row)
        self._on_row(row)

    def _failed(self, model: BenchModel, point: Point, error: CoeError) -> BenchRow:
        return structs.replace(model.row(point, self._request.repeats), error=f"{error.code}: {error.message}")

    def _row(self, model: BenchModel, spec: ModelSpec, point: Point) -> tuple[BenchRow, float]:
        """The row, and the seconds of its load."""
        problem = point.problem(model.context_length)
        if problem is not None:
            raise UsageError(problem, "Choose shorter lengths, or a larger --max-length.")
        request, progress, title = self._request, self.progress, f"{model.name}: {describe(point)}"
        progress.begin(title, 0)
        with (
            contextlib.closing(RowMemory(device_probe(model.provider))) as memory,
            BenchWorker(request.timeout_s) as worker,
        ):
            worker.load(spec, point.slots, point.max_length)
            memory.follow(worker.pid)
            progress.begin(title, _LOAD_COST)
            for number in range(_warm_ups(request, point)):
                worker.answer(_prompts(spec, point, f"warm-up {number}"), point.gen_tokens, point.max_length)
                progress.begin(title, _warm_up_cost(point))
            runs = []
            for number in range(request.repeats):
                prompts = _prompts(spec, point, f"run {number}")
                runs.append(run_figures(worker.answer(prompts, point.gen_tokens, point.max_length)))
                progress.begin(title, _run_cost(point))
            memory.finish(worker.pid)
            load_s = worker.load_s
        if memory.peak_mb is None and memory.others is not None:
            self._report.notes.append(f"{title}: another program's memory changed meanwhile, so the peak is not known")
        return self._measured(model, point, runs, load_s, memory), load_s

    def _measured(
        self, model: BenchModel, point: Point, runs: Sequence[RunFigures], load_s: float, memory: RowMemory
    ) -> BenchRow:
        figures = {
            name: summarise([getattr(run, name) for run in runs], digits)
            for name, digits in (("ttft_s", 4), ("prefill_tps", 2), ("decode_tps", 2))
        }
        bandwidth = self._report.machine.bandwidth_gb_per_s.get(model.provider)
        assert model.memory is not None
        share = bandwidth_share(model.memory, point, figures["decode_tps"].median, bandwidth)
        return structs.replace(
            model.row(point, len(runs)),
            load_s=round(load_s, 4),
            **{name: figure.median for name, figure in figures.items()},
            peak_mb=None if memory.peak_mb is None else round(memory.peak_mb, 1),
            bandwidth_share=None if share is None else round(share, 4),
            spread=Spread(**{name: figure.range for name, figure in figures.items()}, others_mb=memory.others),
        )


def _prompts(spec: ModelSpec, point: Point, run: str) -> list[list[int]]:
    """One prompt a slot: the slot's own ``depth`` tokens, the same in every run, and new ones behind them."""
    vocabulary = spec.shape.vocab_size
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


def _warm_ups(request: BenchRequest, point: Point) -> int:
    return max(request.warm_ups, 1 if point.depth else 0)


def _warm_up_cost(point: Point) -> int:
    return _run_cost(point) + point.slots * point.depth


def _run_cost(point: Point) -> int:
    return point.slots * (point.prompt_tokens + _GEN_TOKEN_COST * point.gen_tokens)


class _Progress:
    """How far the whole run is, in costs; a row that failed counts as done."""

    def __init__(self, models: Sequence[BenchModel], request: BenchRequest, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._request = request
        self._done = self._before = 0
        measured = sum(model.problem is None for model in models)
        swaps = request.repeats * measured if measured > 1 else 0
        self._total = sum(_LOAD_COST + sum(map(self._row_cost, model.points)) for model in models) + swaps * _LOAD_COST

    def begin(self, stage: str, cost_done: int) -> None:
        """``stage`` goes on, after ``cost_done`` more."""
        self._done += cost_done
        self._on_progress(Step(stage, min(1.0, self._done / max(1, self._total)), 1.0))

    def swap(self, stage: str) -> None:
        self.begin(stage, _LOAD_COST)

    def skip(self, point: Point) -> None:
        """The row has ended, however far it came."""
        self._before += self._row_cost(point)
        self._done = max(self._done, self._before)

    def _row_cost(self, point: Point) -> int:
        warm_ups = _warm_ups(self._request, point) * _warm_up_cost(point)
        return _LOAD_COST + warm_ups + self._request.repeats * _run_cost(point)
