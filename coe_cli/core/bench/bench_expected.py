"""What arithmetic says of a benchmark's row: the memory it should take, and the decode rate that memory bandwidth allows."""

from __future__ import annotations

from coe_cli.core.bench.bench_grid import Point
from coe_cli.core.memory.footprint import (
    ModelMemory,
    activation_bytes,
    kv_cache_bytes,
    load_bytes,
    load_peak_bytes,
)


def planned_peak_bytes(model: ModelMemory, point: Point) -> int:
    """The most memory that the row's process should hold, by the exact accounting of ``coe vram plan``.

    Every slot has its cache; a worker reads one prompt at a time, so activations count once. A row has several repeats, so
    what the arena gains with other lengths counts too.
    """
    cache = point.slots * kv_cache_bytes(model, point.max_length)
    tokens = point.depth + point.prompt_tokens
    activation = activation_bytes(model, point.max_length, tokens)
    return max(
        load_bytes(model) + cache + activation + model.on.kept_bytes(model, tokens),
        load_peak_bytes(model),
    )


def decode_bytes(model: ModelMemory, cached_tokens: float) -> float:
    """Bytes that must be read for one decoded token: all weights, and keys and values of the tokens before it.

    Weights are those of the files without the embedding table, of which a token reads one row. What stays in a processor's
    cache between two tokens is not read from memory: a small model on a large cache can go beyond this ceiling.
    """
    table = model.graph.embedding_bytes if model.graph is not None else 0
    return model.spec.weights_bytes - table + model.spec.kv_bytes_per_token(model.element_bytes) * cached_tokens


def bandwidth_share(
    model: ModelMemory, point: Point, decode_tps: float | None, bandwidth_gb_per_s: float | None
) -> float | None:
    """The part of the memory bandwidth that decoding used, None where either was not measured.

    The cache grows while the answer is written: its middle counts.
    """
    if decode_tps is None or not bandwidth_gb_per_s:
        return None
    cached = point.depth + point.prompt_tokens + point.gen_tokens / 2
    return decode_tps * decode_bytes(model, cached) / (bandwidth_gb_per_s * 1e9)
