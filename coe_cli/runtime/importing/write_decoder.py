"""Writes a decoder's model.onnx and its data file: the frame around ``decoder_graph``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.encodings import Precision, fitted
from coe_cli.core.providers import GraphRules
from coe_cli.runtime.importing.attention import interface
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
        inputs, outputs = interface(decoder, rules)
        model = writer.model("main_graph", inputs, outputs, opset=_OPSET, ir_version=_IR_VERSION)
    (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
    return dict(sorted(graph.formats.items()))
