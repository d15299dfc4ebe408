"""The order in which a batch takes up its models: each is loaded once, and as many as fit stay beside one another.

All rows of a model are run in one go, so no model need ever come back. What is resident already comes first, before
anything is loaded in its place. Among the rest, those that fit beside the one before go together: the next one loads
while the last rows of the one before are written, and nothing is evicted for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def order_models(
    rows: Mapping[str, int], need_mb: Mapping[str, float], pool_mb: float, resident: Collection[str] = ()
) -> list[str]:
    """The models of ``rows`` (model → rows to run) in the order to run them.

    ``need_mb``: weights and one slot of each; a model without a figure counts as filling the pool. ``resident`` are
    loaded already; their order is kept.
    """
    order = [name for name in resident if rows.get(name)]
    waiting = sorted((name for name in rows if rows[name] and name not in order), key=lambda name: (-rows[name], name))
    held_mb = sum(need_mb.get(name, pool_mb) for name in resident)
    while waiting:
        chosen = next((name for name in waiting if held_mb + need_mb.get(name, pool_mb) <= pool_mb), None)
        if chosen is None:
            held_mb = need_mb.get(order[-1], pool_mb) if order else 0.0
            chosen = next((name for name in waiting if held_mb + need_mb.get(name, pool_mb) <= pool_mb), waiting[0])
        waiting.remove(chosen)
        order.append(chosen)
        held_mb += need_mb.get(chosen, pool_mb)
    return order


def fewest_loads(rows: Mapping[str, int], resident: Collection[str] = ()) -> int:
    """The fewest loads with which every row of ``rows`` can be run, whatever the budget."""
    return sum(1 for name, count in rows.items() if count and name not in resident)
