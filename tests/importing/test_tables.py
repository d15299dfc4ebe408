"""Embedding tables that keep the codes of their source, looked up by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from coe_cli.core.importing.encodings import table_encoding
from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.runtime.importing.dequantize import dequantize
from coe_cli.runtime.importing.external_data import ExternalData
from coe_cli.runtime.importing.graph_writer import GraphWriter
from coe_cli.runtime.importing.matrices import Rows, write_quantized
from coe_cli.runtime.importing.weights_map import Stored, WeightsMap
from importing.configurations import RULES

ROWS, COLUMNS = 40, 1280
"""1280 columns are 40 blocks: their offsets fill a block of 32 and a part of another."""


def raw_rows(type_name: str) -> np.ndarray:
    """Random blocks with scales, and minima where they have any, of about a hundredth."""
    block = BLOCK_TYPES[type_name]
    random = np.random.default_rng(3)
    blocks = random.integers(0, 256, (ROWS * COLUMNS // block.elements, block.bytes), np.uint8)
    halves = random.uniform(0.005, 0.02, (len(blocks), 1 if type_name.endswith("_0") else 2)).astype(np.float16)
    blocks[:, : 2 * halves.shape[1]] = halves.view(np.uint8)
    return blocks.reshape(ROWS, -1)


@pytest.mark.parametrize(("type_name", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q4_K", 4), ("Q8_0", 8)])
def test_rows_of_a_table_are_the_sources(tmp_path: Path, type_name: str, bits: int) -> None:
    raw = raw_rows(type_name)
    (tmp_path / "weights").write_bytes(raw.tobytes())
    weights = WeightsMap({"embedding.weight": Stored(tmp_path / "weights", 0, type_name, (ROWS, COLUMNS))})
    encoding = table_encoding(type_name, COLUMNS, RULES["cpu"])
    assert encoding.bits == bits
    with ExternalData(tmp_path / "model.onnx.data") as data:
        writer = GraphWriter(data, weights, RULES["cpu"])
        names, columns = write_quantized(data, weights, "t", [Rows("embedding.weight", 0, ROWS)], encoding, np.float32)
        data.reshape(names[0], (ROWS, -(-columns // 32) * 32 * bits // 8))
        output = writer.gathered("/rows", names, encoding, COLUMNS, is_head=False)
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "n"])
        rows = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, "n", COLUMNS])
        model = writer.model("table", [ids], [rows], opset=21, ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"input_ids": np.array([[7, 0, ROWS - 1]])})[0][0]
    expected = dequantize(type_name, raw)[[7, 0, ROWS - 1]]
    level = 0.02 * (63 if type_name == "Q4_K" else 1)
    assert np.abs(found - expected).max() <= level / 20
