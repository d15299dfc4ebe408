"""Small models of every architecture that can be imported, as Hugging Face configurations, and their random weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from coe_cli.core.providers import all_specs

RULES = {spec.name: spec.graph for spec in all_specs()}
"""Graph rules of every provider."""

_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=32)
_LONGROPE = _rope(
    "longrope",
    short_factor=[1.0, 1.1, 1.3, 1.5, 1.8, 2.0, 2.5, 3.0],
    long_factor=[2.0] * 8,
    original_max_position_embeddings=64,
    partial_rotary_factor=0.5,
)
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-tied-biased": ("LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("LlamaForCausalLM", _LLAMA3),
    "llama-linear-rope": ("LlamaForCausalLM", _rope("linear", factor=4.0)),
    "mistral-window": ("MistralForCausalLM", {"sliding_window": 5, "head_dim": 32}),
    "smollm3": ("SmolLM3ForCausalLM", {"num_hidden_layers": 4, "no_rope_layer_interval": 4}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2-yarn": ("Qwen2ForCausalLM", _YARN),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
    "phi3": ("Phi3ForCausalLM", {}),
    "phi3-head-of-24": ("Phi3ForCausalLM", {"hidden_size": 96}),
    "phi3-part-of-24": ("Phi3ForCausalLM", {"hidden_size": 96, **_rope("default", partial_rotary_factor=0.7)}),
    "phi4-mini": ("Phi3ForCausalLM", {"tie_word_embeddings": True, "hidden_size": 128, **_LONGROPE}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": 5,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": 5,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            },
        },
    ),
    "granite": (
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.25,
            "attention_multiplier": 0.1,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", {}),
}
"""Name → transformers' class and what its configuration has beyond the common one."""


def configuration(name: str) -> dict[str, Any]:
    architecture, differences = CONFIGURATIONS[name]
    model_type = architecture.removesuffix("ForCausalLM").lower()
    model_type = {"gemma3": "gemma3_text"}.get(model_type, model_type)
    return {"architectures": [architecture], "model_type": model_type, **_COMMON, **differences}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """fp32 and fp16 arrays as a safetensors file."""
    header: dict[str, Any] = {}
    at = 0
    for name, array in tensors.items():
        kind = {"float32": "F32", "float16": "F16"}[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(array.tobytes())


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """fp32 tensors of a configuration under Hugging Face's names."""
    architecture = config["architectures"][0].removesuffix("ForCausalLM")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    norms = {"Olmo2": ["post_attention_layernorm", "post_feedforward_layernorm"]}.get(
        architecture, ["input_layernorm", "post_attention_layernorm"]
    )
    if architecture.startswith("Gemma"):
        norms = [*norms, "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for layer in range(config["num_hidden_layers"]):
        matrices = {"self_attn.o_proj": (hidden, q), "mlp.down_proj": (hidden, inner)}
        if architecture == "Phi3":
            matrices |= {"self_attn.qkv_proj": (q + 2 * kv, hidden), "mlp.gate_up_proj": (2 * inner, hidden)}
        else:
            matrices |= {f"self_attn.{part}_proj": (q if part == "q" else kv, hidden) for part in "qkv"}
            matrices |= {f"mlp.{part}_proj": (inner, hidden) for part in ("gate", "up")}
        biased = {"self_attn": bool(config.get("attention_bias")), "mlp": bool(config.get("mlp_bias"))}
        path = f"model.layers.{layer}"
        for part, shape in matrices.items():
            shapes[f"{path}.{part}.weight"] = shape
            qkv = part.rsplit(".", 1)[1] in ("q_proj", "k_proj", "v_proj")
            if biased[part.split(".")[0]] or (architecture == "Qwen2" and qkv):
                shapes[f"{path}.{part}.bias"] = shape[:1]
        shapes |= {f"{path}.{norm}.weight": (hidden,) for norm in norms}
        if architecture in ("Qwen3", "Gemma3", "Olmo2"):
            whole = architecture == "Olmo2"
            shapes[f"{path}.self_attn.q_norm.weight"] = (q if whole else head,)
            shapes[f"{path}.self_attn.k_norm.weight"] = (kv if whole else head,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    rng = np.random.default_rng(seed)
    return {name: (0.1 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def write_folder(folder: Path, name: str, **changes: Any) -> Path:
    """A Hugging Face folder with random weights; ``changes`` are further ones of its configuration."""
    config = configuration(name) | changes
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", random_tensors(config))
    return folder
