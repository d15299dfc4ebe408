"""What real runs measured, and how the next plan uses it: keys, merging, applying. The clock is the caller's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, structs

from coe_cli.core.memory.footprint import ModelMemory
from coe_cli.core.memory.prefill import CHUNK_TOKENS
from coe_cli.core.models.model_spec import BYTES_PER_MB

RECORD_VERSION: Final = 2
"""Since 2 predictions count prompts as workers read them, in chunks; shorter prompts are the same in 1."""
NEWEST_KEPT: Final = 5
_TRUSTED_RATIO: Final = (0.25, 4.0)

_Bytes = Annotated[int, Meta(ge=0, le=2**50)]


class CalibrationKey(Struct, frozen=True):
    """What a measurement holds for: these weights, on this provider, with this runtime, on this adapter."""

    model_digest: str
    provider: str
    runtime_version: str
    adapter: str


class CalibrationRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """One real load, or one real generation. Sizes in bytes, ``at_s`` in seconds since 1970.

    A load's figures are what the model holds before any prompt; a generation's are cache and activations together, at
    their peak.
    """

    model_digest: str
    provider: str
    runtime_version: str
    adapter: str
    kind: Literal["load", "generation"]
    predicted_bytes: _Bytes
    measured_bytes: _Bytes
    at_s: Annotated[float, Meta(ge=0)]
    context_length: Annotated[int, Meta(ge=0)] = 0
    prompt_tokens: Annotated[int, Meta(ge=0)] = 0
    version: Literal[1, 2] = RECORD_VERSION

    @property
    def key(self) -> CalibrationKey:
        return CalibrationKey(self.model_digest, self.provider, self.runtime_version, self.adapter)


class Calibration(Struct, frozen=True):
    """The merged measurements of one key; None where there are none. ``error`` is predicted ÷ measured − 1."""

    key: CalibrationKey
    load_bytes: int | None
    slot_ratio: float | None
    error: float | None
    newest_at_s: float
    records: int


def merge(records: Iterable[CalibrationRecord]) -> dict[CalibrationKey, Calibration]:
    """Medians of the newest five loads and five generations of each key; records out of all proportion are left out."""
    by_key: dict[CalibrationKey, list[CalibrationRecord]] = {}
    for record in records:
        if _plausible(record):
            by_key.setdefault(record.key, []).append(record)
    return {key: _merge_one(key, found) for key, found in by_key.items()}


def find(
    calibrations: dict[CalibrationKey, Calibration],
    model_digest: str,
    provider: str,
    runtime_version: str | None = None,
) -> Calibration | None:
    """The newest calibration of a model on a provider; the version must agree where it is known."""
    fitting = [
        item
        for key, item in calibrations.items()
        if key.model_digest == model_digest
        and key.provider == provider
        and runtime_version in (None, key.runtime_version)
    ]
    return max(fitting, key=lambda item: item.newest_at_s, default=None)


def apply(model: ModelMemory, calibration: Calibration | None) -> ModelMemory:
    """``model`` with the measured figures in place of the computed ones."""
    if calibration is None:
        return model
    return structs.replace(
        model, measured_load_bytes=calibration.load_bytes, measured_slot_ratio=calibration.slot_ratio
    )


def _merge_one(key: CalibrationKey, records: list[CalibrationRecord]) -> Calibration:
    ordered = sorted(records, key=lambda record: record.at_s)
    loads = [record for record in ordered if record.kind == "load"][-NEWEST_KEPT:]
    runs = [record for record in ordered if record.kind == "generation"][-NEWEST_KEPT:]
    recent = loads + runs
    return Calibration(
        key=key,
        load_bytes=round(_median(record.measured_bytes for record in loads)) if loads else None,
        slot_ratio=_median(record.measured_bytes / record.predicted_bytes for record in runs) if runs else None,
        error=_median(record.predicted_bytes / record.measured_bytes - 1 for record in recent) if recent else None,
        newest_at_s=ordered[-1].at_s,
        records=len(ordered),
    )


def _median(values: Iterable[float]) -> float:
    """The middle of ``values``, which are not empty; the statistics module would double a plan's start-up time."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _plausible(record: CalibrationRecord) -> bool:
    if record.measured_bytes < BYTES_PER_MB or record.predicted_bytes < BYTES_PER_MB:
        return False
    if record.version == 1 and record.prompt_tokens > CHUNK_TOKENS:
        return False
    return _TRUSTED_RATIO[0] <= record.measured_bytes / record.predicted_bytes <= _TRUSTED_RATIO[1]
