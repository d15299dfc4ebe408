"""ONNX Runtime's arena allocator, simulated: how much device memory a sequence of allocations and frees makes it take.

The rules are those of onnxruntime's ``BFCArena`` (core/framework/bfc_arena.cc) with the configuration that it logs for
CUDA: sizes are rounded up to 256 bytes; the smallest free chunk that is large enough is taken; it is split when it is at
least twice as large as asked or 128 MB would be wasted; and when nothing fits, a region is added whose size doubles from
1 MB up to 1 GB, or further when one request is larger. A freed chunk joins its free neighbours in the same region, but
during a run only those that were used in that run or only those that were not: chunks are tagged with the stream that
used them until the run ends. No region is ever given back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

from coe_cli.core.units import BYTES_PER_MB

UNIT_BYTES: Final = 256
FIRST_REGION_BYTES: Final = BYTES_PER_MB
LARGEST_DOUBLED_REGION_BYTES: Final = 1024 * BYTES_PER_MB
MOST_WASTED_BYTES: Final = 128 * BYTES_PER_MB


class _Chunk:
    """A piece of a region; ``place`` orders chunks of one size by address, the newest region last."""

    __slots__ = ("after", "before", "free", "place", "size", "used_in_run")

    def __init__(self, size: int, place: tuple[int, int]) -> None:
        self.size = size
        self.place = place
        self.free = True
        self.used_in_run = False
        self.before: _Chunk | None = None
        self.after: _Chunk | None = None


class Arena:
    """One arena. ``region_bytes`` lists the regions it has taken, in order; their sum is what the device has in use."""

    def __init__(self) -> None:
        self.region_bytes: list[int] = []
        self._next_region_bytes = FIRST_REGION_BYTES
        self._free: list[tuple[int, tuple[int, int]]] = []
        self._chunks: dict[tuple[int, int], _Chunk] = {}

    @property
    def total_bytes(self) -> int:
        return sum(self.region_bytes)

    def allocate(self, size_bytes: int, *, in_run: bool = False) -> _Chunk | None:
        """A chunk for ``size_bytes``, to be given back with ``free``; None for 0 bytes, which take nothing.

        ``in_run`` says that a kernel or tensor of a running graph asks, until ``end_run``.
        """
        if size_bytes <= 0:
            return None
        asked = -(-size_bytes // UNIT_BYTES) * UNIT_BYTES
        index = bisect_left(self._free, (asked, (-1, -1)))
        if index == len(self._free):
            self._extend(asked)
            index = bisect_left(self._free, (asked, (-1, -1)))
        chunk = self._chunks[self._free.pop(index)[1]]
        if chunk.size >= 2 * asked or chunk.size - asked >= MOST_WASTED_BYTES:
            self._split(chunk, asked)
        chunk.free = False
        chunk.used_in_run = chunk.used_in_run or in_run
        return chunk

    def free(self, chunk: _Chunk | None) -> None:
        """Give a chunk back."""
        if chunk is not None:
            chunk.free = True
            self._list_joined(chunk)

    def end_run(self) -> None:
        """The graph has run: its chunks lose their tags, so that all free neighbours join."""
        for chunk in self._chunks.values():
            chunk.used_in_run = False
        for chunk in sorted((c for c in self._chunks.values() if c.free), key=lambda c: c.place):
            if self._chunks.get(chunk.place) is chunk:
                self._unlist(chunk)
                self._list_joined(chunk)

    def _list_joined(self, chunk: _Chunk) -> None:
        after, before = chunk.after, chunk.before
        if after is not None and after.free and after.used_in_run == chunk.used_in_run:
            self._unlist(after)
            self._append(chunk, after)
        if before is not None and before.free and before.used_in_run == chunk.used_in_run:
            self._unlist(before)
            self._append(before, chunk)
            chunk = before
        insort(self._free, (chunk.size, chunk.place))

    def _extend(self, asked: int) -> None:
        if asked > self._next_region_bytes:
            while asked > self._next_region_bytes:
                self._next_region_bytes *= 2
            size = self._next_region_bytes
        else:
            size = self._next_region_bytes
            doubled = 2 * self._next_region_bytes
            self._next_region_bytes = min(doubled, LARGEST_DOUBLED_REGION_BYTES)
        chunk = _Chunk(size, (len(self.region_bytes), 0))
        self.region_bytes.append(size)
        self._chunks[chunk.place] = chunk
        insort(self._free, (size, chunk.place))

    def _split(self, chunk: _Chunk, asked: int) -> None:
        rest = _Chunk(chunk.size - asked, (chunk.place[0], chunk.place[1] + asked))
        rest.before, rest.after, rest.used_in_run = chunk, chunk.after, chunk.used_in_run
        if chunk.after is not None:
            chunk.after.before = rest
        chunk.after = rest
        chunk.size = asked
        self._chunks[rest.place] = rest
        insort(self._free, (rest.size, rest.place))

    def _append(self, chunk: _Chunk, gone: _Chunk) -> None:
        """``gone``, which follows ``chunk``, becomes part of it."""
        chunk.size += gone.size
        chunk.after = gone.after
        if gone.after is not None:
            gone.after.before = chunk
        del self._chunks[gone.place]

    def _unlist(self, chunk: _Chunk) -> None:
        self._free.pop(bisect_left(self._free, (chunk.size, chunk.place)))
