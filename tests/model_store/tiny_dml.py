"""A decoder of two layers in fp16 as builders write it for DirectML, with what DirectML refuses or computes wrongly on demand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_store import tiny_model

MS = "com.microsoft"
VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INNER, LAYERS, BLOCK = tiny_model.VOCAB, 64, 4, 2, 16, 128, 2, 32
HALF = np.float16


class _Graph:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def node(self, operator: str, inputs: list[str], outputs: str | list[str], domain: str = "", **more: Any) -> str:
        made = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(
            helper.make_node(operator, inputs, made, domain=domain, name=f"/{made[0]}/{operator}", **more)
        )
        return made[0]

    def weight(self, name: str, value: np.ndarray) -> str:
        self.weights[name] = value
        return name

    def matrix(self, states: str, name: str, columns: int, rows: int, scale: float = 1.0) -> str:
        codes = self.rng.integers(0, 256, (rows, columns // BLOCK, BLOCK // 2)).astype(np.uint8)
        scales = ((self.rng.random(rows * columns // BLOCK) * 0.03 + 0.01) * scale).astype(HALF)
        inputs = [states, self.weight(f"{name}.codes", codes), self.weight(f"{name}.scales", scales)]
        return self.node("MatMulNBits", inputs, name, MS, K=columns, N=rows, bits=4, block_size=BLOCK)


def write_tiny_dml(
    folder: Path,
    *,
    seed: int = 0,
    context: int = 512,
    rotary_inside: bool = False,
    packed_qkv: bool = False,
    quantized_embedding: bool = False,
    all_logits: bool = False,
    embedding_scale: float = 1.0,
) -> Path:
    """Write graph, external data, configuration and tokenizer. ``embedding_scale`` 600 has activations with an rms of 600."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = _Graph(seed)
    angles = np.outer(np.arange(context), 1 / 10000 ** (np.arange(HEAD_SIZE // 2) / (HEAD_SIZE // 2)))
    cos, sin = (
        graph.weight("cos_cache", np.cos(angles).astype(HALF)),
        graph.weight("sin_cache", np.sin(angles).astype(HALF)),
    )
    one = graph.weight("one", np.array([1], np.int64))
    scalar_one, last = graph.weight("scalar_one", np.array(1, np.int64)), graph.weight("last", np.array(-1, np.int64))
    lengths = graph.node(
        "Sub", [graph.node("ReduceSum", ["attention_mask", one], "mask_sum", keepdims=0), one], "before"
    )
    lengths = graph.node("Cast", [lengths], "seqlens_k", to=TensorProto.INT32)
    total = graph.node("Gather", [graph.node("Shape", ["attention_mask"], "mask_shape"), scalar_one], "total", axis=0)
    total = graph.node("Cast", [total], "total_length", to=TensorProto.INT32)
    states = _embedding(graph, quantized_embedding, embedding_scale)
    normed = graph.node(
        "SimplifiedLayerNormalization",
        [states, graph.weight("norm0", np.ones(HIDDEN, HALF))],
        "normed0",
        axis=-1,
        epsilon=1e-5,
        stash_type=1,
    )
    grown = max(1.0, embedding_scale / 4)  # what a layer adds is of the size of what it is added to
    for layer in range(LAYERS):
        at = f"layer{layer}."
        attended = _attention(graph, normed, layer, cos, sin, [lengths, total], rotary_inside, packed_qkv)
        projected = graph.matrix(attended, f"{at}o", HEADS * HEAD_SIZE, HIDDEN, grown)
        normed, states = _skip_norm(graph, states, projected, f"{at}1")
        gate, up = graph.matrix(normed, f"{at}gate", HIDDEN, INNER), graph.matrix(normed, f"{at}up", HIDDEN, INNER)
        swish = graph.node("Mul", [gate, graph.node("Sigmoid", [gate], f"{at}sigmoid")], f"{at}swish")
        down = graph.matrix(graph.node("Mul", [swish, up], f"{at}gated"), f"{at}down", INNER, HIDDEN, grown)
        normed, states = _skip_norm(graph, states, down, f"{at}2", last=layer == LAYERS - 1)
    if not all_logits:
        normed = graph.node("Unsqueeze", [graph.node("Gather", [normed, last], "gathered", axis=1), one], "last_state")
    graph.matrix(normed, "logits", HIDDEN, VOCAB)
    _save(folder / "model.onnx", graph, all_logits, rotary_inside)
    _config(folder, context)
    return folder


def _embedding(graph: _Graph, quantized: bool, scale: float) -> str:
    if not quantized:
        table = (graph.rng.normal(size=(VOCAB, HIDDEN)) * scale).astype(HALF)
        return graph.node("Gather", [graph.weight("embed", table), "input_ids"], "embedded", axis=0)
    codes = graph.weight("embed.codes", graph.rng.integers(0, 256, (VOCAB * HIDDEN // 2,)).astype(np.uint8))
    scales = graph.weight("embed.scales", (graph.rng.random((VOCAB, HIDDEN // BLOCK)) * 0.2 * scale).astype(HALF))
    shape = graph.weight("embed.shape", np.array([VOCAB, HIDDEN // 2], np.int64))
    rows = graph.node("Reshape", [codes, shape], "embed.rows")
    axes = {"gather_axis": 0, "quantize_axis": 1}
    return graph.node(
        "GatherBlockQuantized", [rows, "input_ids", scales], "embedded", MS, bits=4, block_size=BLOCK, **axes
    )


def _skip_norm(graph: _Graph, states: str, added: str, name: str, *, last: bool = False) -> tuple[str, str]:
    outputs = [f"{name}.normed"] if last else [f"{name}.normed", "", "", f"{name}.sum"]
    weight = graph.weight(f"{name}.norm", np.ones(HIDDEN, HALF))
    graph.node("SkipSimplifiedLayerNormalization", [states, added, weight], outputs, MS, epsilon=1e-5)
    return outputs[0], outputs[-1]


def _attention(
    graph: _Graph, states: str, layer: int, cos: str, sin: str, lengths: list[str], rotary_inside: bool, packed: bool
) -> str:
    at = f"layer{layer}."
    if packed:
        query, key, value = graph.matrix(states, f"{at}qkv", HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_SIZE), "", ""
    else:
        query = graph.matrix(states, f"{at}q", HIDDEN, HEADS * HEAD_SIZE)
        key = graph.matrix(states, f"{at}k", HIDDEN, KV_HEADS * HEAD_SIZE)
        value = graph.matrix(states, f"{at}v", HIDDEN, KV_HEADS * HEAD_SIZE)
    if not rotary_inside:
        query = graph.node("RotaryEmbedding", [query, "position_ids", cos, sin], f"{at}q_rotated", MS)
        key = graph.node("RotaryEmbedding", [key, "position_ids", cos, sin], f"{at}k_rotated", MS)
    past = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
    outputs = [f"{at}attended", *[f"present.{layer}.{kind}" for kind in ("key", "value")]]
    rotation = [cos, sin] if rotary_inside else []
    sizes = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "scale": HEAD_SIZE**-0.5, "do_rotary": int(rotary_inside)}
    return graph.node("GroupQueryAttention", [query, key, value, *past, *lengths, *rotation], outputs, MS, **sizes)


def _save(path: Path, graph: _Graph, all_logits: bool, rotary_inside: bool) -> None:
    tokens = ["batch_size", "sequence_length"]
    shapes: dict[str, list[int | str]] = {
        "input_ids": [*tokens],
        "attention_mask": ["batch_size", "total_sequence_length"],
    }
    if not rotary_inside:
        shapes["position_ids"] = [*tokens]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()]
    width = "sequence_length" if all_logits else 1
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT16, ["batch_size", width, VOCAB])]
    for layer in range(LAYERS):
        for kind in ("key", "value"):
            for name, length, where in (
                ("past_key_values", "past_length", inputs),
                ("present", "total_length", outputs),
            ):
                shape = ["batch_size", KV_HEADS, length, HEAD_SIZE]
                where.append(helper.make_tensor_value_info(f"{name}.{layer}.{kind}", TensorProto.FLOAT16, shape))
    weights = [numpy_helper.from_array(value, name) for name, value in graph.weights.items()]
    proto = helper.make_graph(graph.nodes, "tiny-dml", inputs, outputs, weights)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    model = helper.make_model(proto, opset_imports=imports, ir_version=10)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    external = {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 64}
    onnx.save(model, path, convert_attribute=False, **external)


def _config(folder: Path, context: int) -> None:
    tiny_model._config(folder, LAYERS, context)
    tiny_model._tokenizer(folder)
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    decoder = config["model"]["decoder"]
    sizes = {
        "head_size": HEAD_SIZE,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
    }
    decoder.update(sizes)
    decoder["inputs"]["position_ids"] = "position_ids"
    decoder["session_options"]["provider_options"] = [{"dml": {}}]
    config["search"]["past_present_share_buffer"] = True
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
