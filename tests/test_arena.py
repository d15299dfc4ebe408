"""The simulated arena against the allocator's rules, and in random use: nothing overlaps, nothing is lost."""

from __future__ import annotations

import itertools

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from coe_cli.core.models.model_spec import BYTES_PER_MB as MB
from coe_cli.core.providers._arena import Arena, _Chunk
from coe_cli.core.providers._cuda_arenas import reserved_bytes


def regions_mb(*sizes: int) -> list[int]:
    arena = Arena()
    for size in sizes:
        arena.allocate(size)
    return [region // MB for region in arena.region_bytes]


@pytest.mark.parametrize(
    ("sizes", "regions"),
    [
        ([1], [1]),
        ([MB, MB], [1, 2]),
        ([8 * MB] * 2, [8, 8]),  # a region that had to grow does not double the next one
        ([8 * MB] * 3, [8, 8, 16]),
        ([32768, *[8 * MB] * 56], [1, 8, 8, 16, 32, 64, 128, 256]),  # 8192 tokens of DeepSeek's cache, as logged
        ([32768, *[64 * MB] * 64], [1, 64, 64, 128, 256, 512, 1024, 1024, 1024]),  # and of sqlcoder's
        ([1500 * MB, 1, 1], [2048]),  # beyond 1 GB for one request, the rest of it serves the next ones
        ([1500 * MB, 600 * MB, 600 * MB], [2048, 2048]),
    ],
)
def test_regions_double_up_to_a_gigabyte(sizes: list[int], regions: list[int]) -> None:
    assert regions_mb(*sizes) == regions


def test_a_chunk_is_split_only_when_half_of_it_or_128_mb_would_be_wasted() -> None:
    arena = Arena()
    arena.allocate(MB // 2 + 256)  # takes the whole first region
    arena.allocate(256)
    assert [region // MB for region in arena.region_bytes] == [1, 2]
    arena = Arena()
    arena.allocate(300 * MB)  # 512, of which 212 would be wasted
    arena.allocate(200 * MB)
    assert [region // MB for region in arena.region_bytes] == [512]


def test_freed_neighbours_join_when_the_run_ends_and_not_before() -> None:
    arena = Arena()
    arena.free(arena.allocate(500 * MB))
    used = arena.allocate(100 * MB, in_run=True)
    arena.free(used)
    assert arena.total_bytes == 512 * MB
    arena.allocate(450 * MB, in_run=True)  # 100 used and 412 unused lie side by side and do not join
    assert arena.total_bytes == 2 * 512 * MB
    arena = Arena()
    arena.free(arena.allocate(500 * MB))
    arena.free(arena.allocate(100 * MB, in_run=True))
    arena.end_run()
    arena.allocate(450 * MB, in_run=True)
    assert arena.total_bytes == 512 * MB


@settings(max_examples=examples(100))
@given(st.lists(st.tuples(st.integers(0, 3 * MB), st.booleans(), st.integers(0, 9)), max_size=60))
def test_random_use_never_overlaps_and_ends_empty(steps: list[tuple[int, bool, int]]) -> None:
    arena = Arena()
    held: list[_Chunk] = []
    for size, in_run, pick in steps:
        if pick < 3 and held:
            arena.free(held.pop(pick % len(held)))
        elif pick == 9:
            arena.end_run()
        else:
            chunk = arena.allocate(size, in_run=in_run)
            if chunk is not None:
                held.append(chunk)
        spans = sorted((c.place[0], c.place[1], c.place[1] + c.size) for c in held)
        assert all(a[0] != b[0] or a[2] <= b[1] for a, b in itertools.pairwise(spans))
        assert all(end <= arena.region_bytes[region] for region, _, end in spans)
        assert sum(c.size for c in held) <= arena.total_bytes
    for chunk in held:
        arena.free(chunk)
    arena.end_run()
    taken = arena.total_bytes
    for region in list(arena.region_bytes):
        arena.allocate(region)
    assert arena.total_bytes == taken


@pytest.mark.parametrize(
    ("sizes", "reserved"),
    [
        ([], 0),
        ([0], 0),
        ([MB + 1], 2 * MB),
        ([33_947_648], 34 * MB),
        ([MB, MB], 2 * MB),
        ([MB, MB, MB], 4 * MB),
        ([7168] * 57, 2 * MB),
    ],
)
def test_weights_take_whole_pages_and_small_ones_share_one(sizes: list[int], reserved: int) -> None:
    assert reserved_bytes(sizes) == reserved
