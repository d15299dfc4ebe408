"""What an ONNX decoder graph says about itself, read without its weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

Positions = Literal["all", "last"]


class GraphFacts(Struct, frozen=True):
    """Facts of a decoder graph; what the graph does not say is None.

    ``logits_positions`` is "last" where the head runs on the last position only (``prune_lm_head``).
    ``external`` maps each external data file to the bytes that the graph reads up to.
    ``weights`` counts the matrices by their format, for example ``{"int4, blocks of 32": 210}``.
    """

    layers: int
    kv_heads: int | None
    head_size: int | None
    vocab_size: int | None
    logits_positions: Positions | None
    attention: dict[str, int]
    weights: dict[str, int]
    kv_type: str | None
    io_type: str | None
    external: dict[str, int]


def read_graph(path: Path, *, past_key: str = "past_key_values.%d.key", logits: str = "logits") -> GraphFacts:
    """Read the graph at ``path``; ``past_key`` and ``logits`` are the names that ``genai_config.json`` gives them.

    Raises:
        ValueError: the file is not an ONNX graph.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ValueError(f"{path} is not an ONNX graph: {type(error).__name__}") from None
    graph = model.graph
    inputs = {item.name: item for item in graph.input}
    layers = 0
    while past_key % layers in inputs:
        layers += 1
    kv_shape = _shape(inputs[past_key % 0]) if layers else []
    output = next((item for item in graph.output if item.name == logits), None)
    logits_shape = _shape(output) if output is not None else []
    return GraphFacts(
        layers=layers,
        kv_heads=_integer(kv_shape, 1) or _attribute(graph, "GroupQueryAttention", "kv_num_heads"),
        head_size=_integer(kv_shape, 3),
        vocab_size=_integer(logits_shape, 2),
        logits_positions=("last" if logits_shape[1] == 1 else "all") if len(logits_shape) == 3 else None,
        attention=dict(Counter(node.op_type for node in graph.node if "Attention" in node.op_type)),
        weights=_weight_formats(graph),
        kv_type=_type_name(inputs[past_key % 0]) if layers else None,
        io_type=_type_name(output) if output is not None else None,
        external=_external(graph),
    )


def graph_names(config: dict[str, Any]) -> tuple[str, str]:
    """The names that ``genai_config.json`` gives the graph's cache keys (with one ``%d``) and its logits."""
    decoder = config["model"].get("decoder")
    decoder = decoder if isinstance(decoder, dict) else {}
    inputs, outputs = decoder.get("inputs"), decoder.get("outputs")
    past = inputs.get("past_key_names") if isinstance(inputs, dict) else None
    logits = outputs.get("logits") if isinstance(outputs, dict) else None
    return (
        past if isinstance(past, str) and past.count("%d") == 1 and past.count("%") == 1 else "past_key_values.%d.key",
        logits if isinstance(logits, str) else "logits",
    )


def external_data_sizes(path: Path) -> dict[str, int]:
    """File name → bytes that the graph reads up to, for each external data file of an ONNX graph.

    Raises:
        ValueError: the file is not an ONNX graph.
    """
    return read_graph(path).external


def _external(graph: Any) -> dict[str, int]:
    import onnx

    sizes: dict[str, int] = {}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            location = entry.get("location", "")
            end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
            sizes[location] = max(sizes.get(location, 0), end)
    return sizes


def _weight_formats(graph: Any) -> dict[str, int]:
    import onnx

    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            values = {item.name: item.i for item in node.attribute}
            found[f"int{values.get('bits', 4)}, blocks of {values.get('block_size', 0)}"] += 1
        elif node.op_type in ("MatMul", "Gemm"):
            found.update(onnx.TensorProto.DataType.Name(types[name]).lower() for name in node.input if name in types)
    return dict(found)


def _shape(value: Any) -> list[int | str]:
    return [item.dim_param or item.dim_value for item in value.type.tensor_type.shape.dim]


def _integer(shape: list[int | str], axis: int) -> int | None:
    value = shape[axis] if axis < len(shape) else None
    return value if isinstance(value, int) and value > 0 else None


def _type_name(value: Any) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def _attribute(graph: Any, op_type: str, name: str) -> int | None:
    return next(
        (int(item.i) for node in graph.node if node.op_type == op_type for item in node.attribute if item.name == name),
        None,
    )
