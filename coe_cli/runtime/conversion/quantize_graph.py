"""Rewrites an fp32 graph of the OGA model builder: its MatMuls become MatMulNBits with weights of our own quantiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe_cli.core.recipe import Part, Recipe, WeightFormat
from coe_cli.errors import ModelDamaged
from coe_cli.runtime.conversion.quantize import (
    QuantizedMatrix,
    quantize_asymmetric,
    quantize_offset_corrected,
    quantize_symmetric,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PARTS: tuple[tuple[str, Part], ...] = (
    ("lm_head", "head"),
    ("/attn/o_proj/", "o"),
    ("/attn/", "qkv"),
    ("/mlp/down_proj/", "down"),
    ("/mlp/", "gate_up"),
)

_WITH_SUMS = "/with_block_sums"


def part_of(node_name: str) -> Part | None:
    """Which part of a decoder layer a MatMul of the builder is, by its node name; None for one that stays as it is."""
    return next((part for mark, part in _PARTS if mark in node_name), None)


def quantize_matrix(weights: NDArray[np.float32], weight_format: WeightFormat) -> QuantizedMatrix:
    """Quantise one matrix, shape [N, K]."""
    if weight_format.method == "offset_corrected":
        return quantize_offset_corrected(weights, weight_format.block_size)
    method = quantize_symmetric if weight_format.method == "symmetric" else quantize_asymmetric
    return method(weights, weight_format.bits, weight_format.block_size)


def quantize_graph(
    source: Path,
    target: Path,
    recipe: Recipe,
    *,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Read the fp32 graph at ``source`` and write the quantised one, with its ``.data`` file beside it, at ``target``.

    Matrices are read, quantised and dropped one at a time. Where the embedding table is the head transposed, both share
    the head's codes.

    Raises:
        ModelDamaged: the graph has none of the MatMuls that the recipe names.
    """
    import onnx
    from onnx import helper, numpy_helper
    from onnx.external_data_helper import load_external_data_for_tensor

    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    def values(name: str) -> NDArray[np.float32]:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(tensors[name])
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            load_external_data_for_tensor(tensor, str(source.parent))
        array: NDArray[np.float32] = numpy_helper.to_array(tensor)
        return array

    nodes = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in tensors]
    todo = [(node, part) for node in nodes if (part := part_of(node.name)) in recipe.weights]
    if not todo:
        raise ModelDamaged(f"{source} has no weights to quantise", "Convert the model again from its source.")
    added: list[Any] = []
    sums: dict[str, tuple[int, int]] = {}
    for done, (node, part) in enumerate(todo):
        assert part is not None
        name, weight_format = node.input[1], recipe.weights[part]
        matrix = quantize_matrix(values(name).T, weight_format)
        base = name.removesuffix(".weight")
        inputs = [f"{base}.codes", f"{base}.scales"]
        added += [numpy_helper.from_array(matrix.packed_codes(), inputs[0])]
        added += [numpy_helper.from_array(matrix.scales, inputs[1])]
        zero_points = matrix.packed_zero_points()
        if zero_points is not None:
            inputs.append(f"{base}.zero_points")
            added.append(numpy_helper.from_array(zero_points, inputs[2]))
        columns, rows = (int(size) for size in tensors[name].dims)
        shape = {"K": columns, "N": rows, "bits": weight_format.bits, "block_size": weight_format.block_size}
        activations = node.input[0]
        if weight_format.method == "offset_corrected":
            shape["K"] += -(-columns // weight_format.block_size)
            sums.setdefault(activations, (columns, weight_format.block_size))
            activations += _WITH_SUMS
        _become(node, "MatMulNBits", [activations, *inputs], {**shape, "accuracy_level": recipe.accuracy_level})
        if part == "head":
            _share_embedding(graph, name, inputs, shape, added)
        on_progress((done + 1) / len(todo))
    _append_block_sums(graph, sums, added)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for tensor in kept:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            load_external_data_for_tensor(tensor, str(source.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added])
    if not any(opset.domain == "com.microsoft" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data", size_threshold=1024)
    # onnx makes the data file readable to its owner alone, whatever the umask
    target.with_name(f"{target.name}.data").chmod(target.stat().st_mode & 0o777)


def _append_block_sums(graph: Any, sums: dict[str, tuple[int, int]], added: list[Any]) -> None:
    """Behind each activation of ``sums`` (name → columns, block size), append the sums of its blocks as columns.

    One copy serves all the matrices that read the activation.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    for columns, block_size in sorted(set(sums.values())):
        indicator = np.zeros((columns, -(-columns // block_size)), np.float32)
        indicator[np.arange(columns), np.arange(columns) // block_size] = 1
        added.append(numpy_helper.from_array(indicator, f"block_sums_{columns}_{block_size}"))
    nodes = []
    written = set()
    for node in graph.node:
        for name in node.input:
            activation = name.removesuffix(_WITH_SUMS)
            if name.endswith(_WITH_SUMS) and activation not in written:
                written.add(activation)
                columns, block_size = sums[activation]
                block_sums = f"{activation}/block_sums"
                inputs = [activation, f"block_sums_{columns}_{block_size}"]
                nodes.append(helper.make_node("MatMul", inputs, [block_sums], name=block_sums))
                nodes.append(helper.make_node("Concat", [activation, block_sums], [name], name=name, axis=-1))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _share_embedding(graph: Any, head: str, inputs: list[str], shape: dict[str, int], added: list[Any]) -> None:
    """Let the embedding look its rows up in the head's codes, where the builder made it a transpose of the head."""
    import numpy as np
    from onnx import numpy_helper

    transpose = next((node for node in graph.node if node.op_type == "Transpose" and node.input[0] == head), None)
    if transpose is None:
        return
    table = transpose.output[0]
    stale = [value for value in graph.value_info if value.name == table]
    for value in stale:
        graph.value_info.remove(value)
    columns = shape["K"] * shape["bits"] // 8
    added.append(numpy_helper.from_array(np.array([shape["N"], columns], np.int64), "model.embed_tokens.codes_shape"))
    _become(transpose, "Reshape", [inputs[0], "model.embed_tokens.codes_shape"], {}, domain="")
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] == table:
            attributes = {
                "bits": shape["bits"],
                "block_size": shape["block_size"],
                "gather_axis": 0,
                "quantize_axis": 1,
            }
            _become(node, "GatherBlockQuantized", [table, node.input[1], *inputs[1:]], attributes)


def _become(
    node: Any, op_type: str, inputs: list[str], attributes: dict[str, int], domain: str = "com.microsoft"
) -> None:
    from onnx import helper

    node.op_type, node.domain = op_type, domain
    del node.input[:], node.attribute[:]
    node.input.extend(inputs)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
