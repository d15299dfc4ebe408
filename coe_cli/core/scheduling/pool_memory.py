"""The memory pool: what coe's models hold, what is measured, and how close to the budget that is.

All figures are MB (2**20 bytes) of the pool, which is the budget less its fixed part.

- ``held_mb``: weights of every model that is loading, loaded or being evicted, and every slot that was opened since its load.
  An idle one counts too: no provider's worker gives a slot's memory back before its process ends (docs/memory.md).
- ``measured_mb``: the last measurement plus what was put on the device since; other programs count. -inf when unknown.
- ``lost_mb``: memory that an eviction should have given back and did not; it counts as used until measured to be back.
"""

from __future__ import annotations

import math
from enum import IntEnum

from coe_cli.core.hardware.profile import PressureThresholds
from coe_cli.core.memory.pressure import HYSTERESIS, admits


class Level(IntEnum):
    """Pressure levels: elevated and high from their threshold on, critical above its own (docs/scheduling.md)."""

    NORMAL = 0
    ELEVATED = 1
    HIGH = 2
    CRITICAL = 3


class PoolMemory:
    """The pool's ledger and its pressure level. Pure arithmetic; the scheduler decides what to do about it."""

    __slots__ = (
        "_fall_mb",
        "_load_floor_mb",
        "_lower_mb",
        "_rise_mb",
        "_thresholds",
        "_upper_mb",
        "critical_mb",
        "elevated_mb",
        "held_mb",
        "level",
        "lost_mb",
        "measured_mb",
        "pool_mb",
    )

    def __init__(self, pool_mb: float, thresholds: PressureThresholds) -> None:
        self.pool_mb, self._thresholds = pool_mb, thresholds
        self.elevated_mb = thresholds.elevated * pool_mb
        self.critical_mb = thresholds.critical * pool_mb
        self.held_mb = 0.0
        self.lost_mb = 0.0
        self.measured_mb = -math.inf
        self.level = Level.NORMAL
        self._load_floor_mb = -math.inf
        # usage below _fall_mb[level] leaves the level downwards, usage from _rise_mb[level] on leaves it upwards
        self._fall_mb = (
            -math.inf,
            (thresholds.elevated - HYSTERESIS) * pool_mb,
            (thresholds.high - HYSTERESIS) * pool_mb,
            (thresholds.critical - HYSTERESIS) * pool_mb,
        )
        self._rise_mb = (
            self.elevated_mb,
            thresholds.high * pool_mb,
            math.nextafter(self.critical_mb, math.inf),
            math.inf,
        )
        self._lower_mb, self._upper_mb = self._fall_mb[0], self._rise_mb[0]

    @property
    def usage_mb(self) -> float:
        """The larger of what models hold (with what is lost) and measured."""
        return max(self.held_mb + self.lost_mb, self.measured_mb)

    @property
    def external_mb(self) -> float:
        """Memory that is not this pool's to give back: other programs, or a shortfall."""
        return max(self.lost_mb, self.measured_mb - self.held_mb, 0.0)

    def refresh(self) -> bool:
        """Bring ``level`` up to date; True when it changed."""
        usage_mb = self.usage_mb
        if self._lower_mb <= usage_mb < self._upper_mb:
            return False
        level = int(self.level)
        while usage_mb >= self._rise_mb[level]:
            level += 1
        while usage_mb < self._fall_mb[level]:
            level -= 1
        self.level = Level(level)
        self._lower_mb, self._upper_mb = self._fall_mb[level], self._rise_mb[level]
        return True

    def fits(self, new_mb: float, *, alone: bool, freed_mb: float = 0.0) -> bool:
        """Whether ``new_mb`` more may be put on the device; a slot that is open already brings none.

        Beside other work the projected usage must stay below high. When coe runs and loads nothing (``alone``) there is
        nothing to wait for, so it may go up to critical, which it never passes. ``freed_mb``: after evicting so much.
        """
        usage_mb = self.usage_mb - freed_mb
        barred = Level.CRITICAL if alone else Level.HIGH
        if self.level >= barred and usage_mb >= self._fall_mb[barred]:
            return False
        return admits(usage_mb + new_mb, self.pool_mb, self._thresholds, alone=alone)

    def fits_normal(self, need_mb: float) -> bool:
        """Whether ``need_mb`` more leaves the level normal."""
        return self.level is Level.NORMAL and self.usage_mb + need_mb < self.elevated_mb

    def could_fit(self, need_mb: float) -> bool:
        """Whether ``need_mb`` would fit with all of coe's own models gone, as far as is known now."""
        if self.measured_mb <= self.held_mb and not self.lost_mb:
            return need_mb <= self.critical_mb
        external_mb = self.external_mb
        if self.level is Level.CRITICAL and external_mb >= self._fall_mb[Level.CRITICAL]:
            return False
        return external_mb + need_mb <= self.critical_mb

    def place(self, mb: float, *, loading: bool = False) -> None:
        """``mb`` is about to be allocated on the device; a measurement in mid-load must not make it forgotten."""
        self.held_mb += mb
        self.measured_mb += mb
        if loading:
            self._load_floor_mb = self.measured_mb
        else:
            self._load_floor_mb += mb

    def load_ended(self) -> None:
        self._load_floor_mb = -math.inf

    def remove(self, held_mb: float, used_mb: float | None) -> None:
        """A model's process is gone; without a measurement all of its memory is taken to be back."""
        self.held_mb -= held_mb
        self._load_floor_mb -= held_mb
        if used_mb is not None:
            self.measure(used_mb)
        elif self.measured_mb >= 0:
            self.measured_mb = max(0.0, self.measured_mb - held_mb)

    def measure(self, used_mb: float) -> None:
        self.measured_mb = max(used_mb, self._load_floor_mb)

    def lose(self, mb: float) -> None:
        self.lost_mb += mb

    def settle_lost(self, used_mb: float) -> float:
        """A measurement with no load or eviction under way: what it does not show is back. MB that came back."""
        before_mb = self.lost_mb
        self.lost_mb = min(before_mb, max(0.0, used_mb - self.held_mb))
        return before_mb - self.lost_mb
