"""Rewrite a finished decoder graph, without touching its weights: to keep to its provider's graph rules, and to prune its head.

Three rewrites, each only where the rules ask for it and the graph needs it: RMS norms in fp32 between casts, with the residual
left in fp32 from one norm to the next; rotation by RotaryEmbedding nodes before GroupQueryAttention; and embeddings looked up in
a table of the graph's float type instead of in quantised blocks.

The fourth lets the head run on the last position only, as ``prune_lm_head`` does at build time. One that runs on every position
writes tokens × vocabulary logits of which all but the last row are thrown away (3 GB at 7000 tokens and a vocabulary
of 152k, and a quarter of the prefill time).
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Final

from coe_cli.core.models.graph_check import RMS_NORMS
from coe_cli.core.providers.base import GraphRules

TABLE_SUFFIX: Final = ".embedding.data"
"""Ends the name of the file with the table of embeddings, which lies beside the graph."""

_PREFIX: Final = "/coe/fit"
_MS: Final = "com.microsoft"
_ROWS_AT_A_TIME: Final = 4096


class NotFitting(Exception):
    """The graph needs a rewrite that is not known for its form."""


def write_fitted(graph: Path, target: Path, rules: GraphRules) -> list[str]:
    """Write ``graph`` to ``target`` as ``rules`` ask for; returns what was changed, in words, empty where nothing was.

    External data is referred to: it has to lie beside ``target`` under the same names. A table of embeddings is written
    beside ``target`` under its name and ``TABLE_SUFFIX``.

    Raises:
        NotFitting: a node has a form that is not known.
        ValueError: it is not an ONNX graph.
    """
    import onnx_ir as ir

    model = load_graph(graph)
    changes: list[str] = []
    if not rules.quantized_embedding and _tables_from_blocks(model, target):
        changes.append("embeddings in a table")
    if not rules.rotation_in_attention and _rotate_before_attention(model):
        changes.append("rotation before attention")
    if rules.norms_in_fp32 and _norms_in_fp32(model):
        changes.append("RMS norms in fp32")
    if changes:
        ir.save(model, target)
    return changes


def load_graph(graph: Path) -> Any:
    """The ``onnx_ir`` model in ``graph``.

    Raises:
        ValueError: it is not an ONNX graph.
    """
    import onnx_ir as ir

    try:
        return ir.load(graph)
    except Exception as error:
        raise ValueError(f"{graph} is not an ONNX graph: {type(error).__name__}") from None


def _norms_in_fp32(model: Any) -> bool:
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    in_fp32: dict[str, Any] = {}
    changed = False
    for node in list(model.graph):
        weight = RMS_NORMS.get(node.op_type)
        if weight is None or node.inputs[weight] is None or node.inputs[weight].dtype != half:
            continue
        changed = True
        for index in range(len(node.inputs)):
            value = node.inputs[index]
            if value is None:
                continue
            if value.name not in in_fp32:
                if value.const_value is not None:
                    numbers = _numbers(value.const_value).astype("float32")
                    in_fp32[value.name] = add_constant(model, f"{value.name}/fp32", ir.tensor(numbers))
                else:
                    in_fp32[value.name] = _cast(model, node, value, f"{value.name}/fp32", single)
            node.replace_input_with(index, in_fp32[value.name])
        for wide in node.outputs:
            if not wide.uses():
                continue
            name, wide.name, wide.dtype = wide.name, f"{wide.name}/fp32", single
            cast = ir.node("Cast", [wide], {"to": half}, name=f"{name}/fp16")
            _take_place(model, wide, node, cast, name, half)
            in_fp32[name] = wide
    RemoveUnusedNodesPass()(model)
    return changed


def _rotate_before_attention(model: Any) -> bool:
    """Queries and keys rotated by nodes of their own; a graph without ``position_ids`` gets them as an input."""
    import onnx_ir as ir

    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention" and _int(node, "do_rotary", 0)]
    for node in nodes:
        heads, kv_heads = _int(node, "num_heads", 0), _int(node, "kv_num_heads", 0)
        inputs = [*node.inputs, *[None] * (10 - len(node.inputs))]
        query, key, value, cos, sin, places = (inputs[i] for i in (0, 1, 2, 7, 8, 9))
        if cos is None or sin is None or cos.shape is None or not heads or not kv_heads:
            raise NotFitting(f"its attention `{node.name}` has a form that is not known")
        if key is None:
            query, key, value = _split_qkv(model, node, query, heads, kv_heads, inputs[3])
        places = places or _position_ids(model)
        rotated = []
        for what, states, count in (("q", query, heads), ("k", key, kv_heads)):
            output = ir.Value(name=f"{node.name}/{what}_rotated", type=states.type, shape=states.shape)
            attributes = {"interleaved": _int(node, "rotary_interleaved", 0)}
            if (size := _head_size(inputs[3])) and 2 * int(cos.shape[1]) != size:
                attributes |= {"rotary_embedding_dim": 2 * int(cos.shape[1]), "num_heads": count}
            inputs_of_it, name = [states, places, cos, sin], f"{output.name}/it"
            rotation = ir.node("RotaryEmbedding", inputs_of_it, attributes, domain=_MS, outputs=[output], name=name)
            model.graph.insert_before(node, rotation)
            rotated.append(output)
        for index, state in enumerate((*rotated, value)):
            node.replace_input_with(index, state)
        for index in (7, 8, 9):
            if index < len(node.inputs):
                node.replace_input_with(index, None)
        node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
    return bool(nodes)


def _split_qkv(model: Any, node: Any, packed: Any, heads: int, kv_heads: int, past: Any) -> list[Any]:
    import onnx_ir as ir

    size = _head_size(past)
    if size is None:
        raise NotFitting(f"its attention `{node.name}` does not tell the size of a head")
    sizes = ir.tensor([heads * size, kv_heads * size, kv_heads * size], dtype=ir.DataType.INT64)
    outputs = [ir.Value(name=f"{node.name}/{what}", type=packed.type) for what in ("q", "k", "v")]
    widths = add_constant(model, f"{_PREFIX}/qkv_{heads}_{kv_heads}_{size}", sizes)
    split = ir.node("Split", [packed, widths], {"axis": -1}, outputs=outputs, name=f"{node.name}/split")
    model.graph.insert_before(node, split)
    return outputs


def _position_ids(model: Any) -> Any:
    import onnx_ir as ir

    known = next((value for value in model.graph.inputs if value.name == "position_ids"), None)
    if known is not None:
        return known
    tokens = next((value for value in model.graph.inputs if value.name == "input_ids"), None)
    shape = tokens.shape if tokens is not None else ir.Shape(["batch_size", "sequence_length"])
    places = ir.Value(name="position_ids", type=ir.TensorType(ir.DataType.INT64), shape=shape)
    model.graph.inputs.append(places)
    return places


def _tables_from_blocks(model: Any, target: Path) -> bool:
    """One table for each quantised embedding, written row by row into one file beside the graph."""
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    nodes = [node for node in model.graph if node.op_type == "GatherBlockQuantized"]
    place = target.with_name(target.name + TABLE_SUFFIX)
    for number, node in enumerate(nodes):
        with place.open("ab" if number else "wb") as file:
            rows, columns = _write_table(file, *_blocks(node))
        output, kind = node.outputs[0], node.inputs[2].const_value.dtype
        length = int(rows * columns * kind.itemsize)
        table = ir.ExternalTensor(
            place.name,
            place.stat().st_size - length,
            length,
            kind,
            shape=ir.Shape([rows, columns]),
            name=f"{node.name}/table",
            base_dir=place.parent,
        )
        value = add_constant(model, table.name, table)
        gather = ir.node("Gather", [value, node.inputs[1]], {"axis": 0}, name=f"{node.name}/Gather")
        name, output.name = output.name, f"{output.name}/blocks"
        _take_place(model, output, node, gather, name, kind)
        model.graph.remove(node, safe=True)
    RemoveUnusedNodesPass()(model)
    return bool(nodes)


def _blocks(node: Any) -> tuple[Any, Any, Any, int, int]:
    """Codes (rows × bytes), scales (rows × blocks), zero points or None, bits and block size of a GatherBlockQuantized."""
    import onnx_ir as ir

    source, bits, block = node.inputs[0], _int(node, "bits", 4), _int(node, "block_size", 128)
    while source.const_value is None and source.producer() is not None and source.producer().op_type == "Reshape":
        source = source.producer().inputs[0]
    parts = [source, node.inputs[2], node.inputs[3] if len(node.inputs) > 3 else None]
    codes, scales, zeros = (part.const_value if part is not None else None for part in parts)
    known = bits in (4, 8) and _int(node, "gather_axis", 0) == 0 and _int(node, "quantize_axis", 1) == 1
    if not known or codes is None or scales is None or codes.dtype != ir.DataType.UINT8 or (parts[2] and zeros is None):
        raise NotFitting(f"its embedding `{node.name}` has a form that is not known")
    rows = int(scales.shape[0])
    points = _numbers(zeros).reshape(rows, -1) if zeros is not None else None
    return _numbers(codes).reshape(rows, -1), _numbers(scales).reshape(rows, -1), points, bits, block


def _numbers(tensor: Any) -> Any:
    """A tensor's values; external data is mapped. onnx_ir itself reads none whose file has a second name (a hard link)."""
    import numpy as np
    import onnx_ir as ir

    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    folder = Path(tensor.base_dir).resolve()
    path = (folder / tensor.location).resolve()
    if not path.is_relative_to(folder):
        raise NotFitting(f"it reads {tensor.location}, outside of its folder")
    shape = tuple(int(size) for size in tensor.shape)
    return np.memmap(path, tensor.dtype.numpy(), "r", tensor.offset or 0, shape)


