"""Blocks of weights in the layout of ONNX Runtime's MatMulNBits, and GGUF's blocks put into it with their codes unchanged.

A block stands for ``scale * code + offset``. MatMulNBits knows whole-numbered zero points alone, ``scale * (code - zero_point)``.
Where a block's offset lies between two of them, what is missing becomes further columns of the matrix (``with_offset_columns``),
which are fed with the sums of the input's blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.runtime.importing.dequantize import halves, scales_and_mins

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Blocks:
    """``codes`` are packed as MatMulNBits takes them, [rows, blocks, block_size * bits / 8]; 4 bits: low half first.

    ``scales`` are [rows, blocks]. ``zero_points`` (whole numbers, not packed) are [rows, blocks], or None for the middle of
    the codes' range. ``offsets`` is what the zero points leave out, [rows, blocks]; None where that is nothing.
    """

    bits: int
    codes: Bytes
    scales: Floats
    zero_points: Bytes | None = None
    offsets: Floats | None = None

    def with_offset_columns(self) -> Blocks:
        """The same matrix with its offsets as further columns, 4-bit codes in blocks of as many weights as the others.

        The offsets' own rounding is a thirtieth of a level, so that Q4_1 and Q4_K lose next to nothing (docs/conversion.md).
        """
        if self.offsets is None:
            return self
        size = self.codes.shape[-1] * 8 // self.bits
        columns = quantize_asymmetric(as_blocks(self.offsets, size), self.bits)
        middle = np.uint8(1 << (self.bits - 1))
        own: Bytes
        added: Bytes
        own = np.full(self.scales.shape, middle) if self.zero_points is None else self.zero_points
        added = np.full(columns.scales.shape, middle) if columns.zero_points is None else columns.zero_points
        return Blocks(
            self.bits,
            np.concatenate([self.codes, columns.codes], axis=1),
            np.concatenate([self.scales, columns.scales], axis=1),
            np.concatenate([own, added], axis=1),
        )

    def packed_zero_points(self) -> Bytes | None:
        """[rows, ceil(blocks * bits / 8)], as MatMulNBits takes them."""
        if self.zero_points is None or self.bits == 8:
            return self.zero_points
        return pack(np.pad(self.zero_points, ((0, 0), (0, self.zero_points.shape[1] % 2))))

    def values(self) -> Floats:
        """The weights that the codes stand for, [rows, columns]."""
        codes = unpack(self.codes) if self.bits == 4 else self.codes
        middle = np.float32(1 << (self.bits - 1))
        zero = middle if self.zero_points is None else self.zero_points[..., None].astype(np.float32)
        found = (codes.astype(np.float32) - zero) * self.scales[..., None]
        if self.offsets is not None:
            found = found + self.offsets[..., None]
        return found.reshape(len(found), -1)


def pack(codes: Bytes) -> Bytes:
    """Pairs of 4-bit codes along the last axis, the low half first."""
    packed: Bytes = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed


def unpack(packed: Bytes) -> Bytes:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def as_blocks(weights: Floats, size: int) -> Floats:
    """[rows, columns] as [rows, blocks, size]; the columns are padded with zeros to whole blocks."""
    missing = -weights.shape[1] % size
    padded = np.pad(weights, ((0, 0), (0, missing))) if missing else weights
    return np.ascontiguousarray(padded, np.float32).reshape(len(weights), -1, size)


def kept_codes(type_name: str, raw: Bytes) -> Blocks:
    """The blocks of Q4_0, Q4_1, Q4_K and Q8_0, shape [rows, bytes of a row], with the codes that they have."""
    block = BLOCK_TYPES[type_name]
    rows = len(raw)
    blocks = np.ascontiguousarray(raw).reshape(-1, block.bytes)
    if type_name == "Q8_0":
        signed: Bytes = blocks[:, 2:] ^ np.uint8(128)
        return Blocks(8, signed.reshape(rows, -1, 32), halves(blocks, 0).reshape(rows, -1))
    if type_name == "Q4_K":
        scales, mins = scales_and_mins(blocks[:, 4:16])
        scale = (halves(blocks, 0) * scales.astype(np.float32)).reshape(rows, -1)
        offset = -(halves(blocks, 2) * mins.astype(np.float32)).reshape(rows, -1)
        return _with_zero_points(_repaired(blocks[:, 16:].reshape(-1, 4, 32)).reshape(rows, -1, 16), scale, offset)
    start = 4 if type_name == "Q4_1" else 2
    codes = _repaired(blocks[:, start:].reshape(-1, 1, 16)).reshape(rows, -1, 16)
    scale = halves(blocks, 0).reshape(rows, -1)
    if type_name == "Q4_0":
        return Blocks(4, codes, scale)
    return _with_zero_points(codes, scale, halves(blocks, 2).reshape(rows, -1))


def _repaired(packed: Bytes) -> Bytes:
    """GGUF's bytes hold element i low and element i + m high, MatMulNBits' the pairs 2i and 2i + 1.

    [n, groups, m] → [n, groups, 2, m / 2]: the elements of the low halves, then those of the high ones.
    """
    words = np.ascontiguousarray(packed).view(np.uint16)
    low = (words & 0x000F) | ((words >> 4) & 0x00F0)
    high = ((words >> 4) & 0x000F) | ((words >> 8) & 0x00F0)
    return np.stack([low, high], axis=-2).astype(np.uint8)


def _with_zero_points(codes: Bytes, scales: Floats, offsets: Floats) -> Blocks:
    """``offsets`` split into the nearest whole zero point and what is left."""
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.rint(-offsets / scales)
    zero_points = np.clip(np.nan_to_num(nearest, nan=0.0, posinf=15.0, neginf=0.0), 0, 15).astype(np.uint8)
    return Blocks(4, codes, scales, zero_points, offsets + scales * zero_points)


def quantize_symmetric(blocks: Floats, bits: int) -> Blocks:
    """One scale a block, no zero point: scale = max |w| / (2^(bits-1) - 1)."""
    middle = 1 << (bits - 1)
    scales = _not_zero(np.abs(blocks).max(-1) / np.float32(middle - 1))
    codes = (np.rint(blocks / scales[..., None]) + middle).astype(np.uint8)
    return Blocks(bits, pack(codes) if bits == 4 else codes, scales)


def quantize_asymmetric(blocks: Floats, bits: int) -> Blocks:
    """One scale and one whole-numbered zero point a block, from its smallest to its largest weight and over zero."""
    top = (1 << bits) - 1
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scales = _not_zero((high - low) / np.float32(top))
    zero_points = np.clip(np.rint(-low / scales), 0, top)
    codes = np.clip(np.rint(blocks / scales[..., None]) + zero_points[..., None], 0, top).astype(np.uint8)
    return Blocks(bits, pack(codes) if bits == 4 else codes, scales, zero_points.astype(np.uint8))


_STEPS = (0.0, -0.8, -0.5, -0.25, 0.3, 0.7)
"""What is added to the 15 levels that a block's range is divided into, when scales are tried."""


