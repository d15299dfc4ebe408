"""Rewrite a decoder graph so that its head runs on the last position only, as ``prune_lm_head`` does at build time.

A head that runs on every prompt position writes tokens × vocabulary logits of which all but the last row are thrown away
(DESIGN §6: 3 GB at 7000 tokens and a vocabulary of 152k, and a quarter of the prefill time).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coe_cli.runtime.conversion.fit_graph import add_constant, load_graph

_HEADS = {"MatMul", "MatMulNBits", "Gemm", "MatMulBnb4", "DequantizeMatMul"}
_BY_ELEMENT = {"Cast", "Mul", "Add", "Sub", "Div", "Tanh", "Where", "Clip", "Identity"}
_PREFIX = "/coe/last_position"


class NotPrunable(Exception):
    """The graph's head has a form that this rewrite does not know, or runs on the last position already."""


def write_pruned(graph: Path, target: Path, logits_name: str = "logits") -> None:
    """Write ``graph`` to ``target`` in the same or another folder with Gather(-1) and Unsqueeze before its head.

    External data is referred to, not read or written: it has to lie beside ``target`` under the same names.

    Raises:
        NotPrunable: the graph is left alone.
        ValueError: it is not an ONNX graph.
    """
    import onnx_ir as ir

    model = load_graph(graph)
    logits = next((value for value in model.graph.outputs if value.name == logits_name), None)
    if logits is None or logits.shape is None or len(logits.shape) != 3:
        raise NotPrunable("it has no output of logits with three dimensions")
    if logits.shape[1] == 1:
        raise NotPrunable("its head runs on the last position already")
    head, after = _find_head(logits)
    hidden = head.inputs[0]
    gathered, kept = ir.Value(name=f"{_PREFIX}/Gather/output_0"), ir.Value(name=f"{_PREFIX}/Unsqueeze/output_0")
    if hidden.dtype is not None:
        gathered.dtype = kept.dtype = hidden.dtype
    constants = [
        add_constant(model, f"{_PREFIX}/index", ir.tensor(-1, dtype=ir.DataType.INT64)),
        add_constant(model, f"{_PREFIX}/axes", ir.tensor([1], dtype=ir.DataType.INT64)),
    ]
    nodes = [
        ir.node("Gather", [hidden, constants[0]], {"axis": 1}, outputs=[gathered], name=f"{_PREFIX}/Gather"),
        ir.node("Unsqueeze", [gathered, constants[1]], outputs=[kept], name=f"{_PREFIX}/Unsqueeze"),
    ]
    model.graph.insert_before(head, nodes)
    head.replace_input_with(0, kept)
    for value in after:
        if value.shape is not None and len(value.shape) == 3:
            value.shape = ir.Shape([value.shape[0], 1, value.shape[2]])
    ir.save(model, target)


def _find_head(logits: Any) -> tuple[Any, list[Any]]:
    """The matrix product that makes the logits and the values between it and them, which have one row a position."""
    value, after = logits, [logits]
    while True:
        node = value.producer()
        if node is None:
            raise NotPrunable("its logits come from no matrix product")
        if node.op_type in _HEADS:
            if node.inputs[0] is None or _is_constant(node.inputs[0]):
                raise NotPrunable("its head multiplies the other way round")
            return node, after
        moving = [item for item in node.inputs if item is not None and not _is_constant(item)]
        if node.op_type not in _BY_ELEMENT or len(moving) != 1:
            raise NotPrunable(f"its logits come out of {node.op_type}, which this rewrite does not know")
        value = moving[0]
        after.append(value)


def _is_constant(value: Any) -> bool:
    if value.is_initializer():
        return True
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"
