"""Dequantises the block types of GGUF (ggml/src/ggml-quants.c) with numpy: bytes [rows, bytes of a row] → fp32 [rows, columns]."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from coe_cli.core.importing.ggml import BLOCK_TYPES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

_IQ4_LEVELS: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen levels of IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl)."""


def dequantize(type_name: str, raw: Bytes) -> Floats:
    """The weights that ``raw`` stands for."""
    import numpy as np

    rows = len(raw)
    if type_name == "F32":
        return np.ascontiguousarray(raw).view(np.float32)
    if type_name == "F16":
        return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)
    if type_name == "BF16":
        wide = np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32)
    blocks = np.ascontiguousarray(raw).reshape(-1, BLOCK_TYPES[type_name].bytes)
    return _DECODERS[type_name](blocks).reshape(rows, -1)


def halves(blocks: Bytes, start: int) -> Floats:
    """The fp16 number at byte ``start`` of each block, shape [blocks, 1]."""
    import numpy as np

    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def nibbles(packed: Bytes) -> Bytes:
    """[n, m] bytes as [n, 2 m] values: all low halves, then all high ones."""
    import numpy as np

    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def scales_and_mins(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The eight 6-bit scales and mins of Q4_K and Q5_K from their twelve bytes, shape [blocks, 8] each."""
    import numpy as np

    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 2) & 0x30)], axis=-1)
    mins = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & 0x30)], axis=-1)
    return scales, mins


def _q4_0(blocks: Bytes) -> Floats:
    import numpy as np

    return halves(blocks, 0) * (nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    import numpy as np

    return halves(blocks, 0) * nibbles(blocks[:, 4:]).astype(np.float32) + halves(blocks, 2)


def _fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """The fifth bit of each of 32 codes, in its place, shape [blocks, 32]."""
    import numpy as np

    found: Bytes = np.unpackbits(blocks[:, start : start + 4], axis=-1, bitorder="little") << np.uint8(4)
    return found


def _q5_0(blocks: Bytes) -> Floats:
    import numpy as np

    return halves(blocks, 0) * ((nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)).astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    import numpy as np

    codes = nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return halves(blocks, 0) * codes.astype(np.float32) + halves(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    import numpy as np

    return halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _pairs(packed: Bytes) -> Bytes:
    """64 bytes of 2-bit values as [blocks, 256]: each 32 bytes hold four runs of 32, lowest bits first."""
    import numpy as np

    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    found: Bytes = (packed.reshape(len(packed), 2, 1, 32) >> shifts) & np.uint8(3)
    return found.reshape(len(packed), 256)


def _q2_k(blocks: Bytes) -> Floats:
    import numpy as np

    scales = blocks[:, :16]
    scale = halves(blocks, 80) * (scales & 15).astype(np.float32)
    minimum = halves(blocks, 82) * (scales >> 4).astype(np.float32)
    codes = _pairs(blocks[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    return scale[..., None] * codes - minimum[..., None]


def _q3_k(blocks: Bytes) -> Floats:
    import numpy as np

    high = np.unpackbits(blocks[:, :32].reshape(-1, 32, 1), axis=-1, bitorder="little")  # [blocks, 32, 8]
    low = _pairs(blocks[:, 32:96])
    codes = low | (high.transpose(0, 2, 1).reshape(-1, 256) << 2)
    packed = blocks[:, 96:108]
    upper = np.concatenate([(packed[:, 8:12] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    scales = (nibbles(packed[:, :8]) | (upper << 4)).astype(np.float32) - 32
    scale = halves(blocks, 108) * scales
    return scale[..., None] * (codes.reshape(-1, 16, 16).astype(np.float32) - 4)


def _k_parts(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale and minimum of the eight sub-blocks of Q4_K and Q5_K, shape [blocks, 8, 1] each."""
    import numpy as np

    scales, mins = scales_and_mins(blocks[:, 4:16])
    scale, minimum = halves(blocks, 0) * scales.astype(np.float32), halves(blocks, 2) * mins.astype(np.float32)
    return scale[..., None], minimum[..., None]


def _q4_k(blocks: Bytes) -> Floats:
    import numpy as np

    scale, minimum = _k_parts(blocks)
    codes = nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return scale * codes.astype(np.float32) - minimum


def _q5_k(blocks: Bytes) -> Floats:
    import numpy as np

    scale, minimum = _k_parts(blocks)
    high = np.unpackbits(blocks[:, 16:48].reshape(-1, 32, 1), axis=-1, bitorder="little").transpose(0, 2, 1) << 4
    codes = nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | high
    return scale * codes.astype(np.float32) - minimum


def q6_k_codes(blocks: Bytes) -> Bytes:
    """Codes 0 … 63 of Q6_K, shape [blocks, 16, 16]."""
    import numpy as np

    low = nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)
    codes: Bytes = low | (high << np.uint8(4))
    return codes.reshape(-1, 16, 16)


def q6_k_scales(blocks: Bytes) -> Floats:
    """Scale of each sub-block of 16, shape [blocks, 16]."""
    import numpy as np

    return halves(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)


def _q6_k(blocks: Bytes) -> Floats:
    import numpy as np

    return q6_k_scales(blocks)[..., None] * (q6_k_codes(blocks).astype(np.float32) - 32)


def _iq4_nl(blocks: Bytes) -> Floats:
    import numpy as np

    return halves(blocks, 0) * np.array(_IQ4_LEVELS, np.float32)[nibbles(blocks[:, 2:])]


def _iq4_xs(blocks: Bytes) -> Floats:
    import numpy as np

    upper = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16)
    shifts = np.arange(8, dtype=np.uint16) * 2
    high = ((upper >> shifts) & 3).astype(np.uint8)
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    scale = halves(blocks, 0) * ((low | (high << 4)).astype(np.float32) - 32)
    levels = np.array(_IQ4_LEVELS, np.float32)[nibbles(blocks[:, 8:].reshape(-1, 8, 16))]
    found: Floats = scale[..., None] * levels
    return found


_DECODERS: Final[dict[str, Callable[[Bytes], Floats]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
