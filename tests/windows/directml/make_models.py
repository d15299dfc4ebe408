"""Two decoders of two layers, made by `coe models import`: make_models.py FOLDER [PROVIDER].

Their weights are random, their residuals have a root mean square of several hundred, where DirectML's fp16 norms are wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))
from model_store.tiny_model import VOCAB, _tokenizer

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, CONTEXT = 64, 128, 2, 4, 2, 16, 4096
RMS = 600.0
NAMES = ("tiny-a", "tiny-b")


def write_checkpoint(folder: Path, seed: int) -> None:
    """A llama in Hugging Face's layout."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.normal(size=(rows, columns)) * 2 / columns**0.5).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": (rng.normal(size=(VOCAB, HIDDEN)) * RMS).astype(np.float32),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": matrix(VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", HEADS * HEAD_SIZE, HIDDEN),
            ("self_attn.k_proj", KV_HEADS * HEAD_SIZE, HIDDEN),
            ("self_attn.v_proj", KV_HEADS * HEAD_SIZE, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * HEAD_SIZE),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ):
            scale = RMS / 4 if name.endswith(("o_proj", "down_proj")) else 1.0
            weights[f"{at}{name}.weight"] = matrix(rows, columns) * np.float32(scale)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}{name}.weight"] = np.ones(HIDDEN, np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 257,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _tokenizer(folder)


def main(target: Path, provider: str = "dml") -> None:
    for seed, name in enumerate(NAMES):
        if (target / name).exists():
            continue
        source = target / f".source-{name}"
        write_checkpoint(source, seed)
        command = ["models", "import", str(source), "--name", name, "--provider", provider]
        subprocess.run(
            [sys.executable, "-m", "coe_cli", *command],
            check=True,
            env={**os.environ, "COE_MODELS_DIR": str(target), "COE_STATE_DIR": str(target / ".state")},
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
