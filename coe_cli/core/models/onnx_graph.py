"""What an ONNX decoder graph says about itself, read without its weights: for memory arithmetic and for file checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from coe_cli.core.models.onnx_records import Records, Tensor, Value

_FLOAT: Final = 1
_PAGED: Final = "PagedAttention"
_TYPES: Final[dict[int, tuple[str, float]]] = {
    1: ("float", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    4: ("uint16", 2),
    5: ("int16", 2),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
    11: ("double", 8),
    12: ("uint32", 4),
    13: ("uint64", 8),
    16: ("bfloat16", 2),
    21: ("uint4", 0.5),
    22: ("int4", 0.5),
}
"""Name and bytes of an element by its number in ``onnx.proto3``."""
_WITH_SUMS: Final = "/with_block_sums"
"""So ends the name of a tensor that our converter widens (runtime/importing/graph_writer.py)."""
_TABLE_BYTES: Final = 2**20
"""A Gather from a matrix of this size looks up embeddings; smaller ones are constants."""


class GraphFacts(Struct, frozen=True):
    """What one decoder graph says; sizes in bytes, None where the graph does not say.

    ``block_bytes`` is 4-byte values, one per quantisation block, of all quantised matrices together; ``folded_bytes``
    are quantised weights that the session copies at load because a Reshape feeds them to the embedding as well. In
    ``other_bytes`` are constants in fp16 that a Cast makes fp32 of, as fp32: the session keeps that.
    ``weights`` counts the matrices by their format, for example ``{"int4, blocks of 32": 210}``, and ``external`` maps
    each external data file to the bytes that the graph reads up to; ``initializer_bytes`` are all stored tensors.
    ``block_tokens``: a paged cache's, whose blocks all answers share. ``widened_columns`` are the widths of tensors that are copied with the sums of their blocks behind them.
    """

    cache_element_bytes: int | None = None
    prunes_logits: bool | None = None
    intermediate_size: int | None = None
    qkv_size: int | None = None
    quantized_bytes: int = 0
    block_bytes: int = 0
    largest_quantized_bytes: int = 0
    embedding_row_bytes: int = 0
    embedding_bytes: int = 0
    folded_bytes: int = 0
    other_bytes: int = 0
    layers: int = 0
    kv_heads: int | None = None
    head_size: int | None = None
    block_tokens: int | None = None
    vocab_size: int | None = None
    weights: dict[str, int] = {}
    external: dict[str, int] = {}
    initializer_bytes: tuple[int, ...] = ()
    widened_columns: tuple[int, ...] = ()


def external_data_sizes(tensors: Iterable[Tensor]) -> dict[str, int]:
    """File name → bytes that the graph reads up to, for each external data file."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if entry := tensor.external:
            upto = int(entry.get("offset", 0)) + int(entry.get("length", 0))
            sizes[entry["location"]] = max(sizes.get(entry["location"], 0), upto)
    return sizes


