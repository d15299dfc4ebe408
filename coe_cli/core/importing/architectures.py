"""The architectures that can be imported: how each one's metadata becomes a ``Decoder``. One entry each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.facts import Facts

_FULL, _SLIDING = "full_attention", "sliding_attention"


class Architecture(Struct, frozen=True):
    """``gguf`` is its ``general.architecture``, ``classes`` its names in ``config.json``; ``read`` makes the description.

    ``permuted`` says that llama.cpp's converter reorders the rows of query and key for an interleaved rotation.
    ``ffn_norm_is_post_attention`` tells what a Hugging Face folder's ``post_attention_layernorm`` is: the norm before the
    MLP, or (where there is ``pre_feedforward_layernorm`` or no norm before it) the norm behind attention.
    """

    gguf: str
    classes: tuple[str, ...]
    read: Callable[[Facts], Decoder]
    permuted: bool = False
    ffn_norm_is_post_attention: bool = True


def _llama_like(facts: Facts, **differences: Any) -> Decoder:
    """A decoder as Llama's, with ``differences`` from it."""
    hidden, heads, layers = facts.whole("hidden_size"), facts.whole("heads"), facts.whole("layers")
    head_size = facts.whole("head_size", hidden // heads)
    if facts.get("experts") not in (None, 0, 1):
        raise ValueError("it is a mixture of experts, which cannot be written")
    decoder = Decoder(
        architecture=facts.gguf or str(facts.get("model_type") or ""),
        genai_type="llama",
        layers=layers,
        hidden_size=hidden,
        intermediate_size=facts.whole("intermediate_size"),
        heads=heads,
        kv_heads=facts.whole("kv_heads", heads),
        head_size=head_size,
        vocab_size=1,
        context_length=facts.longrope_context(),
        norm_epsilon=facts.number("norm_epsilon", 1e-6),
        ropes=differences.pop("ropes", None) or (facts.rope(head_size),),
        rope_of_layer=(0,) * layers,
        windows=(0,) * layers,
        attention_scale=head_size**-0.5,
    )
    decoder = replace(decoder, **differences)
    wanted = ("silu", "swish") if decoder.activation == "silu" else ("gelu_pytorch_tanh", "gelu_tanh")
    said = facts.get("hidden_activation") or facts.get("hidden_act")
    if said is not None and said not in wanted and not (said == "gelu" and decoder.activation == "gelu_tanh"):
        raise ValueError(f"its activation cannot be written ({str(said)[:40]})")
    if decoder.heads % decoder.kv_heads or any(rope.dim > head_size for rope in decoder.ropes):
        raise ValueError("its numbers of heads and their size do not fit together")
    return decoder


def _uniform_window(facts: Facts) -> tuple[int, ...]:
    """Mistral's and Phi 3's: one window for all layers, or none; llama.cpp ignores it for GGUF's ``llama``."""
    window = facts.get("window")
    return (facts.whole("window") if window else 0,) * facts.whole("layers")


def _llama(facts: Facts) -> Decoder:
    mistral = facts.get("model_type") == "mistral"
    windows = _uniform_window(facts) if mistral else (0,) * facts.whole("layers")
    return _llama_like(facts, genai_type="mistral" if mistral else "llama", windows=windows)


def _smollm3(facts: Facts) -> Decoder:
    layers = facts.whole("layers")
    step = facts.get("no_rope_layer_interval") or 4
    rotated = facts.get("no_rope_layers") or [int((layer + 1) % step != 0) for layer in range(layers)]
    kinds = facts.layer_kinds([_FULL] * layers)
    return _llama_like(
        facts,
        rope_of_layer=tuple(0 if flag else None for flag in rotated[:layers]),
        windows=tuple(facts.window_of(kind) for kind in kinds),
    )


def _qwen2(facts: Facts) -> Decoder:
    layers = facts.whole("layers")
    kinds = [_FULL] * layers
    if facts.get("use_sliding_window"):
        first = facts.whole("max_window_layers", layers)
        kinds = facts.layer_kinds([_SLIDING if layer >= first else _FULL for layer in range(layers)])
    return _llama_like(facts, genai_type="qwen2", windows=tuple(facts.window_of(kind) for kind in kinds))


def _qwen3(facts: Facts) -> Decoder:
    return replace(_qwen2(facts), genai_type="qwen3", qk_norm="head")


def _phi3(facts: Facts) -> Decoder:
    # OGA's type `phi3` runs a prompt again where it passes 4096 tokens, for its builder's graph with two rotations
    return _llama_like(facts, windows=_uniform_window(facts))


def _granite(facts: Facts) -> Decoder:
    return _llama_like(
        facts,
        genai_type="granite",
        embedding_scale=facts.number("embedding_scale", 1.0),
        residual_scale=facts.number("residual_scale", 1.0),
        attention_scale=facts.number("attention_scale"),
        logits_scale=1 / facts.number("logits_divisor", 1.0),
    )


def _olmo2(facts: Facts) -> Decoder:
    return _llama_like(facts, qk_norm="full", pre_norms=False, post_norms=True)


def _gemma(facts: Facts, period: int, large_layers: int, **differences: Any) -> Decoder:
    """What Gemma 2 and 3 share; the last of each ``period`` layers looks back on everything.

    The model with ``large_layers`` layers (27B) scales attention by its hidden size for each head, all others by the head's
    size; a ``config.json`` says so itself.
    """
    layers, hidden, heads = facts.whole("layers"), facts.whole("hidden_size"), facts.whole("heads")
    head_size = facts.whole("head_size", 256)
    kinds = facts.layer_kinds([_FULL if (layer + 1) % period == 0 else _SLIDING for layer in range(layers)])
    scalar = facts.number("query_scalar", hidden / heads if layers == large_layers else head_size)
    return _llama_like(
        facts,
        windows=tuple(facts.window_of(kind) for kind in kinds),
        activation="gelu_tanh",
        post_norms=True,
        norm_offset=0.0 if facts.gguf else 1.0,
        attention_scale=scalar**-0.5,
        embedding_scale=math.sqrt(hidden),
        wide_residual=True,
        **differences,
    )


def _gemma2(facts: Facts) -> Decoder:
    return _gemma(
        facts,
        period=2,
        large_layers=46,
        genai_type="gemma2",
        attention_softcap=facts.number("attention_softcap", 50.0),
        logits_softcap=facts.number("logits_softcap", 30.0),
    )


def _gemma3(facts: Facts) -> Decoder:
    period = facts.get("sliding_window_pattern") or facts.get("_sliding_window_pattern") or 6
    head_size = facts.whole("head_size", 256)
    everywhere = facts.rope(head_size, _FULL)
    if facts.gguf or not (facts.get("rope_parameters") or {}).get(_SLIDING):
        local = replace(
            everywhere, theta=float(facts.get("rope_local_base_freq") or 10000.0), kind="default", factor=1.0
        )
    else:
        local = facts.rope(head_size, _SLIDING)
    decoder = _gemma(
        facts, period=period, large_layers=62, genai_type="gemma3_text", qk_norm="head", ropes=(everywhere, local)
    )
    return replace(decoder, rope_of_layer=tuple(1 if window else 0 for window in decoder.windows))


_TABLE: Final = (
    Architecture("llama", ("LlamaForCausalLM", "MistralForCausalLM"), _llama, permuted=True),
    Architecture("smollm3", ("SmolLM3ForCausalLM",), _smollm3, permuted=True),
    Architecture("qwen2", ("Qwen2ForCausalLM",), _qwen2),
    Architecture("qwen3", ("Qwen3ForCausalLM",), _qwen3),
    Architecture("phi3", ("Phi3ForCausalLM",), _phi3),
    Architecture("gemma2", ("Gemma2ForCausalLM",), _gemma2, ffn_norm_is_post_attention=False),
    Architecture("gemma3", ("Gemma3ForCausalLM",), _gemma3, ffn_norm_is_post_attention=False),
    Architecture("granite", ("GraniteForCausalLM",), _granite, permuted=True),
    Architecture("olmo2", ("Olmo2ForCausalLM",), _olmo2, ffn_norm_is_post_attention=False),
)
SUPPORTED_GGUF: Final = tuple(entry.gguf for entry in _TABLE)
SUPPORTED_CLASSES: Final = tuple(name for entry in _TABLE for name in entry.classes)


def by_gguf(name: str) -> Architecture | None:
    return next((entry for entry in _TABLE if entry.gguf == name), None)


def by_class(name: str) -> Architecture | None:
    return next((entry for entry in _TABLE if name in entry.classes), None)
