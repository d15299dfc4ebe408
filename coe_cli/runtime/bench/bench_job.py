"""One `coe bench` from what was asked to the report: models opened, bandwidth measured, rows run, the file saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec
import psutil
from msgspec import structs

from coe_cli.core.bench.bench_compare import compare
from coe_cli.core.bench.bench_grid import points
from coe_cli.core.bench.bench_rows import BenchReport, BenchRow, decode_report
from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.models.catalog import Catalog
from coe_cli.errors import CoeError, ModelMissing, UsageError
from coe_cli.runtime.atomic_write import written_out
from coe_cli.runtime.bench.bench_machine import measure_bandwidth, read_machine, read_versions
from coe_cli.runtime.bench.bench_run import BenchModel, BenchRequest, run_bench
from coe_cli.runtime.college.costs import slot_context
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.planning.plan_inputs import memory_of
from coe_cli.runtime.progress import OnProgress, Step
from coe_cli.runtime.regular_file import read_regular
from coe_cli.runtime.store.model_store import folder_of, open_model

_BUSY = 0.5
"""Share of the cores that others keep busy, from which on figures are doubtful."""
_UNKNOWN_CONTEXT = 2**30
_MAX_REPORT_BYTES = 64 * 2**20


class BenchJob:
    """Opens the models at once, so that whatever is wrong with the request shows before anything runs.

    Raises:
        ModelMissing: a model is not on disk, or none is.
    """

    def __init__(self, request: BenchRequest, profile: HardwareProfile, catalog: Catalog, models_dir: Path) -> None:
        names = request.names or tuple(models_on_disk(models_dir))
        if not names:
            raise ModelMissing("no model is on disk", f"Fetch one: coe models pull {catalog.default_model}")
        self._request = request
        self.notes = _machine_notes()
        self.errors: list[CoeError] = []
        self.models = [_open(name, request, profile, catalog, models_dir) for name in dict.fromkeys(names)]

    def check_comparable(self, earlier: BenchReport) -> None:
        """See to it that the run has something to be compared with.

        Raises:
            UsageError: no row of this run was measured in the earlier one.
        """
        if not compare([model.row(point, 0) for model in self.models for point in model.points], earlier):
            raise UsageError(
                "no row of this run is in the file to compare with",
                "Measure the same models at the same --prompt-tokens, --gen-tokens, --depth, --max-length and --slots.",
            )

    def run(
        self, on_progress: OnProgress, on_start: Callable[[BenchReport], None], on_row: Callable[[BenchRow], None]
    ) -> BenchReport:
        """Measure; ``on_start`` is given the report when it has no rows yet. An interrupt ends it with what is finished."""
        providers = sorted({model.provider for model in self.models if model.problem is None})
        report = BenchReport(read_machine({}), read_versions(), [], measured_at=_now(), notes=[*self.notes])
        try:
            on_progress(Step("memory bandwidth", 0.0, 1.0))
            measured = {provider: measure_bandwidth(provider) for provider in providers}
        except KeyboardInterrupt:
            report.interrupted = True
            return report
        report.machine = read_machine({provider: value for provider, (value, _) in measured.items()})
        report.notes += [reason for _, reason in measured.values() if reason]
        on_start(report)
        self.errors = run_bench(self.models, self._request, report, on_progress, on_row)
        return report


def read_report(path: Path) -> BenchReport:
    """A report that `--save` wrote.

    Raises:
        UsageError: it cannot be read or is something else.
    """
    try:
        return decode_report(read_regular(path, _MAX_REPORT_BYTES))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Name a file that `--save` wrote.") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{path} is no benchmark of coe: {error}", "Name a file that `--save` wrote.") from None


def check_writable(path: Path) -> None:
    """See to it before the run that ``path`` can be written.

    Raises:
        UsageError: its folder is missing or not writable.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written", "Name a file in a folder that exists and is yours.")


def save_report(report: BenchReport, path: Path) -> None:
    """Write the report as JSON; a file has it whole or not at all.

    Raises:
        UsageError: the system refuses.
    """
    try:
        with written_out(path) as target:
            target.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "Name another file.") from None


def _open(name: str, request: BenchRequest, profile: HardwareProfile, catalog: Catalog, models_dir: Path) -> BenchModel:
    folder = folder_of(name, catalog, models_dir)
    try:
        spec = open_model(name, folder)
        spec = structs.replace(spec, provider=request.provider or spec.provider)
        memory = memory_of(spec, spec.provider)
    except CoeError as error:
        known = points(request.grid, _UNKNOWN_CONTEXT, profile.context_length)
        return BenchModel(name, request.provider or profile.provider, known, problem=error)
    measured = points(request.grid, spec.context_length, slot_context(spec, profile))
    return BenchModel(name, spec.provider, measured, spec.context_length, spec, memory)


def _machine_notes() -> list[str]:
    """What a running college and other programs may do to the figures."""
    from coe_cli.runtime.server.running_college import college_on, kept

    status = college_on()
    notes = []
    if status.pid is not None:
        keeps = kept(status) or "a college is running"
        notes.append(f"{keeps}: its memory counts as another program's, and its work slows this; `coe stop` ends it")
    load, cores = _load(), psutil.cpu_count() or 1
    if load > _BUSY * cores:
        notes.append(f"the machine is busy (load {load:.1f} on {cores} cores): rates are lower than they would be")
    return notes


def _load() -> float:
    """Programs that want to run, of the last minute; 0 where Windows' performance counters are disabled."""
    try:
        return psutil.getloadavg()[0]
    except (OSError, RuntimeError):
        return 0.0


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
