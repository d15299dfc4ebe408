"""Small GGUF files of every architecture, written with the gguf package from a Hugging Face folder's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from importing.tokenizer_files import byte_characters

_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
}
_FLOATS = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_PERMUTED = {"llama", "smollm3", "granite"}


def tensor_name(name: str, architecture: str) -> str:
    """The name that llama.cpp's converter gives a tensor."""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    behind = architecture in ("gemma2", "gemma3", "olmo2")
    names = {**_NAMES, "post_attention_layernorm": "post_attention_norm" if behind else "ffn_norm"}
    return f"blk.{layer}.{names[part]}.{kind}"


def permuted(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's converter orders them (LlamaModel.permute)."""
    turned = matrix.reshape(heads, 2, len(matrix) // heads // 2, *matrix.shape[1:]).swapaxes(1, 2)
    return turned.reshape(matrix.shape)


def write_gguf_of(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], **extra: Any) -> Path:
    """What llama.cpp's converter makes of a Hugging Face model; ``extra`` are further keys of the architecture."""
    architecture = config["architectures"][0].removesuffix("ForCausalLM").lower()
    architecture = {"mistral": "llama"}.get(architecture, architecture)
    writer = gguf.GGUFWriter(path, architecture)
    for key, name in _KEYS.items():
        writer.add_uint32(f"{architecture}.{key}", config[name])
    for key, name in _FLOATS.items():
        if name in config:
            writer.add_float32(f"{architecture}.{key}", config[name])
    if "head_dim" in config:
        writer.add_uint32(f"{architecture}.attention.key_length", config["head_dim"])
    if "sliding_window" in config and architecture != "llama":
        writer.add_uint32(f"{architecture}.attention.sliding_window", config["sliding_window"])
    for key, value in extra.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{architecture}.{key.replace('__', '.')}", value)
    for name, array in tensors.items():
        if architecture in _PERMUTED and "q_proj" in name:
            array = permuted(array, config["num_attention_heads"])
        elif architecture in _PERMUTED and "k_proj" in name:
            array = permuted(array, config["num_key_value_heads"])
        elif architecture.startswith("gemma") and "norm" in name:
            array = array + 1
        writer.add_tensor(tensor_name(name, architecture), np.ascontiguousarray(array, np.float32))
    return _close(writer, path)


def write_gguf(
    path: Path, architecture: str = "llama", rows: int = 64, kind: str = "F32", *, tokenizer: bool = True
) -> Path:
    """A llama of one layer and zeros, ``rows`` tokens and 32 columns; another ``architecture`` by name alone."""
    writer = gguf.GGUFWriter(path, architecture)
    if tokenizer:
        tokens = [*byte_characters(), *(f"<{number}>" for number in range(rows - 256))][:rows]
        _add(writer, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens})
        _add(writer, {"tokenizer.ggml.merges": [f"{left} {right}" for left, right in ("ab", "cd")]})
    sizes = {"block_count": 1, "embedding_length": 32, "feed_forward_length": 64, "attention.head_count": 2}
    for key, value in {**sizes, "context_length": 128}.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6)
    shapes = {"attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    number = gguf.GGMLQuantizationType[kind]
    for name, shape in {"token_embd": (rows, 32), **{f"blk.0.{name}": shape for name, shape in shapes.items()}}.items():
        if kind == "F32":
            writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
        else:
            size, width = gguf.GGML_QUANT_SIZES[number]
            writer.add_tensor(
                f"{name}.weight", np.zeros((shape[0], shape[1] // size * width), np.uint8), raw_dtype=number
            )
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    return _close(writer, path)


def _close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tokenizer_gguf(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file of a tokenizer and no tensors, as llama.cpp's own examples of vocabularies are."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in {
        "block_count": 1,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "context_length": 128,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    _add(writer, {key: value for key, value in metadata.items() if key != "general.architecture"})
    return _close(writer, path)


def _add(writer: gguf.GGUFWriter, metadata: dict[str, Any]) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
    for key, value in metadata.items():
        add[type(value)](key, value)
