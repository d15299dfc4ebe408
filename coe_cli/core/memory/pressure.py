"""Memory pressure: usage ÷ pool, in four levels."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from coe_cli.core.hardware.profile import PressureThresholds

PressureLevel = Literal["normal", "elevated", "high", "critical"]

LEVELS: Final[tuple[PressureLevel, ...]] = ("normal", "elevated", "high", "critical")
HYSTERESIS: Final = 0.02
"""A level falls back only when pressure is below its threshold less this fraction of the pool."""


class Pressure(Struct, frozen=True):
    """``ratio`` is usage ÷ pool; None when there is no pool at all."""

    ratio: float | None
    level: PressureLevel


def pressure_level(ratio: float, thresholds: PressureThresholds) -> PressureLevel:
    """The level of ``ratio`` = usage ÷ pool at one moment; the scheduler's own falls back later (``HYSTERESIS``)."""
    level = 3 if ratio > thresholds.critical else 2 if ratio >= thresholds.high else int(ratio >= thresholds.elevated)
    return LEVELS[level]


def admission_share(thresholds: PressureThresholds, *, alone: bool) -> float:
    """The share of the pool up to which the college admits: beside other work it stays below this one, ``alone`` it may reach it."""
    return thresholds.critical if alone else thresholds.high


def admits(used_mb: float, pool_mb: float, thresholds: PressureThresholds, *, alone: bool) -> bool:
    """Whether the college would admit what brings usage to ``used_mb``; ``alone``: it runs and loads nothing else."""
    most_mb = admission_share(thresholds, alone=alone) * pool_mb
    return used_mb <= most_mb if alone else used_mb < most_mb


def pressure(used_mb: float, pool_mb: float, thresholds: PressureThresholds) -> Pressure:
    """Pressure of ``used_mb`` in a pool; without a pool anything is critical."""
    if pool_mb <= 0:
        return Pressure(None, "critical")
    ratio = used_mb / pool_mb
    return Pressure(round(ratio, 4), pressure_level(ratio, thresholds))
