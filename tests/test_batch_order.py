"""The order of a batch's models, against every order that there is, in a pool that evicts as cleverly as can be."""

from __future__ import annotations

import functools
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from coe_cli.core.batch_order import fewest_loads, order_models

NAMES = ["a", "b", "c", "d"]
ROWS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3), max_size=4)
NEEDS = st.fixed_dictionaries({name: st.integers(1, 10) for name in NAMES})


def loads_of(sequence: tuple[str, ...], need_mb: dict[str, int], pool_mb: int, resident: frozenset[str]) -> int:
    """The fewest loads for rows in this very order: every choice of what to evict is tried."""

    @functools.cache
    def rest(position: int, held: frozenset[str]) -> int:
        if position == len(sequence):
            return 0
        wanted = sequence[position]
        if wanted in held:
            return rest(position + 1, held)
        best = len(sequence) + 1
        for count in range(len(held) + 1):
            for kept in itertools.combinations(sorted(held), count):
                if sum(need_mb[name] for name in kept) + need_mb[wanted] <= pool_mb or not kept:
                    best = min(best, 1 + rest(position + 1, frozenset(kept) | {wanted}))
        return best

    return rest(0, resident)


@settings(max_examples=60, deadline=None)
@given(ROWS, NEEDS, st.integers(1, 25), st.frozensets(st.sampled_from(NAMES), max_size=2))
def test_no_order_of_the_rows_needs_fewer_loads(
    rows: dict[str, int], need_mb: dict[str, int], pool_mb: int, resident: frozenset[str]
) -> None:
    order = order_models(rows, need_mb, pool_mb, sorted(resident))
    planned = tuple(name for name in order for _ in range(rows[name]))
    all_rows = sorted(planned)
    cheapest = min(
        loads_of(each, need_mb, pool_mb, resident)
        for each in set(itertools.islice(itertools.permutations(all_rows), 300))
    )
    assert loads_of(planned, need_mb, pool_mb, resident) == fewest_loads(rows, resident) <= cheapest


@given(ROWS, NEEDS, st.integers(1, 25), st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
def test_every_model_with_rows_has_one_turn(
    rows: dict[str, int], need_mb: dict[str, int], pool_mb: int, resident: list[str]
) -> None:
    order = order_models(rows, need_mb, pool_mb, resident)
    assert sorted(order) == sorted(name for name, count in rows.items() if count)
    asked = [name for name in resident if rows.get(name)]
    assert order[: len(asked)] == asked


def test_what_fits_together_goes_together() -> None:
    rows = {"large": 9, "other": 8, "small": 2, "tiny": 1}
    order = order_models(rows, {"large": 6, "other": 6, "small": 4, "tiny": 4}, 10)
    assert order == ["large", "small", "other", "tiny"]


def test_a_model_without_a_figure_has_the_pool_to_itself() -> None:
    assert order_models({"a": 1, "b": 2, "c": 3}, {"a": 1.0}, 10.0) == ["c", "b", "a"]
