"""What a decoder graph is written from: one description for every architecture, wherever its metadata came from."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

Activation = Literal["silu", "gelu_tanh"]
RopeKind = Literal["default", "linear", "yarn", "llama3", "divisors"]


class Rope(Struct, frozen=True):
    """Rotary position embedding of some layers.

    ``dim`` elements of each head are rotated (all, or the first part of them). ``divisors`` (length ``dim / 2``) divide
    the frequencies: longrope's factors, or the rope_freqs tensor of a GGUF file. ``magnitude`` multiplies sine and cosine
    (yarn's and longrope's attention factor).
    """

    theta: float
    dim: int
    kind: RopeKind = "default"
    factor: float = 1.0
    magnitude: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    divisors: tuple[float, ...] = ()

    def frequencies(self) -> list[float]:
        """Radians a position for each pair of elements, length ``dim / 2`` (transformers/modeling_rope_utils.py)."""
        plain = [self.theta ** (-2 * index / self.dim) for index in range(self.dim // 2)]
        if self.kind == "linear":
            return [value / self.factor for value in plain]
        if self.kind == "divisors":
            return [value / divisor for value, divisor in zip(plain, self.divisors, strict=True)]
        if self.kind == "yarn":
            return [self._yarn(index, value) for index, value in enumerate(plain)]
        if self.kind == "llama3":
            return [self._llama3(value) for value in plain]
        return plain

    def _llama3(self, frequency: float) -> float:
        turns = self.original_context * frequency / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = min(max(kept, 0.0), 1.0)
        return kept * frequency + (1 - kept) * frequency / self.factor

    def _yarn(self, index: int, frequency: float) -> float:
        def place(turns: float) -> float:
            return self.dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = max(math.floor(place(self.beta_fast)), 0), min(math.ceil(place(self.beta_slow)), self.dim - 1)
        interpolated = min(max((index - low) / max(high - low, 0.001), 0.0), 1.0)
        return interpolated * frequency / self.factor + (1 - interpolated) * frequency


def yarn_magnitude(factor: float) -> float:
    """Yarn's attention factor where the model names none."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


class Decoder(Struct, frozen=True, kw_only=True):
    """One decoder-only transformer: sizes, and how its layers differ from Llama's.

    ``rope_of_layer`` names for each layer the entry of ``ropes`` that rotates it, or None (NoPE); ``windows`` holds for each
    layer the number of positions that it looks back on, itself included, or 0 for all. ``qk_norm`` is over each head
    (Qwen3, Gemma3) or over all heads at once (OLMo2). ``pre_norms`` and ``post_norms`` say where a layer has norms: before
    its attention and MLP, behind them, or both. ``norm_offset`` is added to the norms' weights. ``residual_scale`` multiplies
    what attention and MLP add, ``logits_scale`` the logits, ``embedding_scale`` the embedding.
    """

    architecture: str
    genai_type: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    ropes: tuple[Rope, ...]
    rope_of_layer: tuple[int | None, ...]
    windows: tuple[int, ...]
    tied: bool = False
    activation: Activation = "silu"
    qk_norm: Literal["head", "full"] | None = None
    pre_norms: bool = True
    post_norms: bool = False
    norm_offset: float = 0.0
    attention_scale: float
    attention_softcap: float = 0.0
    logits_softcap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    interleaved_qk: bool = False
    """Whether the rows of query and key are stored in the order of llama.cpp's interleaved rotation."""
    wide_residual: bool = False
    """Whether activations between layers leave fp16's range, so that GPUs keep them in fp32."""

    @property
    def q_size(self) -> int:
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_size
