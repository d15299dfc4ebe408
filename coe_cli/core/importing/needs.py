"""What an import will take, judged from headers: bytes of the result on disk, and memory at its peak."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.encodings import SMALL_WEIGHTS, Encoding, Precision, encoding_of, table_encoding
from coe_cli.core.providers import GraphRules

_BASE_BYTES: Final = 300 * 2**20
"""Python, numpy, onnx, the tokenizer's vocabulary, and the few rows that are put into blocks together (measured)."""
_SIDE_FILES_BYTES: Final = 40 * 2**20
"""Graph, tokenizer and configuration: 13 MB for a vocabulary of 152k."""


def bits_per_weight(encoding: Encoding, scale_bits: int, columns: int = 4096) -> float:
    """Bits on disk for each weight of a matrix so wide, with its share of scales, zero points and offsets.

    Offsets are one further column a block, in whole blocks, and a row's zero points whole bytes: narrow rows take more.
    """
    if not encoding.quantized:
        return float(encoding.bits)
    blocks = math.ceil(columns / encoding.block_size)
    if encoding.offsets:
        blocks += math.ceil(blocks / encoding.block_size)
    zero_bits = 0 if encoding.symmetric else 8 * math.ceil(blocks * encoding.bits / 8)
    return (blocks * (encoding.block_size * encoding.bits + scale_bits) + zero_bits) / columns


def needs(
    decoder: Decoder, matrices: Mapping[str, tuple[str, int, int]], rules: GraphRules, precision: Precision
) -> tuple[int, int]:
    """Bytes of memory (beyond the system's file cache) and of disk. ``matrices``: part → source type, rows, columns."""
    disk = float(_SIDE_FILES_BYTES)
    largest = 0
    small = sum(rows * columns for _, rows, columns in matrices.values()) < SMALL_WEIGHTS
    scale_bits = rules.float_bits if small else 16
    for part, (type_name, rows, columns) in matrices.items():
        weights = rows * columns
        is_table = part == "embedding.weight"
        encoding = encoding_of(type_name, rules, precision, head=is_table or part == "head.weight", small=small)
        if is_table and not (decoder.tied and encoding.bits in rules.table_bits):
            table = table_encoding(type_name, decoder.hidden_size, rules)
            gathers = table.bits in rules.table_bits
            disk += weights * (bits_per_weight(table, scale_bits, columns) if gathers else rules.float_bits) / 8
        if not is_table or decoder.tied:
            disk += weights * bits_per_weight(encoding, scale_bits, columns) / 8
            if not encoding.quantized:
                largest = max(largest, weights * encoding.bits // 8)
    rotations = sum(rope.dim for rope in decoder.ropes) * decoder.context_length * rules.float_bits // 8
    return _BASE_BYTES + 2 * largest + 3 * rotations, round(disk) + rotations
