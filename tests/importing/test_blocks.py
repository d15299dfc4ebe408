"""Blocks of weights: dequantised as the gguf package does it, codes kept as they are, others fitted with little error."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe_cli.core.importing.encodings import Encoding
from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.runtime.importing import blocks
from coe_cli.runtime.importing.dequantize import dequantize
from coe_cli.runtime.importing.matrices import encode

KEPT = ("Q4_0", "Q4_1", "Q4_K", "Q8_0")


def random_raw(name: str, seed: int, rows: int = 5, blocks_of_row: int = 6) -> np.ndarray:
    """Random bytes of a type, shape [rows, bytes of a row], whose fp16 scales are ordinary numbers."""
    rng = np.random.default_rng(seed)
    block = BLOCK_TYPES[name]
    raw = rng.integers(0, 256, (rows, blocks_of_row, block.bytes), np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
    halves |= dict.fromkeys(("Q4_1", "Q5_1"), (0, 2))
    for start in halves.get(name, (0,)):
        values = rng.uniform(0.001, 0.1, (rows, blocks_of_row, 1)).astype(np.float16)
        if block.elements > 1:
            raw[..., start : start + 2] = values.view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("name", [name for name in BLOCK_TYPES if BLOCK_TYPES[name].elements > 1])
def test_every_block_type_is_dequantised_as_the_gguf_package_does_it(name: str) -> None:
    for seed in range(5):
        raw = random_raw(name, seed)
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
        np.testing.assert_array_equal(dequantize(name, raw), expected)


@pytest.mark.parametrize(("name", "element"), [("F16", np.float16), ("F32", np.float32)])
def test_plain_numbers(name: str, element: type) -> None:
    values: np.ndarray = np.random.default_rng(0).normal(size=(3, 8)).astype(element)
    np.testing.assert_array_equal(dequantize(name, values.view(np.uint8)), values.astype(np.float32))


def test_bf16() -> None:
    values = np.array([[1.0, -2.5, 2.0**127, 2**-126]], np.float32)
    np.testing.assert_array_equal(dequantize("BF16", values.view(np.uint16)[:, 1::2].copy().view(np.uint8)), values)


@pytest.mark.parametrize("name", KEPT)
def test_kept_codes_stand_for_what_the_file_holds(name: str) -> None:
    for seed in range(5):
        raw = random_raw(name, seed)
        kept = blocks.kept_codes(name, raw)
        np.testing.assert_allclose(kept.values(), dequantize(name, raw), rtol=1e-6, atol=1e-7)


def with_block_sums(inputs: np.ndarray, columns: int) -> np.ndarray:
    sums = inputs.reshape(len(inputs), -1, 32).sum(-1)
    extended = np.concatenate([inputs, sums], axis=1)
    return np.pad(extended, ((0, 0), (0, columns - extended.shape[1])))


@pytest.mark.parametrize("name", ["Q4_1", "Q4_K"])
def test_offset_columns_put_back_what_whole_zero_points_lose(name: str) -> None:
    raw = random_raw(name, 1, blocks_of_row=34 if name == "Q4_1" else 5)
    exact = dequantize(name, raw)
    inputs = np.random.default_rng(2).normal(size=(6, exact.shape[1])).astype(np.float32)
    kept = blocks.kept_codes(name, raw)
    wanted = inputs @ exact.T
    rounded = inputs @ blocks.Blocks(4, kept.codes, kept.scales, kept.zero_points).values().T
    wide = kept.with_offset_columns().values()
    found = with_block_sums(inputs, wide.shape[1]) @ wide.T
    assert np.linalg.norm(found - wanted) < 0.1 * np.linalg.norm(rounded - wanted)
    assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([(1, 32), (5, 64), (3, 96)]), st.floats(-3, 3), st.floats(1e-3, 1e3))
def test_codes_stand_for_the_nearest_level(seed: int, shape: tuple[int, int], shift: float, size: float) -> None:
    matrix = (np.random.default_rng(seed).normal(size=shape) + shift).astype(np.float32) * np.float32(size)
    for quantize, bits in (
        (blocks.quantize_symmetric, 8),
        (blocks.quantize_asymmetric, 8),
        (blocks.quantize_asymmetric, 4),
    ):
        quantized = quantize(blocks.as_blocks(matrix, 32), bits)
        # half a level for the code; the asymmetric zero point is rounded too, which shifts both ends by half a level
        bound = np.repeat(quantized.scales, 32, axis=1) * (0.501 if quantize is blocks.quantize_symmetric else 1.001)
        assert (np.abs(quantized.values() - matrix) <= bound).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(-2, 2))
def test_fitted_scales_are_better_than_those_between_the_extremes(seed: int, shift: float) -> None:
    matrix = (np.random.default_rng(seed).standard_t(4, size=(16, 128)) + shift).astype(np.float32)
    weight = np.sqrt((matrix.reshape(16, 4, 32) ** 2).mean(-1)).repeat(32, axis=1) + np.abs(matrix)

    def error(found: blocks.Blocks) -> float:
        return float((weight * (found.values() - matrix) ** 2).sum())

    plain = error(blocks.quantize_asymmetric(blocks.as_blocks(matrix, 32), 4))
    with_zero_point = error(blocks.fit_with_zero_point(matrix, 32))
    assert error(blocks.fit_with_offset(matrix, 32)) < plain
    assert with_zero_point < plain


@pytest.mark.parametrize(
    "weights", [np.zeros((2, 64), np.float32), np.full((2, 64), 0.5, np.float32), np.full((2, 64), -2, np.float32)]
)
def test_blocks_of_one_value(weights: np.ndarray) -> None:
    for encoding in (Encoding(4), Encoding(4, offsets=True), Encoding(8), Encoding(8, symmetric=True)):
        found = encode("F32", weights.view(np.uint8), encoding).values()
        assert np.isfinite(found).all()
        if not encoding.offsets:
            np.testing.assert_allclose(found, weights, rtol=0.01)


def test_a_factor_multiplies_the_weights() -> None:
    raw = random_raw("Q4_K", 3)
    whole, half = (encode("Q4_K", raw, Encoding(4, offsets=True, exact=True), factor) for factor in (1.0, 0.5))
    np.testing.assert_allclose(half.values(), 0.5 * whole.values(), rtol=1e-6)
    np.testing.assert_array_equal(half.codes, whole.codes)
