"""One budget, several processes of coe: what a batch may use beside the running college and other batches.

The college gives way with what it keeps for those who might come: its idle models, those first that were idle for longest,
and no more of them than the batch can make use of. What it is at work with, and what another batch has claimed, stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Final

from msgspec import Struct

from coe_cli.core.college_status import ModelLine
from coe_cli.core.scheduler_state import ModelCost

_SPARE: Final = 1.25
"""Beside other work the scheduler admits up to high pressure, so a part as small as the need would let rows take turns; this
leaves the pressure normal (elevated begins at 0.8), with room for the few percent that a plan may be off (docs/memory.md)."""


class WorkingSet(Struct, frozen=True):
    """``least_mb`` is what a batch cannot do without, ``wanted_mb`` the most that makes it faster."""

    least_mb: float
    wanted_mb: float


class Share(Struct, frozen=True):
    """``unload`` these idle models; then others keep ``kept_mb`` and ``room_mb`` are left of the pool."""

    unload: list[str]
    kept_mb: float
    room_mb: float


def working_set(costs: Mapping[str, ModelCost], workers: int, slots: int, critical_mb: float) -> WorkingSet:
    """What a batch over ``costs`` takes with so many workers side by side, each of them with ``slots``.

    The next model is loaded beside those at work, and each model is loaded once, so more than that is of no use. One that
    does not fit into ``critical_mb`` can never run and asks for nothing.
    """
    able = [cost for cost in costs.values() if ceil(cost.need_mb()) <= critical_mb]
    full_mb = sorted((cost.need_mb(slots) for cost in able), reverse=True)
    if not able:
        return WorkingSet(0.0, 0.0)
    at_once = full_mb[: workers + 1] + full_mb[:1] * (workers - len(full_mb))  # the rest are copies
    least_mb = ceil(max(cost.need_mb() for cost in able))
    return WorkingSet(least_mb, min(critical_mb, max(least_mb, _SPARE * sum(at_once))))


def counted_mb(mb: float, its_pool_mb: float, pool_mb: float) -> float:
    """What counts against a pool of what somebody else has: a larger pool than this one is used up to the difference first.

    So several with budgets of their own stay within the largest of them.
    """
    return max(0.0, mb - max(0.0, its_pool_mb - pool_mb))


def share(
    needs: WorkingSet,
    models: Sequence[ModelLine],
    claimed_mb: float,
    *,
    high_mb: float,
    critical_mb: float,
    beyond_mb: float = 0.0,
) -> Share:
    """The part of the pool for a batch.

    ``models`` are the college's, ``claimed_mb`` what counts of others' claims; ``beyond_mb``: so much larger is the college's
    own pool. Where somebody else keeps memory, all stay below
    ``high_mb`` together, so that each can start its answers; a pool for oneself alone goes up to ``critical_mb``.
    """
    idle = sorted((line for line in models if is_idle(line)), key=lambda line: -(line.idle_s or 0.0))
    unload: list[str] = []

    def kept_mb(without: Sequence[str]) -> float:
        return claimed_mb + counted_mb(sum(held_mb(m) for m in models if m.name not in without), beyond_mb, 0.0)

    def room_mb(without: Sequence[str]) -> float:
        kept = kept_mb(without)
        return max(0.0, (high_mb if kept else critical_mb) - kept)

    for line in idle:
        if room_mb(unload) >= needs.wanted_mb:
            break
        unload.append(line.name)
    if room_mb(unload) < needs.least_mb:  # it would be of no use: what is at work has to end first
        unload = []
    for name in list(reversed(unload)):  # one that was idle for long may be small, and another have made the room alone
        without = [other for other in unload if other != name]
        if room_mb(without) >= min(needs.wanted_mb, room_mb(unload)):
            unload = without
    return Share(unload, kept_mb(unload), room_mb(unload))


def held_mb(line: ModelLine) -> float:
    """What a model of the college holds, as it is counted or as it was measured."""
    return max(line.held_mb, line.reserved_mb, line.measured_mb or 0.0)


def is_idle(line: ModelLine) -> bool:
    """Whether a model of the college has nothing to do and nobody waits for it."""
    return line.idle_s is not None and not line.running and not line.waiting