def graph_facts(records: Records, past_key: str, logits: str) -> GraphFacts:
    """The facts of a graph; ``past_key`` and ``logits`` are the names that ``genai_config.json`` gives them."""
    tensors = list(records.initializers())
    sizes = {tensor.name: _size_of(tensor) for tensor in tensors}
    rows = {t.name: int(sizes[t.name] // t.dims[0]) for t in tensors if len(t.dims) == 2 and t.dims[0]}
    inputs = {value.name: value for value in records.inputs()}
    output = next((value for value in records.outputs() if value.name == logits), None)
    caches = _caches(inputs, past_key)
    cache = next(iter(caches), None) or next(
        (value for name, value in inputs.items() if name.startswith("past_")), None
    )
    matrices: list[tuple[int, int, int, int]] = []
    quantized: set[str] = set()
    gathered: set[str] = set()
    reshaped: set[str] = set()
    cast: set[str] = set()
    formats: Counter[str] = Counter()
    types = {tensor.name: type_name(tensor.element_type) for tensor in tensors}
    qkv = intermediate = attention_heads = None
    is_paged = False  # caches of shape [blocks, tokens, heads, head size], logits [rows, vocabulary] of last positions
    widened: set[int] = set()
    for node in records.nodes():
        operator, names, numbers = node.operator, node.inputs, node.numbers
        if operator == "MatMulNBits":
            k, n, bits, block = numbers["K"], numbers["N"], numbers.get("bits", 4), numbers.get("block_size", 32)
            matrices.append((k, n, bits, block))
            quantized.add(names[1])
            formats[f"int{bits}, blocks of {block}"] += 1
            if names[0].endswith(_WITH_SUMS):
                widened.add(k)
            if qkv is None and "qkv" in names[1]:
                qkv = n
            if intermediate is None and ".up_proj." in names[1]:
                intermediate = n
        elif operator in ("MatMul", "Gemm"):
            formats.update(types[name] for name in names if name in types)
        elif operator in ("Gather", "GatherBlockQuantized"):
            gathered.add(names[0])
        elif operator == "Reshape":
            reshaped.add(names[0])
        elif operator == "Cast" and numbers.get("to") == _FLOAT and types.get(names[0]) == "float16":
            cast.add(names[0])
        elif operator in (_PAGED, "GroupQueryAttention") and attention_heads is None:
            attention_heads, is_paged = numbers.get("kv_num_heads"), operator == _PAGED
    tables = {name for name in gathered if rows.get(name) and sizes[name] >= _TABLE_BYTES}
    unpacked = sizes.keys() - quantized - tables
    quantized_sizes = [k * n * bits // 8 for k, n, bits, _ in matrices]
    hidden = matrices[0][0] if matrices else 0
    return GraphFacts(
        cache_element_bytes=int(_TYPES.get(cache.element_type, ("", 0))[1]) or None if cache else None,
        prunes_logits=is_paged or (output.dims[1] == 1 if output and len(output.dims) == 3 else None),
        intermediate_size=intermediate or max((k for k, n, _, _ in matrices if n == hidden), default=None),
        qkv_size=qkv,
        quantized_bytes=sum(quantized_sizes),
        block_bytes=sum(4 * n * -(-k // block) for k, n, _, block in matrices),
        largest_quantized_bytes=max(quantized_sizes, default=0),
        embedding_row_bytes=max((rows[name] for name in tables), default=0),
        embedding_bytes=round(sum(sizes[name] for name in tables)),
        folded_bytes=round(sum(sizes.get(name, 0) for name in reshaped & quantized)),
        other_bytes=round(sum(sizes[name] * (2 if name in cast else 1) for name in unpacked)),
        layers=len(caches),
        kv_heads=_dim(caches[0] if caches else None, 2 if is_paged else 1) or attention_heads,
        head_size=_dim(caches[0] if caches else None, 3),
        block_tokens=_dim(caches[0] if caches else None, 1) if is_paged else None,
        vocab_size=_dim(output, 1 if is_paged else 2),
        weights=dict(formats),
        external=external_data_sizes(tensors),
        initializer_bytes=tuple(round(size) for size in sizes.values()),
        widened_columns=tuple(sorted(widened)),
    )


def _caches(inputs: dict[str, Value], past_key: str) -> list[Value]:
    """The key cache of each layer, by the name that the configuration gives them."""
    found: list[Value] = []
    while (name := past_key % len(found)) in inputs:
        found.append(inputs[name])
    return found


def _size_of(tensor: Tensor) -> float:
    size = float(_TYPES.get(tensor.element_type, ("", 4))[1])
    for dim in tensor.dims:
        size *= dim
    return size


def type_name(element_type: int) -> str:
    """ONNX's name of an element type."""
    return _TYPES[element_type][0] if element_type in _TYPES else f"type {element_type}"


def _dim(value: Value | None, axis: int) -> int | None:
    found = value.dims[axis] if value is not None and axis < len(value.dims) else None
    return found if found is not None and found > 0 else None
