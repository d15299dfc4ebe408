"""Checked access to a model's metadata: a GGUF file's keys or a ``config.json``, under one set of names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from coe_cli.core.importing.decoder import Rope, yarn_magnitude

_GGUF: Final = {
    "layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_size": "attention.key_length",
    "norm_epsilon": "attention.layer_norm_rms_epsilon",
    "context_length": "context_length",
    "rope_theta": "rope.freq_base",
    "rope_dim": "rope.dimension_count",
    "window": "attention.sliding_window",
    "attention_softcap": "attn_logit_softcapping",
    "logits_softcap": "final_logit_softcapping",
    "embedding_scale": "embedding_scale",
    "residual_scale": "residual_scale",
    "attention_scale": "attention.scale",
    "logits_divisor": "logit_scale",
    "experts": "expert_count",
    "rope_type": "rope.scaling.type",
    "rope_factor": "rope.scaling.factor",
    "rope_original_context": "rope.scaling.original_context_length",
    "rope_magnitude": "rope.scaling.attn_factor",
}
_HF: Final = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "norm_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "window": "sliding_window",
    "attention_softcap": "attn_logit_softcapping",
    "logits_softcap": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention_scale": "attention_multiplier",
    "logits_divisor": "logits_scaling",
    "experts": "num_local_experts",
    "original_context": "original_max_position_embeddings",
    "query_scalar": "query_pre_attn_scalar",
}
_LARGEST: Final = {
    "layers": 1024,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "heads": 4096,
    "kv_heads": 4096,
    "head_size": 4096,
    "context_length": 1 << 26,
    "window": 1 << 31,
}
"""Sizes beyond which a number is taken for damage, not for a model."""


class Facts:
    """A model's metadata. Every method raises ValueError, with a reason, where a value is missing or makes no sense.

    ``tables`` are small one-dimensional tensors of a GGUF file by name: rope_freqs, rope_factors_long and _short.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        gguf: str | None = None,
        tables: Mapping[str, tuple[float, ...]] | None = None,
    ) -> None:
        self._values = values
        self.gguf = gguf
        """The architecture's name in a GGUF file, which its keys begin with; None for a ``config.json``."""
        self.tables = tables or {}

    def get(self, name: str) -> Any:
        """The value as it is; None where it is missing."""
        if self.gguf is None:
            return self._values.get(_HF.get(name, name))
        return self._values.get(f"{self.gguf}.{_GGUF[name]}") if name in _GGUF else None

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.get(name)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST.get(name, 1 << 31):
            raise ValueError(f"it has no usable {self._key(name)} ({str(value)[:40]})")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"it has no usable {self._key(name)} ({str(value)[:40]})")
        return float(value)

    def _key(self, name: str) -> str:
        return (_HF if self.gguf is None else _GGUF).get(name, name)

    def window_of(self, kind: str | None) -> int:
        return self.whole("window") if kind == "sliding_attention" else 0

    def layer_kinds(self, default: list[str]) -> list[str]:
        """transformers' ``layer_types``: full_attention or sliding_attention for each layer."""
        kinds = self.get("layer_types") or default
        if len(kinds) != self.whole("layers") or not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise ValueError("its layers are of kinds that cannot be written")
        return list(kinds)

    def rope(self, head_size: int, kind: str | None = None) -> Rope:
        """The rotation of layers of ``kind`` (Gemma 3's two kinds differ), or of all layers.

        Longrope is written with its short factors, so that the context ends where the original one does.
        """
        return self._gguf_rope(head_size) if self.gguf is not None else self._hf_rope(head_size, kind)

    def _gguf_rope(self, head_size: int) -> Rope:
        theta, dim = self.number("rope_theta", 10000.0), self.whole("rope_dim", head_size)
        kind = self.get("rope_type") or "none"
        original = self.whole("rope_original_context", self.whole("context_length"))
        if short := self.tables.get("rope_factors_short.weight"):
            return _checked(Rope(theta, dim, "divisors", magnitude=self.number("rope_magnitude", 1.0), divisors=short))
        if divisors := self.tables.get("rope_freqs.weight"):
            return _checked(Rope(theta, dim, "divisors", divisors=divisors))
        if kind in ("none", "longrope"):
            return _checked(Rope(theta, dim))
        factor = self.number("rope_factor", 1.0)
        if kind == "linear":
            return _checked(Rope(theta, dim, "linear", factor))
        if kind == "yarn":
            magnitude = yarn_magnitude(factor) * self.number("rope_magnitude", 1.0)
            return _checked(Rope(theta, dim, "yarn", factor, magnitude, original))
        raise ValueError(f"its RoPE is scaled in a way that cannot be written ({str(kind)[:40]})")

    def _hf_rope(self, head_size: int, layer_kind: str | None) -> Rope:
        values = {**(self.get("rope_scaling") or {}), **(self.get("rope_parameters") or {})}
        if layer_kind is not None and isinstance(values.get(layer_kind), dict):
            values = values[layer_kind]
        read = Facts({**self._values, **values})
        theta = read.number("rope_theta", 10000.0)
        dim = int(head_size * read.number("partial_rotary_factor", 1.0))
        kind = values.get("rope_type") or values.get("type") or "default"
        if kind == "default":
            return _checked(Rope(theta, dim))
        context = self.whole("context_length")
        original = read.whole("original_context", context)
        factor = read.number("factor", context / original)
        if kind == "linear":
            return _checked(Rope(theta, dim, "linear", factor))
        if kind == "yarn":
            magnitude = read.number("attention_factor", yarn_magnitude(factor))
            fast, slow = read.number("beta_fast", 32.0), read.number("beta_slow", 1.0)
            if {"mscale", "mscale_all_dim"} & set(values) or values.get("truncate") is False:
                raise ValueError("its yarn has options that cannot be written")
            return _checked(Rope(theta, dim, "yarn", factor, magnitude, original, fast, slow))
        if kind == "llama3":
            low, high = read.number("low_freq_factor"), read.number("high_freq_factor")
            return _checked(
                Rope(theta, dim, "llama3", factor, 1.0, original, low_freq_factor=low, high_freq_factor=high)
            )
        if kind in ("longrope", "su"):
            factor = context / original
            magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
            magnitude = read.number("attention_factor", magnitude)
            divisors = tuple(float(value) for value in values["short_factor"])
            return _checked(Rope(theta, dim, "divisors", magnitude=magnitude, divisors=divisors))
        raise ValueError(f"its RoPE is scaled in a way that cannot be written ({str(kind)[:40]})")

    def longrope_context(self) -> int:
        """Positions that the rotation of ``rope`` is good for."""
        context = self.whole("context_length")
        if self.gguf is not None:
            has_factors = "rope_factors_short.weight" in self.tables
            return min(context, self.whole("rope_original_context", context)) if has_factors else context
        values = {**(self.get("rope_scaling") or {}), **(self.get("rope_parameters") or {})}
        if (values.get("rope_type") or values.get("type")) not in ("longrope", "su"):
            return context
        return min(context, Facts({**self._values, **values}).whole("original_context", context))


def _checked(rope: Rope) -> Rope:
    if rope.dim < 2 or rope.dim % 2 or rope.theta <= 1 or rope.factor <= 0 or rope.magnitude <= 0:
        raise ValueError("its RoPE makes no sense")
    if rope.kind == "divisors" and (len(rope.divisors) != rope.dim // 2 or min(rope.divisors) <= 0):
        raise ValueError("its RoPE has factors for another head size")
    return rope
