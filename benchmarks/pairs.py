"""Alternating runs of two commands: the ratio pair by pair holds when the machine's speed drifts."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COE = [sys.executable, "-m", "coe_cli"]


@dataclass(frozen=True)
class Pair:
    """Figures of A and B, one of each a round, in the unit of the measure."""

    a: list[float]
    b: list[float]

    @property
    def ratio(self) -> float:
        """Median of the ratios A/B, pair by pair."""
        return statistics.median(x / y for x, y in zip(self.a, self.b, strict=True))

    def row(self, name: str, unit: str, limit: str) -> str:
        """One line of a Markdown table."""
        a, b = statistics.median(self.a), statistics.median(self.b)
        ratios = [x / y for x, y in zip(self.a, self.b, strict=True)]
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        return f"| {name} | {a:.3g} {unit} | {b:.3g} {unit} | {self.ratio:.2f} | {spread} | {limit} |"


HEADER = "| measure | coe | bare | ratio | spread | limit |\n|---|---|---|---|---|---|"


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
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT, env=os.environ)
    return time.perf_counter() - begin


def first_byte_s(command: list[str]) -> float:
    """Seconds from the start of a process to its first byte on stdout; the process is then ended."""
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        elapsed = time.perf_counter() - begin
        process.kill()
    if not first:
        raise RuntimeError(f"{command} printed nothing")
    return elapsed
