"""Device memory of one model under CUDA: what a load reserves, and how far two arenas grow for caches and prompts.

ONNX Runtime GenAI 0.18 keeps two arenas (`arena.Arena`): the session's, for the tensors of a running graph and its
kernels' scratch, and its own, for caches, logits and sampling. Which tensors a graph holds at once follows from ONNX
Runtime's allocation planner: a dead tensor's buffer is used again by the next one of its shape, so a decoder holds four
tensors of the hidden size, one of the attention's input and three of the MLP's, from the first layer to the last. The
order of allocations was checked against the log of a real card (ONNX Runtime 1.31.1; docs/memory.md says how well).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from msgspec import Struct

from coe_cli.core.providers._arena import Arena
from coe_cli.core.units import BYTES_PER_MB

LIBRARIES_BYTES: Final = 150 * BYTES_PER_MB
"""cuBLAS, cuDNN and kernels that a session loads, in use beyond the bare CUDA context; 149 to 150 MB on an H100."""

PAGE_BYTES: Final = 2 * BYTES_PER_MB
"""cudaMalloc hands out physical memory in pages of 2 MB; allocations up to 1 MB share a page."""

GEMV_TOKENS: Final = 16
"""Up to so many tokens a quantised matrix is multiplied as it is; beyond, it is dequantised to scratch first."""

WHOLE_DEQUANTIZED_BYTES: Final = 256 * BYTES_PER_MB
CHUNKED_ROWS: Final = 32768
"""A matrix of more than twice these rows that would take more than 256 MB is dequantised in chunks of so many rows."""

SAMPLING_BYTES_PER_WORD: Final = 36.105
SAMPLING_BYTES: Final = 24_477
"""OGA's sampling buffer, a line through the two vocabularies that were measured: 32016 and 152064 words."""

STEPS_PER_OCTAVE: Final = 8
SIMULATED_SLOTS: Final = 16


class Decoder(Struct, frozen=True):
    """The sizes that matter: widths in elements of ``element_bytes``; ``chunk_size`` 0 means that prompts run whole."""

    layers: int
    hidden: int
    attention: int
    qkv: int
    inner: int
    heads: int
    vocab: int
    cache_width: int
    element_bytes: int
    prunes_logits: bool
    chunk_size: int = 0

    def dequantized_bytes(self, rows: int, columns: int) -> int:
        """Scratch for one matrix of ``rows`` outputs and ``columns`` inputs."""
        whole = rows * columns * self.element_bytes
        if whole > WHOLE_DEQUANTIZED_BYTES and rows > 2 * CHUNKED_ROWS:
            return CHUNKED_ROWS * columns * self.element_bytes
        return whole


