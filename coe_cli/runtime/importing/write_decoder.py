"""Writes a decoder's model.onnx and its data file: the frame around ``decoder_graph``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.encodings import Precision, fitted
from coe_cli.core.providers import GraphRules
from coe_cli.runtime.importing.decoder_graph import DecoderGraph
from coe_cli.runtime.importing.external_data import ExternalData
from coe_cli.runtime.importing.graph_writer import GraphWriter
from coe_cli.runtime.importing.weights_map import WeightsMap

GRAPH: Final = "model.onnx"
_OPSET, _IR_VERSION = 21, 10


def write_decoder(
    decoder: Decoder,
    weights: WeightsMap,
    folder: Path,
    rules: GraphRules,
    precision: Precision,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, int]:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``folder``; returns how many matrices have which format."""
    rules = fitted(rules, decoder)
    with ExternalData(folder / f"{GRAPH}.data") as data:
        writer = GraphWriter(data, weights, rules)
        graph = DecoderGraph(decoder, writer, precision)
        graph.write(on_progress)
        inputs, outputs = _interface(decoder, rules)
        model = writer.model("main_graph", inputs, outputs, opset=_OPSET, ir_version=_IR_VERSION)
    (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
    return dict(sorted(graph.formats.items()))


def _interface(decoder: Decoder, rules: GraphRules) -> tuple[list[Any], list[Any]]:
    from onnx import TensorProto, helper

    element = TensorProto.FLOAT16 if rules.float_bits == 16 else TensorProto.FLOAT
    value = helper.make_tensor_value_info
    positions = ["batch_size", "sequence_length"]
    inputs = [
        value("input_ids", TensorProto.INT64, positions),
        value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    if not rules.rotation_in_attention:
        inputs.append(value("position_ids", TensorProto.INT64, positions))
    outputs = [value("logits", element, ["batch_size", 1, decoder.vocab_size])]
    for layer in range(decoder.layers):
        for kind in ("key", "value"):
            sizes = ["batch_size", decoder.kv_heads, "past_sequence_length", decoder.head_size]
            inputs.append(value(f"past_key_values.{layer}.{kind}", element, sizes))
            sizes = ["batch_size", decoder.kv_heads, "total_sequence_length", decoder.head_size]
            outputs.append(value(f"present.{layer}.{kind}", element, sizes))
    return inputs, outputs