def _write_table(file: IO[bytes], codes: Any, scales: Any, zeros: Any, bits: int, block: int) -> tuple[int, int]:
    """Write the dequantised rows, some thousands at a time; returns rows and columns."""
    import numpy as np

    columns = codes.shape[1] * 8 // bits
    for begin in range(0, len(codes), _ROWS_AT_A_TIME):
        rows = slice(begin, begin + _ROWS_AT_A_TIME)
        wide = np.repeat(scales[rows].astype(np.float32), block, axis=1)[:, :columns]
        middle: Any = np.float32(1 << (bits - 1))
        if zeros is not None:
            middle = np.repeat(_unpacked(zeros[rows], bits)[:, : scales.shape[1]], block, axis=1)[:, :columns]
        file.write(((_unpacked(codes[rows], bits) - middle) * wide).astype(scales.dtype).tobytes())
    return len(codes), columns


def _unpacked(codes: Any, bits: int) -> Any:
    """4-bit codes lie two in a byte, the lower first."""
    import numpy as np

    if bits == 8:
        return codes.astype(np.float32)
    return np.stack((codes & 15, codes >> 4), axis=-1).reshape(len(codes), -1).astype(np.float32)


def _take_place(model: Any, old: Any, after: Any, node: Any, name: str, kind: Any) -> None:
    """Put ``node`` behind ``after``; its output is called ``name`` and read by whoever read ``old``, but ``node`` itself."""
    import onnx_ir as ir

    new = node.outputs[0]
    new.name, new.type, new.shape = name, ir.TensorType(kind), old.shape
    for user, index in list(old.uses()):
        if user is not node:
            user.replace_input_with(index, new)
    model.graph.insert_after(after, node)


