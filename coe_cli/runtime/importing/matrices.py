"""Writes one matrix of the graph: its rows are read, put into blocks and written a few at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coe_cli.core.importing.encodings import Encoding
from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.runtime.importing.external_data import ExternalData
from coe_cli.runtime.importing.weights_map import WeightsMap

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from coe_cli.runtime.importing.blocks import Blocks

_CHUNK_WEIGHTS = 1 << 21
"""Weights that are put into blocks together: bounds the memory of the conversion."""


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``stop`` of a part, in another ``order`` if that is given, times ``factor``."""

    part: str
    start: int
    stop: int
    order: NDArray[np.int64] | None = None
    factor: float = 1.0

    def __len__(self) -> int:
        return self.stop - self.start


def type_of(weights: WeightsMap, rows: list[Rows]) -> str:
    """The source type of a matrix; of several, the one with most bits."""
    names = {weights.parts[item.part].type_name for item in rows}
    return max(names, key=lambda name: BLOCK_TYPES[name].bits_per_weight)


def encode(type_name: str, raw: NDArray[np.uint8], encoding: Encoding, factor: float = 1.0) -> Blocks:
    """``raw`` (shape [rows, bytes of a row]) in ``encoding``; the weights are multiplied by ``factor``."""
    from dataclasses import replace

    from coe_cli.runtime.importing import blocks
    from coe_cli.runtime.importing.dequantize import dequantize

    if encoding.exact:
        found = blocks.kept_codes(type_name, raw)
    else:
        floats, size = dequantize(type_name, raw), encoding.block_size
        if encoding.bits == 4:
            fit = blocks.fit_with_offset if encoding.offsets else blocks.fit_with_zero_point
            found = fit(floats, size)
        elif encoding.symmetric:
            found = blocks.quantize_symmetric(blocks.as_blocks(floats, size), encoding.bits)
        else:
            found = blocks.quantize_asymmetric(blocks.as_blocks(floats, size), encoding.bits)
    if factor != 1.0:
        import numpy as np

        scaled = np.float32(factor)
        offsets = None if found.offsets is None else found.offsets * scaled
        found = replace(found, scales=found.scales * scaled, offsets=offsets)
    return found.with_offset_columns() if encoding.offsets else found


def _chunks(weights: WeightsMap, rows: list[Rows]) -> Any:
    """Pairs of a part's rows and their bytes, a few at a time."""
    for item in rows:
        raw = weights.raw(item.part)[item.start : item.stop]
        step = max(16, _CHUNK_WEIGHTS // weights.parts[item.part].columns)
        for start in range(0, len(raw), step):
            stop = min(start + step, len(raw))
            yield item, raw[item.order[start:stop]] if item.order is not None else raw[start:stop]


def write_quantized(
    data: ExternalData, weights: WeightsMap, name: str, rows: list[Rows], encoding: Encoding, scale_type: type[Any]
) -> tuple[list[str], int]:
    """Write the codes, scales and zero points of a matrix; returns their names and the columns, added ones included.

    All ``rows`` have the same number of columns and, where ``encoding`` is exact, the same type.
    """
    import numpy as np

    columns = weights.parts[rows[0].part].columns
    count, size = sum(len(item) for item in rows), encoding.block_size
    widened = columns + (-(-columns // size) if encoding.offsets else 0)
    block_count = -(-columns // size)
    if encoding.offsets:
        block_count += -(-block_count // size)
    with_zero_points = not encoding.symmetric
    codes = data.reserve(f"{name}.codes", np.uint8, (count, block_count, size * encoding.bits // 8))
    scales = data.reserve(f"{name}.scales", scale_type, (count, block_count))
    names = [f"{name}.codes", f"{name}.scales"]
    zero_points = None
    if with_zero_points:
        width = -(-block_count * encoding.bits // 8)
        zero_points = data.reserve(f"{name}.zero_points", np.uint8, (count, width))
        names.append(f"{name}.zero_points")
    for item, raw in _chunks(weights, rows):
        found = encode(weights.parts[item.part].type_name, raw, encoding, item.factor)
        codes.write(found.codes)
        scales.write(found.scales.astype(scale_type, copy=False))
        if zero_points is not None:
            packed = found.packed_zero_points()
            assert packed is not None
            zero_points.write(packed)
    return names, widened


def write_floats(data: ExternalData, weights: WeightsMap, name: str, rows: list[Rows], element: type[Any]) -> str:
    """Write a matrix as it is multiplied from the right, [columns, rows], in floating-point numbers."""
    import numpy as np

    columns, count = weights.parts[rows[0].part].columns, sum(len(item) for item in rows)
    turned = np.empty((columns, count), element)
    at = 0
    for item, raw in _chunks(weights, rows):
        turned[:, at : at + len(raw)] = _floats(weights, item, raw).T
        at += len(raw)
    data.reserve(name, element, turned.shape).write(turned)
    return name


def write_table(data: ExternalData, weights: WeightsMap, name: str, part: str, element: type[Any]) -> str:
    """Write a table of which rows are looked up, [rows, columns], in floating-point numbers."""
    stored = weights.parts[part]
    region = data.reserve(name, element, stored.shape)
    for item, raw in _chunks(weights, [Rows(part, 0, stored.rows)]):
        region.write(_floats(weights, item, raw).astype(element))
    return name


def _floats(weights: WeightsMap, item: Rows, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    import numpy as np

    from coe_cli.runtime.importing.dequantize import dequantize

    found = dequantize(weights.parts[item.part].type_name, raw)
    return found if item.factor == 1.0 else found * np.float32(item.factor)


_SAMPLED_ROWS = 64
_SAME_MATRIX = 0.15
"""Relative distance below which two matrices are one that was quantised twice: Q4_K is 0.07 from its source, Q2_K 0.25.
Embedding and head that were trained apart are at 1 and beyond."""


def alike(weights: WeightsMap, first: str, second: str) -> bool:
    """Whether two tensors of one shape hold the same matrix but for its quantisation, judged by some of its rows.

    Some GGUF files carry embedding and head of a model that ties them, in different formats.
    """
    import numpy as np

    from coe_cli.runtime.importing.dequantize import dequantize

    rows = np.linspace(0, weights.parts[first].rows - 1, _SAMPLED_ROWS).astype(np.int64)
    one, other = (dequantize(weights.parts[part].type_name, weights.raw(part)[rows]) for part in (first, second))
    return bool(np.linalg.norm(one - other) < _SAME_MATRIX * np.linalg.norm(other))
