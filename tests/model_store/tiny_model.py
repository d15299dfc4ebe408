"""A decoder of a few kilobytes that ONNX Runtime GenAI loads and runs: it guesses each token from the one before it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from coe_cli.core.importing.genai_config import BLOCK_TOKENS, PAGED_INPUTS

VOCAB = 288
HIDDEN, HEADS, KV_HEADS, HEAD_SIZE = 16, 2, 1, 8
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_size": HEAD_SIZE,
    "vocab_size": VOCAB,
}


def write_tiny_model(
    folder: Path, *, seed: int = 0, layers: int = 2, context: int = 512, softcap: bool = False, paged: bool = False
) -> Path:
    """Write graph, external data, configuration and tokenizer; the head runs on every position.

    A ``paged`` one is for continuous batching. It attends to nothing, so it runs where there is no PagedAttention.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)
    norm = rng.normal(size=(HIDDEN,)).astype(np.float32)
    head = rng.normal(size=(HIDDEN, VOCAB)).astype(np.float32)
    write_graph(folder / "model.onnx", embedding, norm, head, layers, softcap)
    _config(folder, layers, context)
    if paged:
        _make_paged(folder, layers)
    _tokenizer(folder)
    return folder


def catalog_entry(source: str, **more: object) -> dict[str, object]:
    """An entry of experts.yaml for it."""
    return {
        "provider": "cpu",
        "context_length": 512,
        "weights_mb": 0.1,
        "format": "oga",
        "licence": "CC0-1.0",
        "shape": SHAPE,
        "sources": [{"uri": source}],
        **more,
    }


def write_graph(
    path: Path, embedding: np.ndarray, norm: np.ndarray, head: np.ndarray, layers: int = 2, softcap: bool = False
) -> None:
    """Write graph and weights: logits = embedding[token] · norm · head."""
    weights = {"embed.weight": embedding, "norm.weight": norm, "lm_head.weight": head}
    constants = {
        "kv_tail": np.array([KV_HEADS, HEAD_SIZE], np.int64),
        "zero": np.zeros(1, np.float32),
        "cap": np.array(30.0, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["embed.weight", "input_ids"], ["embedded"]),
        helper.make_node("Mul", ["embedded", "norm.weight"], ["normed"], name="/norm"),
        helper.make_node("MatMul", ["normed", "lm_head.weight"], ["head" if softcap else "logits"], name="/lm_head"),
        helper.make_node("Shape", ["input_ids"], ["ids_shape"], start=0, end=1),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["kv_tail", "i0", "i1"], ["kv_heads"]),
        helper.make_node("Slice", ["kv_tail", "i1", "i2"], ["head_size"]),
        helper.make_node("Concat", ["ids_shape", "kv_heads", "length", "head_size"], ["kv_shape"], axis=0),
        helper.make_node("Expand", ["zero", "kv_shape"], ["new_kv"]),
    ]
    constants |= {f"i{i}": np.array([i], np.int64) for i in range(3)}
    if softcap:
        nodes += [
            helper.make_node("Div", ["head", "cap"], ["divided"]),
            helper.make_node("Tanh", ["divided"], ["bounded"]),
            helper.make_node("Mul", ["bounded", "cap"], ["logits"]),
        ]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", VOCAB])]
    for layer in range(layers):
        for kind in ("key", "value"):
            past, present = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
            shape = ["batch_size", KV_HEADS, "past_sequence_length", HEAD_SIZE]
            inputs.append(helper.make_tensor_value_info(past, TensorProto.FLOAT, shape))
            shape = ["batch_size", KV_HEADS, "total_sequence_length", HEAD_SIZE]
            outputs.append(helper.make_tensor_value_info(present, TensorProto.FLOAT, shape))
            nodes.append(helper.make_node("Concat", [past, "new_kv"], [present], axis=2))
    initializers = [numpy_helper.from_array(value, name) for name, value in {**constants, **weights}.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.with_name(path.name + ".data").unlink(missing_ok=True)
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location=path.name + ".data",
        size_threshold=64,
        convert_attribute=False,
    )


def _make_paged(folder: Path, layers: int) -> None:
    """The same weights, with the inputs and outputs of a paged graph."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    embed, norm, head = (node for node in model.graph.node if node.op_type in ("Gather", "Mul", "MatMul"))
    nodes = [embed, norm, helper.make_node("Gather", [norm.output[0], "logits_indices"], ["last"]), head]
    head.input[0] = "last"
    info, cache = helper.make_tensor_value_info, ["num_blocks", BLOCK_TOKENS, KV_HEADS, HEAD_SIZE]
    inputs = [info(name, getattr(TensorProto, kind), shape) for name, (kind, shape) in PAGED_INPUTS.items()]
    outputs = [info("logits", TensorProto.FLOAT, ["num_logits", VOCAB])]
    for layer in range(layers):
        for kind in ("key", "value"):
            past, present = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
            inputs.append(info(past, TensorProto.FLOAT, cache))
            outputs.append(info(present, TensorProto.FLOAT, cache))
            nodes.append(helper.make_node("Identity", [past], [present]))
    used = {name for node in nodes for name in node.input}
    weights = [item for item in model.graph.initializer if item.name in used]
    model.graph.CopyFrom(helper.make_graph(nodes, "tiny", inputs, outputs, weights))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    decoder = config["model"]["decoder"]
    del decoder["inputs"]["attention_mask"]
    decoder["inputs"] |= {name: name for name in PAGED_INPUTS}
    config["engine"] = {"dynamic_batching": {"block_size": BLOCK_TOKENS, "num_blocks": 8, "max_batch_size": 4}}
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def _config(folder: Path, layers: int, context: int) -> None:
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": HEAD_SIZE,
        "hidden_size": HIDDEN,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
    }
    model = {
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 257,
        "context_length": context,
        "decoder": decoder,
        "type": "llama",
        "vocab_size": VOCAB,
    }
    search = {"do_sample": False, "max_length": context, "past_present_share_buffer": False}
    (folder / "genai_config.json").write_text(
        json.dumps({"model": model, "search": search}, indent=1), encoding="utf-8"
    )


def _tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
