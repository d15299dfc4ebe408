"""Which model a batch takes up next, so that each is loaded once and no place stands empty that could be used.

All rows of a model are run in one go, so no model need ever come back: that is the fewest loads that there can be. On a
graphics card one model at a time has all slots. On the CPU several workers with a part of the cores each write more than
one with all of them, so there models stand side by side, each in a place of its own; only when every model has had its
turn does a place take a second worker of a model that still has many rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WORTH_A_REPLICA = 6
"""Rows that must be left for each worker of a model before another replica is loaded for them (docs/performance.md)..."""
REPLICA_SHARE = 8
"""...and the model must have more than this part of what the batch had to run."""


def order_models(rows: Mapping[str, int], need_mb: Mapping[str, float], pool_mb: float) -> list[str]:
    """The models of ``rows`` (model → rows to run) in the order to run them.

    ``need_mb``: weights and one slot of each; a model without a figure counts as filling the pool. First the model with
    the most rows, and after it what fits beside it: it can be loaded while the last rows of the one before are written.
    """
    order: list[str] = []
    waiting = sorted((name for name in rows if rows[name]), key=lambda name: (-rows[name], name))
    held_mb = 0.0
    while waiting:
        chosen = next((name for name in waiting if held_mb + need_mb.get(name, pool_mb) <= pool_mb), None)
        if chosen is None:
            held_mb = need_mb.get(order[-1], pool_mb) if order else 0.0
            chosen = next((name for name in waiting if held_mb + need_mb.get(name, pool_mb) <= pool_mb), waiting[0])
        waiting.remove(chosen)
        order.append(chosen)
        held_mb += need_mb.get(chosen, pool_mb)
    return order


def next_turn(
    order: Sequence[str],
    rows: Mapping[str, int],
    busy: Sequence[str],
    need_mb: Mapping[str, float],
    pool_mb: float,
    total: int,
) -> str | None:
    """The model for a place that has become free, or None if it has to stand empty for now.

    ``order`` are the models as ``order_models`` gave them, ``rows`` those that nobody has taken yet, ``busy`` the models
    of the other places (a model with two workers twice). A busy model is given again only when no other is left, a second
    copy fits, and it has ``WORTH_A_REPLICA`` rows for each of its workers, the row that each runs among them, and a good part
    of ``total``, all rows of the batch.
    """
    held_mb = sum(need_mb.get(name, pool_mb) for name in busy)

    def fits(name: str) -> bool:
        return not busy or held_mb + need_mb.get(name, pool_mb) <= pool_mb

    fresh = [name for name in order if rows.get(name) and name not in busy]
    if fresh:
        return next((name for name in fresh if fits(name)), None)
    many = [
        name
        for name in dict.fromkeys(busy)
        if rows.get(name, 0) >= max(WORTH_A_REPLICA * (busy.count(name) + 1) - busy.count(name), total / REPLICA_SHARE)
    ]
    return max((name for name in many if fits(name)), key=lambda name: rows[name], default=None)


def places(rows: Mapping[str, int], need_mb: Mapping[str, float], pool_mb: float, most: int) -> int:
    """How many workers can always stand side by side, at most ``most``: however large the models that meet are.

    There are ``WORTH_A_REPLICA`` rows for each, so that none has a part of the cores and nothing to do; a batch with few
    rows gets one worker, which then has all cores to itself.
    """
    most = min(most, sum(rows.values()) // WORTH_A_REPLICA)
    needs = sorted((need_mb.get(name, pool_mb) for name, count in rows.items() if count), reverse=True)
    if len(needs) == 1:
        needs *= most
    count = 1
    while count < min(most, len(needs)) and sum(needs[: count + 1]) <= pool_mb:
        count += 1
    return count
