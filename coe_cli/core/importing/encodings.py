"""How each matrix is kept: by what its source holds, by the provider and by the precision that was asked for."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.errors import UsageError

Target = Literal["cpu", "cuda", "dml", "webgpu"]
Precision = Literal["int4", "int8", "fp16", "fp32"]


class Encoding(Struct, frozen=True):
    """A matrix's format. ``bits`` 16 and 32 are plain floating-point matrices.

    ``offsets`` keeps the real offset of each block in further columns (runtime/importing/blocks.py); without it, blocks have
    a whole-numbered zero point, or none if ``symmetric``. ``exact`` says that the source's codes are kept as they are.
    """

    bits: int
    block_size: int = 32
    offsets: bool = False
    symmetric: bool = False
    exact: bool = False

    @property
    def quantized(self) -> bool:
        return self.bits < 16

    def label(self) -> str:
        """For the record beside the model, such as ``4 bits, blocks of 32, exact``."""
        if not self.quantized:
            return f"fp{self.bits}"
        how = ("exact",) if self.exact else ("requantised",)
        return ", ".join((f"{self.bits} bits", f"blocks of {self.block_size}", *how))


class ProviderRules(Struct, frozen=True):
    """What one provider's graph is made of. The table below is the only place that knows.

    ``io_bits`` are those of activations and cache. ``rotary_in_attention`` lets GroupQueryAttention rotate (else
    RotaryEmbedding does, with ``position_ids``); ``wide_norms`` keeps the norms and the sum of residuals in fp32.
    ``block_offsets`` says whether MatMulNBits is fed with block sums; ``gathers`` lists the bits of tables that
    GatherBlockQuantized can look up. ``fast_gelu`` says that there is a FastGelu; ``accuracy_level`` 4 rounds
    activations to 8 bits, 0 keeps them.
    """

    io_bits: Literal[16, 32]
    rotary_in_attention: bool = True
    wide_norms: bool = False
    block_offsets: bool = False
    gathers: tuple[int, ...] = ()
    fast_gelu: bool = True
    accuracy_level: int = 0
    share_buffer: bool = True
    """Whether past and present are one buffer."""
    options: dict[str, dict[str, str]] = {}
    """``provider_options`` of genai_config.json."""
    precisions: tuple[Precision, ...] = ("int4", "fp16")


RULES: Final[dict[Target, ProviderRules]] = {
    "cpu": ProviderRules(
        io_bits=32, block_offsets=True, gathers=(8,), accuracy_level=4, precisions=("int4", "int8", "fp32")
    ),
    "cuda": ProviderRules(io_bits=16, options={"cuda": {"enable_cuda_graph": "0"}}),
    # DESIGN §8: GatherBlockQuantized is refused, GroupQueryAttention ignores do_rotary, an fp16 norm is wrong above 256
    "dml": ProviderRules(
        io_bits=16,
        rotary_in_attention=False,
        wide_norms=True,
        fast_gelu=False,
        options={"dml": {"enable_graph_capture": "1"}},
    ),
    "webgpu": ProviderRules(io_bits=16, options={"webgpu": {"enableGraphCapture": "0", "validationMode": "basic"}}),
}
"""Graph operators: all four run MatMulNBits, GroupQueryAttention, SimplifiedLayerNormalization and Gather."""

_KEPT: Final = {
    "Q4_0": Encoding(4, 32, symmetric=True, exact=True),
    "Q8_0": Encoding(8, 32, symmetric=True, exact=True),
    "Q6_K": Encoding(8, 16, symmetric=True, exact=True),
    "Q4_1": Encoding(4, 32, offsets=True, exact=True),
    "Q4_K": Encoding(4, 32, offsets=True, exact=True),
}
"""Blocks that MatMulNBits holds exactly; the last two where it is fed with block sums."""


def rules_for(provider: str, precision: str) -> ProviderRules:
    """The rules of a provider that is asked for a precision.

    Raises:
        UsageError: there is no such recipe.
    """
    rules = RULES.get(provider)  # type: ignore[call-overload]
    if rules is None or precision not in rules.precisions:
        raise UsageError(
            f"there is no {precision} recipe for provider `{provider}`",
            "Choose --precision int4; int8 is for the CPU, fp16 for GPUs.",
        )
    found: ProviderRules = rules
    return found


def fitted(rules: ProviderRules, decoder: Decoder) -> ProviderRules:
    """``rules`` for one model: GroupQueryAttention rotates multiples of 16 elements only, RotaryEmbedding any number."""
    if all(rope.dim % 16 == 0 for rope in decoder.ropes):
        return rules
    return replace(rules, rotary_in_attention=False)


def encoding_of(source_type: str, rules: ProviderRules, precision: Precision, *, head: bool = False) -> Encoding:
    """The format of a matrix whose source has ``source_type`` (a name of ``ggml.BLOCK_TYPES``).

    ``int4`` keeps what the source holds in 4, 6 or 8 bits; what has 5 or 6 bits and is not kept gets 8, the rest 4. A head
    gets 8 bits: at 4 it costs 17 % of perplexity (docs/conversion.md).
    """
    if precision in ("fp16", "fp32"):
        return Encoding(rules.io_bits)
    bits = BLOCK_TYPES[source_type].bits_per_weight
    if head or precision == "int8" or 5 < bits < 9:
        kept = _KEPT.get(source_type)
        if kept is not None and kept.bits == 8 and kept.block_size >= _SMALLEST_BLOCK:
            return kept
        return Encoding(8, 32, symmetric=head or source_type == "Q6_K")
    kept = _KEPT.get(source_type)
    if kept is not None and (rules.block_offsets or not kept.offsets):
        return kept
    return Encoding(4, 32, offsets=rules.block_offsets)


_SMALLEST_BLOCK: Final = 32
"""Q6_K's blocks of 16 would take 10 bits a weight with their scales, for 6.6 of the source: they become blocks of 32,
whose steps are at most a quarter of the source's."""


def describe(rules: ProviderRules) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(rules)
    return plain
