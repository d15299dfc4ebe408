"""The tensor types of GGUF that can be imported: elements and bytes of a block (ggml/src/ggml-common.h)."""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class BlockType(Struct, frozen=True):
    """``elements`` weights are stored in ``bytes`` bytes."""

    name: str
    elements: int
    bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.elements


_TYPES: Final = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
    30: BlockType("BF16", 1, 2),
}
_OTHERS: Final = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
"""Types that GGUF files have and that are refused."""

SUPPORTED: Final = tuple(block.name for block in _TYPES.values())
BLOCK_TYPES: Final = {block.name: block for block in _TYPES.values()}
"""The same types by name; safetensors' ``F32``, ``F16`` and ``BF16`` are among them."""


def block_type(number: int) -> BlockType | None:
    """The type with this number in a GGUF file; None for one that cannot be imported."""
    return _TYPES.get(number)


def type_name(number: int) -> str:
    found = _TYPES.get(number)
    return found.name if found else _OTHERS.get(number, f"type {number}")