def reserved_bytes(sizes: Iterable[int]) -> int:
    """What tensors of ``sizes`` take when each is a cudaMalloc of its own, as worker sessions load weights."""
    whole = shared = 0
    for size in sizes:
        if size > BYTES_PER_MB:
            whole += -(-size // PAGE_BYTES) * PAGE_BYTES
        elif size > 0:
            shared += PAGE_BYTES // max(1, PAGE_BYTES // (-(-size // 512) * 512))
    return whole + -(-shared // PAGE_BYTES) * PAGE_BYTES


def arenas_bytes(decoder: Decoder, context_length: int, prompt_tokens: int) -> int:
    """Both arenas after one slot of ``context_length`` read one prompt and began to write, in a fresh process."""
    return _session_bytes(decoder, prompt_tokens) + _own_bytes(decoder, context_length, prompt_tokens, 1)[-1]


def worst_arenas_bytes(decoder: Decoder, context_length: int, slots: int = 1) -> int:
    """Both arenas with ``slots`` slots, for the worst of all contexts and prompts up to ``context_length``.

    An arena does not always grow with what is asked of it; this bound does, so that answers about it are monotone. It is
    taken over eight lengths an octave.
    """
    simulated = min(slots, SIMULATED_SLOTS)
    return _worst_bytes(decoder, context_length, simulated) + (slots - simulated) * cache_bytes(decoder, context_length)


@lru_cache(maxsize=4096)
def _worst_bytes(decoder: Decoder, context_length: int, slots: int) -> int:
    longest = min(context_length, decoder.chunk_size or context_length)
    prompts = [*_lengths_to(longest), *([2 * longest] if longest < context_length else [])]
    session = max(_session_bytes(decoder, tokens) for tokens in prompts)
    at_once = 1 << (slots - 1).bit_length()
    return session + max(
        _own_bytes(decoder, length, length, at_once)[slots - 1] for length in _lengths_to(context_length)
    )


@lru_cache(maxsize=4096)
def paged_arenas_bytes(decoder: Decoder, tokens: int) -> int:
    """Both arenas with one paged cache of ``tokens`` for all slots, for the worst of all such caches up to it.

    It is allocated as one generator's of that context would be, and a run has the tokens of a chunk at most, of all slots together.
    The session's arena doubles once more than with GroupQueryAttention (docs/memory.md).
    """
    chunk = decoder.chunk_size or tokens
    session = max(_session_bytes(decoder, length) for length in _lengths_to(min(tokens, chunk)))
    return 2 * session + max(_own_bytes(decoder, length, min(length, chunk), 1)[-1] for length in _lengths_to(tokens))


def cache_bytes(decoder: Decoder, context_length: int) -> int:
    return 2 * decoder.layers * decoder.cache_width * decoder.element_bytes * context_length


def _lengths_to(length: int) -> Iterable[int]:
    """1 to 8, then eight lengths an octave, up to the first that is not below ``length``."""
    at = 1
    while True:
        yield at
        if at >= length:
            return
        at += max(1, (1 << at.bit_length()) // (2 * STEPS_PER_OCTAVE))


@lru_cache(maxsize=4096)
def _session_bytes(decoder: Decoder, prompt_tokens: int) -> int:
    arena = Arena()
    arena.allocate(1024)
    chunk = decoder.chunk_size or prompt_tokens
    chunks = [min(chunk, prompt_tokens - start) for start in range(0, prompt_tokens, chunk)]
    # The later chunks of a prompt are alike: three tell as much as all.
    for number, tokens in enumerate([*chunks[:2], *chunks[2:][-1:]]):
        if number:
            _run_again(arena, decoder, tokens)
        else:
            _run(arena, decoder, tokens)
    _run(arena, decoder, 1)
    return arena.total_bytes


def _run(arena: Arena, decoder: Decoder, tokens: int) -> None:
    """One run of the graph over ``tokens`` new tokens: the first layer opens the buffers that the others use again."""
    width = tokens * decoder.element_bytes
    held = [arena.allocate(8, in_run=True) for _ in range(4)]

    def hold(size: int) -> None:
        held.append(arena.allocate(size, in_run=True))

    def multiply(rows: int, columns: int) -> None:
        if tokens > GEMV_TOKENS:
            arena.free(arena.allocate(decoder.dequantized_bytes(rows, columns), in_run=True))

    d = decoder
    hold(d.hidden * width)
    hold(d.hidden * width)
    hold(d.qkv * width)
    multiply(d.qkv, d.hidden)
    _attend(arena, d, tokens)
    hold(d.hidden * width)
    multiply(d.hidden, d.attention)
    hold(d.hidden * width)
    hold(d.inner * width)
    multiply(d.inner, d.hidden)
    hold(d.inner * width)
    multiply(d.inner, d.hidden)
    hold(d.inner * width)
    multiply(d.hidden, d.inner)
    if d.layers > 1:
        _layer_scratch(arena, d, tokens)
    for chunk in held[6:7] + held[9:]:
        arena.free(chunk)
    if not d.prunes_logits:
        multiply(d.vocab, d.hidden)
    for chunk in held[:6] + held[7:9]:
        arena.free(chunk)
    arena.end_run()


def _run_again(arena: Arena, decoder: Decoder, tokens: int) -> None:
    """A run of shapes that were run before: ONNX Runtime takes all buffers as one block (its memory pattern)."""
    d = decoder
    block = (4 * d.hidden + d.qkv + 3 * d.inner) * tokens * d.element_bytes
    held = [arena.allocate(8, in_run=True) for _ in range(4)]
    held.append(arena.allocate(block, in_run=True))
    _layer_scratch(arena, d, tokens)
    if not d.prunes_logits and tokens > GEMV_TOKENS:
        arena.free(arena.allocate(d.dequantized_bytes(d.vocab, d.hidden), in_run=True))
    for chunk in held:
        arena.free(chunk)
    arena.end_run()


def _layer_scratch(arena: Arena, decoder: Decoder, tokens: int) -> None:
    d = decoder
    matrices = [(d.qkv, d.hidden), (d.hidden, d.attention), *[(d.inner, d.hidden)] * 2, (d.hidden, d.inner)]
    for number, (rows, columns) in enumerate(matrices):
        if number == 1:
            _attend(arena, d, tokens)
        if tokens > GEMV_TOKENS:
            arena.free(arena.allocate(d.dequantized_bytes(rows, columns), in_run=True))


def _attend(arena: Arena, decoder: Decoder, tokens: int) -> None:
    """Scratch of flash attention: lengths, the softmax's sums, and the queries with their rotation."""
    scratch = [
        arena.allocate(12, in_run=True),
        arena.allocate(4 * tokens * decoder.heads, in_run=True),
        arena.allocate(tokens * decoder.attention * decoder.element_bytes, in_run=True),
    ]
    for chunk in reversed(scratch):
        arena.free(chunk)


@lru_cache(maxsize=4096)
def _own_bytes(decoder: Decoder, context_length: int, prompt_tokens: int, slots: int) -> list[int]:
    """OGA's arena with one slot more each time, up to ``slots``: caches, logits of a prompt, sampling."""
    arena = Arena()
    totals = []
    d = decoder
    tensor = d.cache_width * d.element_bytes * context_length
    step = d.vocab * d.element_bytes
    for _ in range(slots):
        for size in (4 * context_length, *[4] * 4, *[tensor] * (2 * d.layers)):
            arena.allocate(size)
        chunk = d.chunk_size or prompt_tokens
        logits = None
        for start in range(0, prompt_tokens, chunk):
            tokens = min(chunk, prompt_tokens - start)
            inputs = [arena.allocate(8 * tokens), arena.allocate(8 * prompt_tokens)]
            new = arena.allocate(step * (1 if d.prunes_logits else tokens))
            arena.free(logits)
            logits = new
            for item in inputs:
                arena.free(item)
        if not d.prunes_logits:
            arena.allocate(step)
        arena.allocate(4 * d.vocab)
        arena.allocate(round(SAMPLING_BYTES_PER_WORD * d.vocab) + SAMPLING_BYTES)
        if not d.prunes_logits:
            arena.allocate(step)
            arena.free(logits)
        totals.append(arena.total_bytes)
    return totals
