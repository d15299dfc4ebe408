"""Which tensor of a source is which part of a decoder: GGUF's and Hugging Face's names, and what must be there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from coe_cli.core.importing.decoder import Decoder

_GGUF_GLOBAL: Final = {"token_embd": "embedding", "output_norm": "final_norm", "output": "head"}
_GGUF_LAYER: Final = {
    "attn_norm": "attn_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_qkv": "qkv",
    "attn_output": "o",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "post_attention_norm": "post_attn_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
    "post_ffw_norm": "post_ffn_norm",
}
GGUF_TABLES: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Small tensors of a GGUF file that belong to its metadata: frequencies of the rotation."""
_HF_GLOBAL: Final = {"model.embed_tokens": "embedding", "model.norm": "final_norm", "lm_head": "head"}
_HF_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.qkv_proj": "qkv",
    "self_attn.o_proj": "o",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.gate_up_proj": "gate_up",
    "mlp.down_proj": "down",
    "post_feedforward_layernorm": "post_ffn_norm",
}
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_BIASES: Final = {"q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down"}


def gguf_part(name: str) -> str | None:
    """``q`` of layer 3 is ``3.q.weight``; None for a tensor that is not known."""
    if match := re.fullmatch(r"blk\.(\d{1,4})\.(\w+)\.(weight|bias)", name):
        part = _GGUF_LAYER.get(match[2])
        return f"{int(match[1])}.{part}.{match[3]}" if part else None
    stem, _, kind = name.rpartition(".")
    part = _GGUF_GLOBAL.get(stem)
    return f"{part}.{kind}" if part and kind == "weight" else None


def hf_part(name: str, *, ffn_norm_is_post_attention: bool) -> str | None:
    """The same for a Hugging Face folder; ``""`` for a tensor that carries nothing."""
    if _IGNORED.fullmatch(name):
        return ""
    if match := re.fullmatch(r"model\.layers\.(\d{1,4})\.([\w.]+)\.(weight|bias)", name):
        part = _HF_LAYER.get(match[2])
        if match[2] == "post_attention_layernorm":
            part = "ffn_norm" if ffn_norm_is_post_attention else "post_attn_norm"
        return f"{int(match[1])}.{part}.{match[3]}" if part else None
    stem, _, kind = name.rpartition(".")
    part = _HF_GLOBAL.get(stem)
    return f"{part}.{kind}" if part and kind == "weight" else None


def expected_shapes(decoder: Decoder, found: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Part → shape of every tensor that a decoder with the parts ``found`` has, biases among them where there are any.

    The embedding's rows are the vocabulary and are not checked here. GGUF's phi3 has gate and up in one, under the name of up.
    """
    parts = set(found)
    hidden, inner, q, kv = decoder.hidden_size, decoder.intermediate_size, decoder.q_size, decoder.kv_size
    shapes: dict[str, tuple[int, ...]] = {"final_norm.weight": (hidden,)}
    for layer in range(decoder.layers):
        matrices = {"o": (hidden, q), "down": (hidden, inner)}
        if f"{layer}.qkv.weight" in parts:
            matrices["qkv"] = (q + 2 * kv, hidden)
        else:
            matrices |= {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden)}
        if f"{layer}.gate_up.weight" in parts:
            matrices["gate_up"] = (2 * inner, hidden)
        elif f"{layer}.gate.weight" in parts:
            matrices |= {"gate": (inner, hidden), "up": (inner, hidden)}
        else:
            matrices["up"] = (2 * inner, hidden)
        norms = {"attn_norm", "ffn_norm"} if decoder.pre_norms else set()
        norms |= {"post_attn_norm", "post_ffn_norm"} if decoder.post_norms else set()
        shapes |= {f"{layer}.{part}.weight": shape for part, shape in matrices.items()}
        shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in norms}
        if decoder.qk_norm is not None:
            whole = decoder.qk_norm == "full"
            shapes[f"{layer}.q_norm.weight"] = (q if whole else decoder.head_size,)
            shapes[f"{layer}.k_norm.weight"] = (kv if whole else decoder.head_size,)
        shapes |= {
            f"{layer}.{part}.bias": (shape[0],)
            for part, shape in matrices.items()
            if part in _BIASES and f"{layer}.{part}.bias" in parts
        }
    return shapes
