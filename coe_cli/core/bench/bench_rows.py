"""What `coe bench` reports: the JSON contract, rows of medians with their spread. A figure that was not measured is None."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from coe_cli.core.hardware.profile import Provider

SCHEMA_VERSION: Final = 1


class Range(Struct, frozen=True):
    """The least and the most of a row's repeats."""

    min: float
    max: float


class Spread(Struct, frozen=True):
    """Range of each figure over the repeats. ``others_mb``: memory of other programs before and after the row."""

    ttft_s: Range | None = None
    prefill_tps: Range | None = None
    decode_tps: Range | None = None
    others_mb: Range | None = None


class BenchRow(Struct, frozen=True):
    """One model at one point of the grid, in a process of its own; figures are medians of ``repeats`` runs.

    The prompt of ``prompt_tokens`` is read behind ``depth`` tokens that are in the cache already; then ``gen_tokens`` are
    written. Times in seconds, rates in tokens/s (of all ``slots`` together), memory in MB of 2**20 bytes. ``load_s`` is a
    load that is not the model's first one; ``bandwidth_share`` is the part of the device's memory bandwidth that decode uses.
    """

    model: str
    provider: Provider
    prompt_tokens: int
    gen_tokens: int
    depth: int
    max_length: int
    slots: int
    repeats: int
    load_s: float | None = None
    ttft_s: float | None = None
    prefill_tps: float | None = None
    decode_tps: float | None = None
    peak_mb: float | None = None
    plan_mb: float | None = None
    bandwidth_share: float | None = None
    spread: Spread = Spread()
    error: str | None = None

    @property
    def point(self) -> tuple[str, str, int, int, int, int, int]:
        """What was measured: rows of two runs with the same point can be compared."""
        return (self.model, self.provider, self.prompt_tokens, self.gen_tokens, self.depth, self.max_length, self.slots)

    @property
    def decode_depth(self) -> int:
        """Tokens in the cache when decoding begins."""
        return self.depth + self.prompt_tokens


ROW_FIELDS: Final = BenchRow.__struct_fields__


class LoadTimes(Struct, frozen=True):
    """Seconds from the load's request to a model that is ready, in a new process each time.

    ``first_s`` is the first load of this run: the files may have been in the system's cache before it.
    """

    model: str
    provider: Provider
    first_s: float
    repeat_s: float | None = None
    repeat_range_s: Range | None = None


class SwapTime(Struct, frozen=True):
    """Seconds from ending the loaded model's process to the first token of the other one, median of ``repeats``.

    The other one's process has started before, as the college keeps one ready.
    """

    from_model: str
    to_model: str
    repeats: int
    swap_s: float | None = None
    range_s: Range | None = None
    error: str | None = None


class BenchMachine(Struct, frozen=True):
    """Where it ran. ``bandwidth_gb_per_s``: provider → 10**9 bytes/s of a copy in this run, None where not measured."""

    system: str
    cpu: str
    cores: int
    threads: int
    memory_mb: float | None
    adapters: list[str]
    bandwidth_gb_per_s: dict[str, float | None] = {}


class BenchReport(Struct):
    """The whole run, as far as it is. ``measured_at`` is ISO 8601; ``interrupted`` says that rows are missing at the end."""

    machine: BenchMachine
    versions: dict[str, str]
    rows: list[BenchRow]
    loads: list[LoadTimes] = []
    swaps: list[SwapTime] = []
    measured_at: str = ""
    interrupted: bool = False
    notes: list[str] = []
    schema_version: int = SCHEMA_VERSION


def decode_report(data: bytes) -> BenchReport:
    """A report that was saved.

    Raises:
        msgspec.MsgspecError: not a report of this schema version.
    """
    report = msgspec.json.decode(data, type=BenchReport)
    if report.schema_version != SCHEMA_VERSION:
        raise msgspec.ValidationError(f"schema_version is {report.schema_version}, {SCHEMA_VERSION} is understood")
    return report
