"""What the benchmarks share: alternating runs of two things, whose ratio holds when the machine's speed drifts, and tables."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COE = [sys.executable, "-m", "coe_cli"]
MODEL = "smollm2-135m"
"""The embedded model, which `coe models pull smollm2-135m` fetches."""


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""As on a user's machine, where Python keeps the bytecode of what it has compiled."""


@dataclass(frozen=True)
class Pair:
    """Figures of A and B, one of each a round, in the unit of the measure."""

    a: list[float]
    b: list[float]

    @property
    def ratio(self) -> float:
        """Median of the ratios A/B, pair by pair."""
        return statistics.median(x / y for x, y in zip(self.a, self.b, strict=True))

    def cells(self, name: str, unit: str, limit: str) -> list[str]:
        """One line for ``print_table`` under ``COLUMNS``: medians, the ratio and its range."""
        a, b = statistics.median(self.a), statistics.median(self.b)
        ratios = [x / y for x, y in zip(self.a, self.b, strict=True)]
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        return [name, f"{a:.3g} {unit}", f"{b:.3g} {unit}", f"{self.ratio:.2f}", spread, limit]

    def difference_cells(self, name: str, limit: str) -> list[str]:
        """The same of times in seconds that are compared by their difference, in milliseconds."""
        extra = [(x - y) * 1000 for x, y in zip(self.a, self.b, strict=True)]
        a, b = (statistics.median(values) * 1000 for values in (self.a, self.b))
        spread = f"{min(extra):+.0f} to {max(extra):+.0f} ms"
        return [name, f"{a:.0f} ms", f"{b:.0f} ms", f"{statistics.median(extra):+.0f} ms", spread, limit]


COLUMNS = ("measure", "coe", "bare", "ratio", "spread", "limit")
"""Titles over the cells of a ``Pair``."""


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A Markdown table on stdout; on stderr where and when it was measured, for the text around it."""
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    sys.stderr.write(f"{measured_where()}\n")


def measured_where() -> str:
    """Date, processor, system and versions in one line."""
    sys.path.insert(0, str(ROOT))
    from coe_cli.runtime.bench.bench_machine import read_machine, read_versions

    machine = read_machine({})
    versions = ", ".join(f"{name} {version}" for name, version in read_versions().items() if name != "system")
    gpus = f", {', '.join(machine.adapters)}" if machine.adapters else ""
    return f"Measured {date.today()} on {machine.cores} cores of {machine.cpu}{gpus}, {machine.system}, {versions}"


def alternate(a: Callable[[], float], b: Callable[[], float], rounds: int) -> Pair:
    """Run a and b in turn, after one run of each that does not count; the order changes every round."""
    a(), b()
    first, second = [], []
    for number in range(rounds):
        if number % 2:
            y, x = b(), a()
        else:
            x, y = a(), b()
        first.append(x)
        second.append(y)
    return Pair(first, second)


def wall_s(command: list[str]) -> float:
    """Seconds of a whole process with its output thrown away."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT)
    return time.perf_counter() - begin


def first_byte_s(command: list[str]) -> float:
    """Seconds from the start of a process to its first byte on stdout; the process is then ended."""
    begin = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        elapsed = time.perf_counter() - begin
        process.kill()
    if not first:
        raise RuntimeError(f"{command} printed nothing")
    return elapsed
