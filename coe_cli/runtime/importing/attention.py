"""Where an answer's tokens meet its cache: the attention of a layer, what it reads of lengths, and which rows go into the head.

A graph for one answer a run (GroupQueryAttention) has inputs of shape [1, tokens]. A paged one (PagedAttention) has the tokens of
all answers behind one another, [tokens], and caches of shape [blocks, tokens of a block, heads, head size] that they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.genai_config import BLOCK_TOKENS, PAGED_INPUTS
from coe_cli.core.providers import GraphRules
from coe_cli.runtime.importing.graph_writer import CONTRIB, GraphWriter

_LAST_POSITION: Final = "/model/attn_mask/seqlens_k"
_LONGEST_ROW: Final = "/model/attn_mask/total_seq_len"


def write_attention(
    writer: GraphWriter, decoder: Decoder, layer: int, inputs: Sequence[str], rotation: Sequence[str]
) -> str:
    """Attention over ``inputs``, three names of which the last two may be empty; ``rotation``: cosines and sines, where it rotates."""
    name, operator = f"/model/layers.{layer}/attn/GroupQueryAttention", "GroupQueryAttention"
    reads = [_LAST_POSITION, _LONGEST_ROW, *rotation]
    if writer.rules.paged_attention:
        name, operator = f"/model/layers.{layer}/attn/PagedAttention", "PagedAttention"
        lengths = ["cumulative_sequence_lengths", "past_sequence_lengths", "block_table"]
        reads = [*lengths, *(rotation or ["", ""]), *[""] * 6, "attention_metadata"]
    writer.node(
        operator,
        name,
        [*inputs, f"past_key_values.{layer}.key", f"past_key_values.{layer}.value", *reads],
        [f"{name}/output_0", f"present.{layer}.key", f"present.{layer}.value"],
        CONTRIB,
        num_heads=decoder.heads,
        kv_num_heads=decoder.kv_heads,
        scale=decoder.attention_scale,
        softcap=decoder.attention_softcap,
        local_window_size=decoder.windows[layer] or -1,
        do_rotary=int(bool(rotation)),
        rotary_interleaved=0,
    )
    return f"{name}/output_0"


def write_lengths(writer: GraphWriter) -> None:
    """What GroupQueryAttention wants of the mask: the last position of each row, and the longest row; a paged graph is told."""
    import numpy as np
    from onnx import TensorProto

    path = "/model/attn_mask"
    if writer.rules.paged_attention:
        return
    if writer.rules.lengths_on_device:
        mask = writer.cast("attention_mask", np.int32)
        total = writer.node("ReduceSum", f"{path}/ReduceSum", [mask, writer.constant([1], np.int64)], keepdims=0)
        writer.node("Sub", f"{path}/Sub", [total, writer.constant([1], np.int32)], [_LAST_POSITION])
        writer.node("ReduceMax", f"{path}/ReduceMax", [total], [_LONGEST_ROW], keepdims=0)
        return
    total = writer.node(
        "ReduceSum", f"{path}/ReduceSum", ["attention_mask", writer.constant([1], np.int64)], keepdims=0
    )
    last = writer.node("Sub", f"{path}/Sub", [total, writer.constant([1], np.int64)])
    writer.node("Cast", f"{path}/Sub/Cast", [last], [_LAST_POSITION], to=TensorProto.INT32)
    shape = writer.node("Shape", f"{path}/Shape", ["attention_mask"])
    longest = writer.node("Gather", f"{path}/Gather", [shape, writer.constant(1, np.int64)], axis=0)
    writer.node("Cast", f"{path}/Gather/Cast", [longest], [_LONGEST_ROW], to=TensorProto.INT32)


def last_rows(writer: GraphWriter, value: str) -> str:
    """The rows of ``value`` whose logits are wanted: the last position, or those that a paged graph is told."""
    import numpy as np

    name = "/lm_head/prune/Gather"
    if writer.rules.paged_attention:
        return writer.node("Gather", name, [value, "logits_indices"], axis=0)
    last = writer.node("Gather", name, [value, writer.constant(-1, np.int64)], axis=1)
    return writer.node("Unsqueeze", "/lm_head/prune/Unsqueeze", [last, writer.constant([1], np.int64)])


def interface(decoder: Decoder, rules: GraphRules) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of the graph."""
    from onnx import TensorProto, helper

    element = TensorProto.FLOAT16 if rules.float_bits == 16 else TensorProto.FLOAT
    value, positions = helper.make_tensor_value_info, ["batch_size", "sequence_length"]
    rows: list[str | int]
    if rules.paged_attention:
        inputs = [value(name, getattr(TensorProto, kind), shape) for name, (kind, shape) in PAGED_INPUTS.items()]
        rows, past = ["num_logits"], ["num_blocks", BLOCK_TOKENS, decoder.kv_heads, decoder.head_size]
        present = past
    else:
        mask = value("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
        inputs = [value("input_ids", TensorProto.INT64, positions), mask]
        if not rules.rotation_in_attention:
            inputs.append(value("position_ids", TensorProto.INT64, positions))
        rows = ["batch_size", 1]
        past, present = (
            ["batch_size", decoder.kv_heads, f"{length}_sequence_length", decoder.head_size]
            for length in ("past", "total")
        )
    outputs = [value("logits", element, [*rows, decoder.vocab_size])]
    for layer in range(decoder.layers):
        for kind in ("key", "value"):
            inputs.append(value(f"past_key_values.{layer}.{kind}", element, past))
            outputs.append(value(f"present.{layer}.{kind}", element, present))
    return inputs, outputs
