"""Writes the graph of a decoder for ONNX Runtime GenAI: embedding, layers, head on the last position.

The operators are those of the OGA model builder's graphs; what differs between providers is in core/importing/encodings.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.encodings import SMALL_WEIGHTS, Encoding, Precision, encoding_of, table_encoding
from coe_cli.core.providers import GraphRules
from coe_cli.runtime.importing.attention import last_rows, write_attention, write_lengths
from coe_cli.runtime.importing.graph_writer import CONTRIB, GraphWriter
from coe_cli.runtime.importing.matrices import Rows, alike, type_of, write_quantized, write_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class DecoderGraph:
    """Writes one decoder's graph and weights; ``formats`` counts its matrices by source type and encoding."""

    def __init__(self, decoder: Decoder, writer: GraphWriter, precision: Precision) -> None:
        self.decoder, self.writer, self.precision = decoder, writer, precision
        self.rules: GraphRules = writer.rules
        self.formats: Counter[str] = Counter()
        self._wide = self.rules.float_bits == 16 and (self.rules.norms_in_fp32 or decoder.wide_residual)
        self._small = sum(item.rows * item.columns for item in writer.weights.parts.values()) < SMALL_WEIGHTS
        self._caches: dict[int, tuple[str, str]] = {}
        if not self._small:  # a small one would gain 8 MB, and its 4-bit matrices are as the file has them
            import numpy as np

            writer.scale_type = np.float16

    # --- weights

    def _encoding(self, rows: list[Rows], *, head: bool = False) -> Encoding:
        from msgspec.structs import replace

        weights = self.writer.weights
        found = encoding_of(type_of(weights, rows), self.rules, self.precision, head=head, small=self._small)
        if weights.parts[rows[0].part].columns % found.block_size:
            found = replace(found, block_size=32, offsets=False, exact=found.exact and not found.offsets)
        return found

    def _matrix(self, name: str, value: str, rows: list[Rows]) -> str:
        encoding = self._encoding(rows)
        self.formats[f"{type_of(self.writer.weights, rows)}: {encoding.label()}"] += 1
        return self.writer.matrix(name, value, rows, encoding)

    def _whole(self, part: str, factor: float = 1.0) -> Rows:
        return Rows(part, 0, self.writer.weights.parts[part].rows, factor=factor)

    def _projections(self, layer: int) -> tuple[Rows, Rows, Rows]:
        """Query, key and value of a layer, from one tensor or three."""
        decoder, weights = self.decoder, self.writer.weights
        q, kv = decoder.q_size, decoder.kv_size
        packed = f"{layer}.qkv.weight"
        if packed in weights:
            return Rows(packed, 0, q), Rows(packed, q, q + kv), Rows(packed, q + kv, q + 2 * kv)
        order_q = order_k = None
        if decoder.interleaved_qk:
            order_q, order_k = (
                _half_rotated(decoder.heads, decoder.head_size),
                _half_rotated(decoder.kv_heads, decoder.head_size),
            )
        return (
            Rows(f"{layer}.q.weight", 0, q, order_q),
            Rows(f"{layer}.k.weight", 0, kv, order_k),
            Rows(f"{layer}.v.weight", 0, kv),
        )

    def _gate_up(self, layer: int) -> tuple[Rows, Rows]:
        inner, weights = self.decoder.intermediate_size, self.writer.weights
        if f"{layer}.gate.weight" in weights:
            return self._whole(f"{layer}.gate.weight"), self._whole(f"{layer}.up.weight")
        both = f"{layer}.gate_up.weight" if f"{layer}.gate_up.weight" in weights else f"{layer}.up.weight"
        return Rows(both, 0, inner), Rows(both, inner, 2 * inner)

    # --- norms and residuals

    def _norm_type(self) -> Any:
        import numpy as np

        return np.float32 if self._wide else self.writer.io_type

    def _norm_weight(self, part: str, name: str, factor: float = 1.0) -> str:
        import numpy as np

        values = (self.writer.weights.floats(part) + np.float32(self.decoder.norm_offset)) * np.float32(factor)
        return self.writer.data.add(
            f"{name.removeprefix('/').replace('/', '.')}.weight", values.astype(self._norm_type())
        )

    def _norm(self, part: str, name: str, value: str, *, is_wide: bool = False, stays_wide: bool = False) -> str:
        """An RMS norm by itself; in fp32, with casts before and behind as they are needed, where norms are wide."""
        import numpy as np

        writer = self.writer
        if self._wide and not is_wide:
            value = writer.cast(value, np.float32)
        result = writer.node(
            "SimplifiedLayerNormalization",
            f"{name}/LayerNorm",
            [value, self._norm_weight(part, name)],
            axis=-1,
            epsilon=self.decoder.norm_epsilon,
            stash_type=1,
        )
        return result if stays_wide else self._narrow(result)

    def _narrow(self, value: str) -> str:
        return self.writer.cast(value, self.writer.io_type) if self._wide else value

    def _post_norm(self, part: str, name: str, branch: str) -> str:
        """What a layer adds to the residual, in the residual's type: its norm if the layer has one there."""
        import numpy as np

        if self.decoder.post_norms:
            return self._norm(part, name, branch, stays_wide=True)
        return self.writer.cast(branch, np.float32) if self._wide else branch

    def _add(self, residual: str, branch: str, name: str, norm: str | None, factor: float = 1.0) -> tuple[str, str]:
        """The new residual, and its norm (``norm`` is the part) as the input of what follows."""
        writer = self.writer
        if norm is None:
            total = writer.node("Add", f"{name}/Add", [residual, branch])
            return total, self._narrow(total)
        weight = self._norm_weight(norm, name, factor)
        normed, total = f"{name}/SkipLayerNorm/output_0", f"{name}/SkipLayerNorm/output_3"
        writer.node(
            "SkipSimplifiedLayerNormalization",
            f"{name}/SkipLayerNorm",
            [residual, branch, weight],
            [normed, "", "", total],
            CONTRIB,
            epsilon=self.decoder.norm_epsilon,
        )
        return total, self._narrow(normed)

    # --- attention

    def _rope_caches(self, index: int) -> tuple[str, str]:
        """Cosines and sines of a rotation, [positions, dim / 2] each."""
        import numpy as np

        if index not in self._caches:
            rope, data = self.decoder.ropes[index], self.writer.data
            angles = np.outer(
                np.arange(self.decoder.context_length, dtype=np.float32), np.array(rope.frequencies(), np.float32)
            )
            suffix = f"_{index}" if index else ""
            self._caches[index] = (
                data.add(
                    f"cos_cache{suffix}", (np.cos(angles) * np.float32(rope.magnitude)).astype(self.writer.io_type)
                ),
                data.add(
                    f"sin_cache{suffix}", (np.sin(angles) * np.float32(rope.magnitude)).astype(self.writer.io_type)
                ),
            )
        return self._caches[index]

    def _head_norm(self, layer: int, which: str, value: str, size: int) -> str:
        """Qwen3's, Gemma 3's and OLMo2's norm of queries or keys, before they are rotated."""
        import numpy as np

        decoder, writer = self.decoder, self.writer
        name, part = f"/model/layers.{layer}/attn/{which}_norm", f"{layer}.{which}_norm.weight"
        if decoder.qk_norm == "full":
            return self._norm(part, name, value)
        heads = writer.node(
            "Reshape", f"{name}/Reshape_1", [value, writer.constant([0, -1, decoder.head_size], np.int64)]
        )
        normed = self._norm(part, name, heads)
        shape = [-1, size] if self.rules.paged_attention else [0, -1, size]
        return writer.node("Reshape", f"{name}/Reshape_2", [normed, writer.constant(shape, np.int64)])

    def _rotated(self, layer: int, which: str, value: str, heads: int) -> str:
        rope = self.decoder.rope_of_layer[layer]
        if rope is None:
            return value
        dim = self.decoder.ropes[rope].dim
        partial = dim if dim != self.decoder.head_size else 0
        return self.writer.node(
            "RotaryEmbedding",
            f"/model/layers.{layer}/attn/{which}_rotary/RotaryEmbedding",
            [value, "position_ids", *self._rope_caches(rope)],
            domain=CONTRIB,
            interleaved=0,
            rotary_embedding_dim=partial,
            num_heads=heads if partial else 0,
        )

    def _attention(self, layer: int, value: str) -> str:
        decoder, rules, writer = self.decoder, self.rules, self.writer
        path = f"/model/layers.{layer}/attn"
        q, k, v = self._projections(layer)
        types = {writer.weights.parts[item.part].type_name for item in (q, k, v)}
        if len(types) == 1 and rules.rotation_in_attention and decoder.qk_norm is None:
            inputs = [self._matrix(f"{path}/qkv_proj/MatMul", value, [q, k, v]), "", ""]
        else:
            inputs = [
                self._matrix(f"{path}/{which}_proj/MatMul", value, [rows])
                for which, rows in zip("qkv", (q, k, v), strict=True)
            ]
            if decoder.qk_norm is not None:
                inputs[0] = self._head_norm(layer, "q", inputs[0], decoder.q_size)
                inputs[1] = self._head_norm(layer, "k", inputs[1], decoder.kv_size)
            if not rules.rotation_in_attention:
                inputs[0] = self._rotated(layer, "q", inputs[0], decoder.heads)
                inputs[1] = self._rotated(layer, "k", inputs[1], decoder.kv_heads)
        rope = decoder.rope_of_layer[layer]
        rotates = rules.rotation_in_attention and rope is not None
        caches = list(self._rope_caches(rope)) if rotates and rope is not None else []
        attended = write_attention(writer, decoder, layer, inputs, caches)
        output = self._whole(f"{layer}.o.weight", decoder.residual_scale)
        return self._matrix(f"{path}/o_proj/MatMul", attended, [output])

    # --- MLP

    def _mlp(self, layer: int, value: str) -> str:
        path, writer = f"/model/layers.{layer}/mlp", self.writer
        gate_rows, up_rows = self._gate_up(layer)
        gate = self._matrix(f"{path}/gate_proj/MatMul", value, [gate_rows])
        up = self._matrix(f"{path}/up_proj/MatMul", value, [up_rows])
        active = self._active(f"{path}/act_fn", gate)
        product = writer.node("Mul", f"{path}/Mul", [active, up])
        down = self._whole(f"{layer}.down.weight", self.decoder.residual_scale)
        return self._matrix(f"{path}/down_proj/MatMul", product, [down])

    def _active(self, name: str, value: str) -> str:
        writer = self.writer
        if self.decoder.activation == "silu":
            return writer.node("Mul", f"{name}/Mul", [value, writer.node("Sigmoid", f"{name}/Sigmoid", [value])])
        return writer.node("FastGelu", f"{name}/FastGelu", [value], domain=CONTRIB)

    # --- the whole

    def write(self, on_progress: Callable[[float], None]) -> None:
        """Write everything but the model's frame, layer by layer."""
        decoder = self.decoder
        write_lengths(self.writer)
        shared = self._shares_table()
        head = self._write_head_tensors()
        residual = self._embedding(head if shared else None)
        if decoder.pre_norms:
            value = self._norm("0.attn_norm.weight", "/model/layers.0/input_layernorm", residual, is_wide=True)
        else:
            value = self._narrow(residual)
        for layer in range(decoder.layers):
            path = f"/model/layers.{layer}"
            branch = self._attention(layer, value)
            branch = self._post_norm(f"{layer}.post_attn_norm.weight", f"{path}/post_attention_layernorm", branch)
            norm = f"{layer}.ffn_norm.weight" if decoder.pre_norms else None
            residual, value = self._add(residual, branch, f"{path}/pre_feedforward_layernorm", norm)
            branch = self._mlp(layer, value)
            branch = self._post_norm(f"{layer}.post_ffn_norm.weight", f"{path}/post_feedforward_layernorm", branch)
            last = layer == decoder.layers - 1
            norm = f"{layer + 1}.attn_norm.weight" if decoder.pre_norms else None
            path = "/model/final_norm" if last else f"/model/layers.{layer + 1}/input_layernorm"
            factor = decoder.logits_scale if last else 1.0
            residual, value = self._add(residual, branch, path, "final_norm.weight" if last else norm, factor)
            on_progress((layer + 1) / decoder.layers)
        self._head(value, head)

    def _shares_table(self) -> bool:
        """Whether the embedding can look its rows up in the head's codes."""
        encoding = self._encoding(self._head_rows(), head=True)
        fits = encoding.bits in self.rules.table_bits and not encoding.offsets and encoding.symmetric
        return fits and (self.decoder.tied or alike(self.writer.weights, "embedding.weight", "head.weight"))

    def _head_rows(self) -> list[Rows]:
        part = "head.weight" if "head.weight" in self.writer.weights else "embedding.weight"
        return [self._whole(part)]

    def _write_head_tensors(self) -> tuple[list[str], Encoding, int]:
        rows = self._head_rows()
        encoding = self._encoding(rows, head=True)
        self.formats[f"{type_of(self.writer.weights, rows)}: {encoding.label()}"] += 1
        if not encoding.quantized:
            from coe_cli.runtime.importing.matrices import write_floats

            name = write_floats(
                self.writer.data, self.writer.weights, "lm_head.MatMul.weight", rows, self.writer.io_type
            )
            return [name], encoding, 0
        names, columns = write_quantized(
            self.writer.data, self.writer.weights, "lm_head.MatMul", rows, encoding, self.writer.scale_type
        )
        return names, encoding, columns

    def _embedding(self, head: tuple[list[str], Encoding, int] | None) -> str:
        """The rows of ``input_ids``, scaled; in fp32 where residuals are."""
        import numpy as np

        writer, decoder = self.writer, self.decoder
        name, rows = "/model/embed_tokens/Gather", [self._whole("embedding.weight")]
        names: list[str] = []
        encoding = table_encoding(type_of(writer.weights, rows), decoder.hidden_size, self.rules)
        if head is not None:
            (names, encoding, _) = head
            shape = (decoder.vocab_size, decoder.hidden_size)
            names = [writer.data.alias("model.embed_tokens.codes", names[0], shape), names[1]]
        elif encoding.bits in self.rules.table_bits and self.precision in ("int4", "int8"):
            names, columns = write_quantized(
                writer.data, writer.weights, "model.embed_tokens", rows, encoding, writer.scale_type
            )
            blocks = -(-columns // encoding.block_size)
            writer.data.reshape(names[0], (decoder.vocab_size, blocks * encoding.block_size * encoding.bits // 8))
            self.formats[f"{type_of(writer.weights, rows)}: {encoding.label()}"] += 1
        if names:
            value = writer.gathered(name, names, encoding, decoder.hidden_size, is_head=head is not None)
        else:
            table = write_table(
                writer.data, writer.weights, "model.embed_tokens.weight", "embedding.weight", writer.io_type
            )
            value = writer.node("Gather", name, [table, "input_ids"])
        if self._wide:
            value = writer.cast(value, np.float32)
        return writer.scale("/model/embed_tokens/Mul", value, decoder.embedding_scale, self._norm_type())

    def _head(self, value: str, head: tuple[list[str], Encoding, int]) -> None:
        """Logits of the last position alone."""
        writer, decoder = self.writer, self.decoder
        names, encoding, columns = head
        last = last_rows(writer, value)
        cap = decoder.logits_softcap
        output = "" if cap else "logits"
        if encoding.quantized:
            logits = writer.quantized_product(
                "/lm_head/MatMul", last, names, encoding, (columns, decoder.vocab_size), output
            )
        else:
            logits = writer.node("MatMul", "/lm_head/MatMul", [last, *names], [output] if output else None)
        if cap:
            small = writer.scale("/lm_head/softcap/Mul_1", logits, 1 / cap, writer.io_type)
            bent = writer.node("Tanh", "/lm_head/softcap/Tanh", [small])
            writer.node("Mul", "/lm_head/softcap/Mul_2", [bent, writer.constant(cap, writer.io_type)], ["logits"])


def _half_rotated(heads: int, head_size: int) -> NDArray[np.int64]:
    """Rows in the order of ONNX Runtime's rotation (first half, second half) of a matrix in llama.cpp's (pairs)."""
    import numpy as np

    order = np.arange(heads * head_size).reshape(heads, head_size // 2, 2)
    turned: NDArray[np.int64] = order.transpose(0, 2, 1).reshape(-1)
    return turned
