"""Block-wise quantisation of weight matrices to the layout of ONNX Runtime's MatMulNBits: plain numpy arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class QuantizedMatrix:
    """Weights ``w[n, k] = scales[n, b] * (codes[n, b, i] - zero_points[n, b])`` with ``k = b * block_size + i``.

    ``codes`` has shape [N, K / block_size, block_size]; ``scales`` and ``zero_points`` have [N, K / block_size].
    """

    codes: Bytes
    scales: Floats
    zero_points: Bytes
    bits: int

    @property
    def block_size(self) -> int:
        return int(self.codes.shape[-1])

    def dequantized(self) -> Floats:
        """The weights that the codes stand for, shape [N, K]."""
        import numpy as np

        offset = self.codes.astype(np.float32) - self.zero_points[..., None]
        return (offset * self.scales[..., None]).reshape(len(self.codes), -1)

    def packed_codes(self) -> Bytes:
        """Codes as MatMulNBits takes them: [N, blocks, block_size * bits / 8], the low nibble first."""
        return _packed(self.codes) if self.bits == 4 else self.codes

    def packed_zero_points(self) -> Bytes | None:
        """Zero points as MatMulNBits takes them: [N, ceil(blocks * bits / 8)]; None when all are the operator's default."""
        import numpy as np

        if bool((self.zero_points == 2 ** (self.bits - 1)).all()):
            return None
        if self.bits == 8:
            return self.zero_points
        odd = self.zero_points.shape[1] % 2
        return _packed(np.pad(self.zero_points, ((0, 0), (0, odd))))


def quantize_symmetric(weights: Floats, bits: int, block_size: int) -> QuantizedMatrix:
    """One scale a block, no zero point: scale = max |w| / (2^(bits-1) - 1).

    Weights that came from GGUF Q8_0 (8 bits, blocks of 32) are reproduced to the bit width of their scales.
    """
    import numpy as np

    blocks = _blocks(weights, block_size)
    middle = 2 ** (bits - 1)
    scales = _not_zero(np.abs(blocks).max(-1) / (middle - 1))
    codes = np.rint(blocks / scales[..., None]) + middle
    return QuantizedMatrix(codes.astype(np.uint8), scales, np.full(scales.shape, middle, np.uint8), bits)


def quantize_asymmetric(weights: Floats, bits: int, block_size: int) -> QuantizedMatrix:
    """One scale and one whole-numbered zero point a block, from its smallest to its largest weight.

    Weights that came from GGUF Q4_1 or Q5_1 lie on an even grid: with 8 bits the codes hit every level of it, and what
    is left is the rounding of the zero point, 1/34 of a level at most.
    """
    import numpy as np

    blocks = _blocks(weights, block_size)
    top = 2**bits - 1
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scales = _not_zero((high - low) / top)
    zero_points = np.clip(np.rint(-low / scales), 0, top)
    return _coded(blocks, scales, zero_points, bits)


def quantize_offset_corrected(weights: Floats, block_size: int) -> QuantizedMatrix:
    """4-bit codes between each block's smallest and largest weight, and their offsets as further columns.

    MatMulNBits takes whole-numbered zero points only, so ``scale * (code - zero_point)`` misses the block's real offset by
    up to half a level, the same for all its weights; that error times the sum of the block's inputs is missing in the
    output. These missing offsets, [N, K / block_size], become columns K, K + 1, ... of the matrix, 4 bits each as well:
    fed with the block sums of the input, they put back what is missing. The result has
    K + K / block_size columns, padded to whole blocks, and is as exact as GGUF's Q4_1, whose grid it meets.
    """
    import numpy as np

    blocks = _blocks(weights, block_size)
    low, high = blocks.min(-1), blocks.max(-1)
    scales = _not_zero((high - low) / 15)
    zero_points = np.clip(np.rint(-low / scales), 0, 15)
    codes = np.clip(np.rint((blocks - low[..., None]) / scales[..., None]), 0, 15)
    offsets = quantize_asymmetric(low + scales * zero_points, 4, block_size)
    return QuantizedMatrix(
        np.concatenate([codes.astype(np.uint8), offsets.codes], axis=1),
        np.concatenate([scales, offsets.scales], axis=1),
        np.concatenate([zero_points.astype(np.uint8), offsets.zero_points], axis=1),
        4,
    )


def _coded(blocks: Floats, scales: Floats, zero_points: Floats, bits: int) -> QuantizedMatrix:
    import numpy as np

    codes = np.clip(np.rint(blocks / scales[..., None]) + zero_points[..., None], 0, 2**bits - 1)
    return QuantizedMatrix(codes.astype(np.uint8), scales.astype(np.float32), zero_points.astype(np.uint8), bits)


def _blocks(weights: Floats, block_size: int) -> Floats:
    """[N, K] as [N, K / block_size, block_size]; K is padded with zeros to whole blocks."""
    import numpy as np

    rows, columns = weights.shape
    padded = np.pad(weights, ((0, 0), (0, -columns % block_size))) if columns % block_size else weights
    return np.ascontiguousarray(padded, np.float32).reshape(rows, -1, block_size)


def _not_zero(scales: Floats) -> Floats:
    import numpy as np

    return np.where(scales == 0, np.float32(1), scales).astype(np.float32)


def _packed(nibbles: Bytes) -> Bytes:
    import numpy as np

    packed: Bytes = (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)).astype(np.uint8)
    return packed