_ZERO_POINT_STEPS = (0.0, -0.7)
"""The same for blocks with a zero point, of which two are tried each time: more steps gain one hundredth of the error."""

_AT_ONCE = 2048
"""Blocks that are fitted together: their arrays stay in a core's own cache, which makes it several times as fast."""


def fit_with_offset(weights: Floats, size: int) -> Blocks:
    """The matrix [rows, columns] in 4 bits; see ``_fit_with_offset``."""
    return _in_chunks(as_blocks(weights, size), _fit_with_offset)


def fit_with_zero_point(weights: Floats, size: int) -> Blocks:
    """The matrix [rows, columns] in 4 bits; see ``_fit_with_zero_point``."""
    return _in_chunks(as_blocks(weights, size), _fit_with_zero_point)


def _in_chunks(blocks: Floats, fit: Callable[[Floats], Blocks]) -> Blocks:
    rows, columns, size = blocks.shape
    flat = blocks.reshape(-1, size)
    chunks = [fit(flat[start : start + _AT_ONCE]) for start in range(0, len(flat), _AT_ONCE)]

    def joined(parts: list[Any]) -> Any:
        return None if parts[0] is None else np.concatenate(parts).reshape(rows, columns, *parts[0].shape[1:])

    return Blocks(
        4,
        joined([chunk.codes for chunk in chunks]),
        joined([chunk.scales for chunk in chunks]),
        joined([chunk.zero_points for chunk in chunks]),
        joined([chunk.offsets for chunk in chunks]),
    )