def _cast(model: Any, before: Any, value: Any, name: str, kind: Any) -> Any:
    import onnx_ir as ir

    output = ir.Value(name=name, type=ir.TensorType(kind), shape=value.shape)
    model.graph.insert_before(before, ir.node("Cast", [value], {"to": kind}, outputs=[output], name=name))
    return output


def add_constant(model: Any, name: str, tensor: Any) -> Any:
    """The initializer called ``name``, made of ``tensor`` where there is none yet."""
    import onnx_ir as ir

    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor.name = name
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    model.graph.register_initializer(value)
    return value


def _head_size(past: Any) -> int | None:
    """The last dimension of a key cache, where the graph tells it."""
    size = past.shape[3] if past is not None and past.shape is not None and len(past.shape) == 4 else None
    return size if isinstance(size, int) else None


def _int(node: Any, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return int(attribute.value) if attribute is not None else default


_HEADS = {"MatMul", "MatMulNBits", "Gemm", "MatMulBnb4", "DequantizeMatMul"}
_BY_ELEMENT = {"Cast", "Mul", "Add", "Sub", "Div", "Tanh", "Where", "Clip", "Identity"}
_PRUNED = "/coe/last_position"


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
    gathered, kept = ir.Value(name=f"{_PRUNED}/Gather/output_0"), ir.Value(name=f"{_PRUNED}/Unsqueeze/output_0")
    if hidden.dtype is not None:
        gathered.dtype = kept.dtype = hidden.dtype
    constants = [
        add_constant(model, f"{_PRUNED}/index", ir.tensor(-1, dtype=ir.DataType.INT64)),
        add_constant(model, f"{_PRUNED}/axes", ir.tensor([1], dtype=ir.DataType.INT64)),
    ]
    nodes = [
        ir.node("Gather", [hidden, constants[0]], {"axis": 1}, outputs=[gathered], name=f"{_PRUNED}/Gather"),
        ir.node("Unsqueeze", [gathered, constants[1]], outputs=[kept], name=f"{_PRUNED}/Unsqueeze"),
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
