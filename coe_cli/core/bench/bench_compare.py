"""A benchmark beside an earlier one: ratios row by row, and what speaks against comparing the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from coe_cli.core.bench.bench_rows import BenchMachine, BenchReport, BenchRow
from coe_cli.core.names import compared_sizes, counted

RATIO_FIELDS: Final = ("load_s", "ttft_s", "prefill_tps", "decode_tps", "peak_mb")
JUDGED: Final = ("ttft_s", "prefill_tps", "decode_tps")
"""What ``--fail-below`` looks at; load times hang on the system's file cache, and memory is no speed."""
_SAME_MEMORY: Final = 0.02


class RatioRow(Struct, frozen=True):
    """One row against the same point of the earlier run; above 1 is better than before in every column.

    Rates are new ÷ old; times and memory, where less is better, old ÷ new. None where one of the two was not measured.
    ``lost`` says that the row was measured earlier and fails now.
    """

    row: BenchRow
    load_s: float | None
    ttft_s: float | None
    prefill_tps: float | None
    decode_tps: float | None
    peak_mb: float | None
    lost: bool

    def complaints(self, limit: float) -> list[str]:
        """One sentence for each judged figure that is worse than ``limit`` times the earlier one."""
        row = self.row
        slots = counted(row.slots, "slot")
        where = f"{row.model}, prompt {row.prompt_tokens}, depth {row.depth}, {row.max_length} tokens, {slots}"
        if self.lost:
            return [f"{where}: was measured earlier and fails now"]
        found = [(name, getattr(self, name)) for name in JUDGED]
        return [
            f"{where}: {name} is at {ratio:.3f} of the earlier run, below {limit:g}"
            for name, ratio in found
            if ratio is not None and ratio < limit
        ]


def compare(rows: Sequence[BenchRow], earlier: BenchReport) -> list[RatioRow]:
    """Ratios of the rows whose point was measured earlier, in the order of ``rows``."""
    old = {row.point: row for row in earlier.rows if row.error is None}
    return [_ratios(row, old[row.point]) for row in rows if row.point in old]


def differences(machine: BenchMachine, versions: dict[str, str], earlier: BenchReport) -> list[str]:
    """What is not the same as in the earlier run, one sentence each; ratios then say less."""
    other = earlier.machine
    parts = [
        (name, getattr(other, name), getattr(machine, name))
        for name in ("system", "cpu", "cores", "threads", "adapters")
        if getattr(other, name) != getattr(machine, name)
    ]
    if not _alike(other.memory_mb, machine.memory_mb):
        before, now = compared_sizes(other.memory_mb or 0, machine.memory_mb or 0)
        parts.append(("memory", before, now))
    found = [f"another machine: {name} was {_words(old)} and is {_words(new)}" for name, old, new in parts]
    for name in sorted({*versions, *earlier.versions}):
        before, now = earlier.versions.get(name, "missing"), versions.get(name, "missing")
        if before != now:
            found.append(f"other versions: {name} was {before} and is {now}")
    return found


def _ratios(row: BenchRow, old: BenchRow) -> RatioRow:
    ratios = {}
    for name in RATIO_FIELDS:
        now, before = getattr(row, name), getattr(old, name)
        ratios[name] = None if not now or not before else now / before if name.endswith("_tps") else before / now
    return RatioRow(row=row, lost=row.error is not None, **ratios)


def _alike(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= _SAME_MEMORY * max(one, other)


def _words(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