def _fit_with_offset(blocks: Floats) -> Blocks:
    """4-bit codes, scale and offset of each block with the least weighted squared error among a few scales.

    As llama.cpp's make_qkx2_quants: for each scale tried, codes are rounded, then scale and offset are fitted to them by
    least squares. Large weights count more: ``sqrt(mean w²) + |w|``.
    """
    low, high = blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    spread = _not_zero(high - low)
    weight = np.sqrt((blocks * blocks).mean(-1, keepdims=True)) + np.abs(blocks)
    total, sum_x = weight.sum(-1), (weight * blocks).sum(-1)
    best_error = np.full(total.shape, np.inf, np.float32)
    best_codes = np.zeros(blocks.shape, np.uint8)
    best_scale, best_offset = np.ones_like(total), np.zeros_like(total)
    for step in _STEPS:
        codes = np.clip(np.rint((blocks - low) * ((15 + np.float32(step)) / spread)), 0, 15)
        weighted = weight * codes
        sum_q, sum_qq, sum_qx = weighted.sum(-1), (weighted * codes).sum(-1), (weighted * blocks).sum(-1)
        determinant = total * sum_qq - sum_q * sum_q
        usable = determinant > 0
        determinant = np.where(usable, determinant, 1)
        scale = np.where(usable, (total * sum_qx - sum_x * sum_q) / determinant, 0)
        offset = np.where(
            usable, (sum_qq * sum_x - sum_q * sum_qx) / determinant, sum_x / np.where(total > 0, total, 1)
        )
        left = scale[..., None] * codes + offset[..., None] - blocks
        error = (weight * left * left).sum(-1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale, best_offset = np.where(better, scale, best_scale), np.where(better, offset, best_offset)
        np.copyto(best_codes, codes.astype(np.uint8), where=better[..., None])
    return _with_zero_points(pack(best_codes), best_scale.astype(np.float32), best_offset.astype(np.float32))


def _fit_with_zero_point(blocks: Floats) -> Blocks:
    """4-bit codes, scale and whole-numbered zero point of each block with the least weighted squared error of a few tried."""
    top = np.float32(15)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    weight = np.sqrt((blocks * blocks).mean(-1, keepdims=True)) + np.abs(blocks)
    weighted_x = weight * blocks
    best_error = np.full(low.shape, np.inf, np.float32)
    best_codes = np.zeros(blocks.shape, np.uint8)
    best_scale, best_zero = np.ones_like(low), np.zeros_like(low)
    spread = _not_zero(high - low)
    for step in _ZERO_POINT_STEPS:
        inverse = (top + np.float32(step)) / spread
        middle = -low * inverse
        for zero in (np.floor(middle), np.ceil(middle)):
            zero = np.clip(zero, 0, top)[..., None]
            levels = np.clip(np.rint(blocks * inverse[..., None]), -zero, top - zero)
            norm = (weight * levels * levels).sum(-1)
            product = (weighted_x * levels).sum(-1)
            scale = product / np.where(norm > 0, norm, 1)
            error = -product * scale  # the squared error less the part that is the same for all
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero[..., 0], best_zero)
            np.copyto(best_codes, (levels + zero).astype(np.uint8), where=better[..., None])
    return Blocks(4, pack(best_codes), _not_zero(best_scale), best_zero.astype(np.uint8))


def _not_zero(scales: Floats) -> Floats:
    return np.where(scales == 0, np.float32(1), scales).astype(np.float32)
