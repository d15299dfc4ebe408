"""How each matrix is kept: by what its source holds, by the provider and by the precision that was asked for."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.core.providers import GraphRules, all_specs, names, spec_of
from coe_cli.errors import UsageError

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


_KEPT: Final = {
    "Q4_0": Encoding(4, 32, symmetric=True, exact=True),
    "Q8_0": Encoding(8, 32, symmetric=True, exact=True),
    "Q6_K": Encoding(8, 16, symmetric=True, exact=True),
    "Q4_1": Encoding(4, 32, offsets=True, exact=True),
    "Q4_K": Encoding(4, 32, offsets=True, exact=True),
}
"""Blocks that MatMulNBits holds exactly; the last two where it is fed with block sums."""


def rules_for(provider: str, precision: str, *, paged: bool = False) -> GraphRules:
    """The graph rules of a provider that is asked for a precision, and for paged attention or not.

    Raises:
        UsageError: there is no such recipe.
    """
    rules = spec_of(provider).graph if provider in names() else None
    if rules is None or precision not in rules.precisions:
        raise UsageError(
            f"there is no {precision} recipe for provider `{provider}`",
            "Choose --precision int4; int8 is for the CPU, fp16 for GPUs.",
        )
    if paged and not spec_of(provider).capabilities.continuous_batching:
        raise UsageError(f"{spec_of(provider).label} has no paged attention", without_paging())
    return replace(rules, paged_attention=paged)


def without_paging() -> str:
    """What to do where a model cannot be paged."""
    able = ", ".join(f"--provider {spec.name}" for spec in all_specs() if spec.capabilities.continuous_batching)
    return f"Import it without --paged, or for what has it ({able})."


def fitted(rules: GraphRules, decoder: Decoder) -> GraphRules:
    """``rules`` for one model: GroupQueryAttention rotates multiples of 16 elements of heads of such only, RotaryEmbedding any.

    Raises:
        UsageError: it is to be paged, and is of a kind that was not tried so.
    """
    rotates = all(size % 16 == 0 for size in (decoder.head_size, *(rope.dim for rope in decoder.ropes)))
    if rules.paged_attention and (not rotates or any(decoder.windows) or decoder.attention_softcap):
        raise UsageError(
            "its attention has windows, a soft cap or an odd rotation, which paged attention was not tried with",
            "Import it without --paged.",
        )
    if rotates:
        return rules
    return replace(rules, rotation_in_attention=False)


def encoding_of(
    source_type: str, rules: GraphRules, precision: Precision, *, head: bool = False, small: bool = False
) -> Encoding:
    """The format of a matrix whose source has ``source_type`` (a name of ``ggml.BLOCK_TYPES``).

    ``int4`` keeps what the source holds in 4, 6 or 8 bits; what has 5 or 6 bits and is not kept gets 8, the rest 4. A head
    gets 8 bits: at 4 it costs 17 % of perplexity (docs/conversion.md). So do, in a ``small`` model, matrices whose blocks have
    offsets that the provider cannot keep: whole zero points cost SmolLM2 16 %.
    """
    if precision in ("fp16", "fp32"):
        return Encoding(rules.float_bits)
    bits = BLOCK_TYPES[source_type].bits_per_weight
    if head or precision == "int8" or 5 < bits < 9:
        kept = _KEPT.get(source_type)
        if kept is not None and kept.bits == 8 and kept.block_size >= _SMALLEST_BLOCK:
            return kept
        symmetric = head or source_type == "Q6_K"
        return Encoding(8, rules.wide_block if symmetric else 32, symmetric=symmetric)
    kept = _KEPT.get(source_type)
    if kept is not None and (rules.block_offsets or not kept.offsets):
        return kept
    if kept is not None and small:
        return Encoding(8, 32)
    return Encoding(4, 32, offsets=rules.block_offsets)


def table_encoding(source_type: str, columns: int, rules: GraphRules) -> Encoding:
    """The format of an embedding that is not the head's: the source's own codes where the provider can gather them, else 8 bits."""
    kept = _KEPT.get(source_type)
    if (
        kept is None
        or kept.block_size < _SMALLEST_BLOCK
        or columns % kept.block_size
        or kept.bits not in rules.table_bits
    ):
        return Encoding(8, 32 if columns % rules.wide_block else rules.wide_block, symmetric=True)
    return kept


SMALL_WEIGHTS: Final = 1_000_000_000
"""Below so many weights a model is small: it is the one that 4 bits hurt, and 8 bits cost it little memory."""


_SMALLEST_BLOCK: Final = 32
"""Q6_K's blocks of 16 would take 10 bits a weight with their scales, for 6.6 of the source: they become larger ones, of
which a step is still at most a quarter of the source's (docs/conversion.md)."""
