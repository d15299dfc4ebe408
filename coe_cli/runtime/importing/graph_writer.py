"""Nodes of a graph; those of a decoder one method each: which operator, in which domain, in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from coe_cli.core.importing.encodings import Encoding
from coe_cli.core.providers import GraphRules
from coe_cli.runtime.importing.external_data import ExternalData
from coe_cli.runtime.importing.matrices import Rows, write_floats, write_quantized
from coe_cli.runtime.importing.weights_map import WeightsMap

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONTRIB: Final = "com.microsoft"
WITH_SUMS: Final = "/with_block_sums"
"""So ends the name of an activation with the sums of its blocks behind it (core/models/onnx_graph.py counts them)."""


class GraphNodes:
    """Collects nodes; writes tensors into ``data`` at once. Values are named after the node that makes them."""

    def __init__(self, data: ExternalData) -> None:
        self.data = data
        self.nodes: list[Any] = []
        self._constants: dict[tuple[str, str], str] = {}

    def node(
        self,
        operator: str,
        name: str,
        inputs: list[str],
        outputs: list[str] | None = None,
        domain: str = "",
        **numbers: Any,
    ) -> str:
        """Add a node; returns its first output, ``name/output_0`` unless ``outputs`` are given."""
        from onnx import helper

        outputs = outputs or [f"{name}/output_0"]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **numbers))
        return outputs[0]

    def constant(self, values: Any, element: Any) -> str:
        """A small tensor, written once however often it is used."""
        import numpy as np

        array = np.array(values, element)
        key = (array.dtype.name, str(array.tolist()))
        if key not in self._constants:
            label = key[1].replace(" ", "") if array.size <= 4 else f"{array.size}_values_{len(self._constants)}"
            self._constants[key] = self.data.add(f"/model/constants/{key[0]}/{label}", array)
        return self._constants[key]

    def cast(self, value: str, element: Any) -> str:
        import numpy as np
        from onnx import helper

        kind = helper.np_dtype_to_tensor_dtype(np.dtype(element))
        return self.node("Cast", f"{value}/Cast_{np.dtype(element).name}", [value], to=kind)

    def model(self, name: str, inputs: list[Any], outputs: list[Any], *, opset: int, ir_version: int) -> Any:
        """The ModelProto of all nodes and tensors."""
        from onnx import helper

        return helper.make_model(
            helper.make_graph(self.nodes, name, inputs, outputs, self.data.tensors),
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)],
            ir_version=ir_version,
            producer_name="coe",
        )


class GraphWriter(GraphNodes):
    """The nodes of a decoder, with the matrices of ``weights``."""

    def __init__(self, data: ExternalData, weights: WeightsMap, rules: GraphRules) -> None:
        import numpy as np

        super().__init__(data)
        self.weights, self.rules = weights, rules
        self.io_type: type[Any] = np.float16 if rules.float_bits == 16 else np.float32
        self._widened: dict[tuple[str, int], str] = {}
        self.scale_type = self.io_type
        """That of stored scales."""
        self._casts: dict[str, str] = {}

    def scale(self, name: str, value: str, factor: float, element: Any) -> str:
        return value if factor == 1.0 else self.node("Mul", name, [value, self.constant(factor, element)])

    def matrix(self, name: str, value: str, rows: list[Rows], encoding: Encoding) -> str:
        """``value`` times the transposed matrix of ``rows``, plus their biases where the source has any."""
        tensor = name.removeprefix("/").replace("/", ".")
        if encoding.quantized:
            names, columns = write_quantized(self.data, self.weights, tensor, rows, encoding, self.scale_type)
            result = self.quantized_product(name, value, names, encoding, (columns, sum(len(item) for item in rows)))
        else:
            weight = write_floats(self.data, self.weights, f"{tensor}.weight", rows, self.io_type)
            result = self.node("MatMul", name, [value, weight])
        bias = self._bias(rows)
        if bias is not None:
            added = self.data.add(f"{tensor.removesuffix('.MatMul')}.Add.bias", bias)
            result = self.node("Add", f"{name.removesuffix('/MatMul')}/Add", [result, added])
        return result

    def quantized_product(
        self, name: str, value: str, names: list[str], encoding: Encoding, size: tuple[int, int], output: str = ""
    ) -> str:
        """``size``: columns and rows of the matrix."""
        columns, rows = size
        codes, scales, *zero_points = names
        if encoding.offsets:
            value = self._with_block_sums(value, encoding.block_size, columns)
        return self.node(
            "MatMulNBits",
            name,
            [value, codes, self._as_io_type(scales), *zero_points],
            [output] if output else None,
            CONTRIB,
            K=columns,
            N=rows,
            bits=encoding.bits,
            block_size=encoding.block_size,
            accuracy_level=self.rules.accuracy_level,
        )

    def gathered(self, name: str, names: list[str], encoding: Encoding, columns: int, *, is_head: bool) -> str:
        """The rows of ``input_ids`` of a table of ``columns``: codes (two dimensions), scales and zero points. Offsets lie behind the codes."""
        import numpy as np

        codes, scales, *zero_points = names
        value = self.node(
            "GatherBlockQuantized",
            name,
            [codes, "input_ids", self._as_io_type(scales) if is_head else scales, *zero_points],
            domain=CONTRIB,
            bits=encoding.bits,
            block_size=encoding.block_size,
            gather_axis=0,
            quantize_axis=1,
        )
        if not is_head:  # only the rows that are looked up: a table's scales stay in the file
            value = self._as_io_type(value)
        if not encoding.offsets:
            return value

        def part(kind: str, start: int, stop: int, width: int) -> str:
            bounds = [self.constant([number], np.int64) for number in (start, stop, -1)]
            cut = self.node("Slice", f"{name}/{kind}", [value, *bounds])
            return self.node("Reshape", f"{name}/{kind}/blocks", [cut, self.constant([0, 0, -1, width], np.int64)])

        size = encoding.block_size
        offsets = part("offsets", columns, columns + columns // size, 1)
        whole = self.node("Add", f"{name}/Add", [part("codes", 0, columns, size), offsets])
        return self.node("Reshape", f"{name}/Add/rows", [whole, self.constant([0, 0, -1], np.int64)])

    def _as_io_type(self, value: str) -> str:
        """Scales, or what is made with them, in the type of activations. Of a constant, ONNX Runtime makes it once, when it loads."""
        if self.scale_type is self.io_type:
            return value
        if value not in self._casts:
            self._casts[value] = self.cast(value, self.io_type)
        return self._casts[value]

    def _with_block_sums(self, value: str, size: int, columns: int) -> str:
        """``value`` with the sums of its blocks as further columns, made once for all the matrices that read it."""
        import numpy as np

        key = (value, size)
        if key not in self._widened:
            # a product with a column of ones: ReduceSum takes a tenth of a token's time more on the CPU, and a matrix that
            # sums a whole row grows with the square of its width (11 MB to read for 8960 columns)
            blocked = self.node("Reshape", f"{value}/blocks", [value, self.constant([0, 0, -1, size], np.int64)])
            ones = self.constant([[1.0]] * size, self.io_type)
            column = self.node("MatMul", f"{value}/block_sums", [blocked, ones])
            sums = self.node("Reshape", f"{value}/block_sums/row", [column, self.constant([0, 0, -1], np.int64)])
            name = f"{value}{WITH_SUMS}"
            self._widened[key] = self.node("Concat", name, [value, sums], [name], axis=-1)
        return self._widened[key]

    def _bias(self, rows: list[Rows]) -> NDArray[Any] | None:
        import numpy as np

        parts = []
        for item in rows:
            part = item.part.removesuffix(".weight") + ".bias"
            if part in self.weights:
                found = self.weights.floats(part)[item.start : item.stop]
                parts.append((found[item.order] if item.order is not None else found) * np.float32(item.factor))
            else:
                parts.append(np.zeros(len(item), np.float32))
        has_any = any(item.part.removesuffix(".weight") + ".bias" in self.weights for item in rows)
        return np.concatenate(parts).astype(self.io_type) if has_any else None
