"""The order of a batch's models, against every order that there is, in a pool that evicts as cleverly as can be."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from coe_cli.core.batch.batch_order import WORTH_A_REPLICA, next_turn, order_models, places

NAMES = ["a", "b", "c", "d"]
ROWS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3), max_size=4)
NEEDS = st.fixed_dictionaries({name: st.integers(1, 10) for name in NAMES})


def loads_of(sequence: tuple[str, ...], need_mb: dict[str, int], pool_mb: int) -> int:
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

    return rest(0, frozenset())


@settings(max_examples=60)
@given(ROWS, NEEDS, st.integers(1, 25))
def test_no_order_of_the_rows_needs_fewer_loads(rows: dict[str, int], need_mb: dict[str, int], pool_mb: int) -> None:
    order = order_models(rows, need_mb, pool_mb)
    planned = tuple(name for name in order for _ in range(rows[name]))
    all_rows = sorted(planned)
    cheapest = min(
        loads_of(each, need_mb, pool_mb) for each in set(itertools.islice(itertools.permutations(all_rows), 300))
    )
    assert loads_of(planned, need_mb, pool_mb) == sum(1 for count in rows.values() if count) <= cheapest


@given(ROWS, NEEDS, st.integers(1, 25))
def test_every_model_with_rows_has_one_turn(rows: dict[str, int], need_mb: dict[str, int], pool_mb: int) -> None:
    order = order_models(rows, need_mb, pool_mb)
    assert sorted(order) == sorted(name for name, count in rows.items() if count)


def test_what_fits_together_goes_together() -> None:
    rows = {"large": 9, "other": 8, "small": 2, "tiny": 1}
    order = order_models(rows, {"large": 6, "other": 6, "small": 4, "tiny": 4}, 10)
    assert order == ["large", "small", "other", "tiny"]


def test_a_model_without_a_figure_has_the_pool_to_itself() -> None:
    assert order_models({"a": 1, "b": 2, "c": 3}, {"a": 1.0}, 10.0) == ["c", "b", "a"]


@given(
    ROWS.map(lambda rows: {name: 40 * count for name, count in rows.items()}),
    NEEDS,
    st.integers(1, 25),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_places_side_by_side_load_each_model_once_and_stay_in_the_pool(
    rows: dict[str, int], need_mb: dict[str, int], pool_mb: int, most: int, chance: random.Random
) -> None:
    """Rows end in any order; every model is loaded once, but for copies of one that has many rows left."""
    left, total = dict(rows), sum(rows.values())
    order = order_models(rows, need_mb, pool_mb)
    count = places(rows, need_mb, pool_mb, most)
    held: list[str | None] = [None] * count
    loads: Counter[str] = Counter()
    while any(left.values()):
        for number in range(count):
            if held[number] is None:
                busy = [name for name in held if name is not None]
                chosen = next_turn(order, left, busy, need_mb, pool_mb, total)
                if chosen is None:
                    continue
                if chosen in busy:
                    assert left[chosen] + 1 >= WORTH_A_REPLICA * 2 and not [
                        n for n in left if left[n] and n not in busy
                    ]
                held[number] = chosen
                loads[chosen] += 1
                assert len(busy) == 0 or sum(need_mb[name] for name in [*busy, chosen]) <= pool_mb
        working = [number for number in range(count) if held[number] is not None]
        assert working, "nobody works and rows are left"
        number = chance.choice(working)
        name = held[number]
        assert name is not None
        left[name] -= left[name] > 0
        if left[name] == 0:
            held[number] = None
    assert set(loads) == {name for name, count in rows.items() if count}
    if count == 1:
        assert set(loads.values()) <= {1}


def test_even_models_need_no_copies() -> None:
    """The case of the benchmark: four models, room for two, as many rows of each."""
    rows = dict.fromkeys(NAMES, 100)
    need = dict.fromkeys(NAMES, 4.0)
    assert places(rows, need, 9.0, 2) == 2
    left = rows | {"a": 0, "b": 0, "c": 0, "d": 49}
    assert next_turn(NAMES, left, ["d"], need, 9.0, 400) is None
    assert next_turn(NAMES, left | {"d": 50}, ["d"], need, 9.0, 400) == "d"


def test_one_model_is_loaded_for_each_core_only_if_it_has_rows_for_them() -> None:
    assert places({"a": 2 * WORTH_A_REPLICA - 1}, {"a": 1.0}, 10.0, 2) == 1
    assert places({"a": 2 * WORTH_A_REPLICA}, {"a": 1.0}, 10.0, 2) == 2
    assert places({"a": 2 * WORTH_A_REPLICA}, {"a": 1.0}, 10.0, 8) == 2
    assert places({"a": 100}, {"a": 6.0}, 10.0, 2) == 1
    assert places({"a": 100, "b": 1}, {"a": 6.0, "b": 6.0}, 10.0, 2) == 1


@given(st.integers(1, 300), st.integers(1, 16), st.integers(1, 12))
def test_no_place_of_one_model_stands_empty(count: int, most: int, pool_mb: int) -> None:
    """Each place has its part of the cores for the whole batch: one that gets no worker would leave them idle."""
    need = {"a": 1.0}
    busy: list[str] = []
    left = count
    for _ in range(places({"a": count}, need, pool_mb, most)):
        chosen = next_turn(["a"], {"a": left}, busy, need, pool_mb, count)
        assert chosen == "a"
        busy.append(chosen)
        left -= 1  # each place is given one row before the next one is asked for
