"""Bytes of weights, KV cache and activations of one model: pure arithmetic, one class for each way of counting.

The guide's figures stand in the profile file (docs/memory.md); what a provider's allocator does is in ``core.providers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

from msgspec import Struct

from coe_cli.core.hardware.profile import PerSlotEstimate, Provider
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.models.onnx_graph import GraphFacts
from coe_cli.core.providers import ProviderSpec, spec_of
from coe_cli.core.units import BYTES_PER_MB

AccountingName = Literal["exact", "formula", "guide"]
ACCOUNTING_NAMES: Final[tuple[AccountingName, ...]] = ("exact", "formula", "guide")

WIDEST_MLP: Final = 16 / 3
"""Intermediate ÷ hidden size where no graph tells it: the widest of the catalog's models (18944 ÷ 3584 = 5.29)."""


class ModelMemory(Struct, frozen=True):
    """A model on a provider, with what is known of its graph. A bench without text has no tokenizer; ``measured_…`` come from real runs."""

    spec: ModelSpec
    provider: Provider
    graph: GraphFacts | None = None
    prunes_logits: bool | None = None
    chunk_size: int | None = None
    has_tokenizer: bool = True
    measured_load_bytes: int | None = None
    measured_slot_ratio: float | None = None

    @property
    def element_bytes(self) -> int:
        """Bytes of one cache element: the graph's, else what the provider's builds use."""
        stored = self.graph.cache_element_bytes if self.graph is not None else None
        return stored or self.on.graph.cache_element_bytes

    @property
    def logits_for_every_token(self) -> bool:
        """Whether a prefill makes logits for each prompt token; taken for granted while nothing says otherwise."""
        stored = self.graph.prunes_logits if self.graph is not None else None
        return not (self.prunes_logits if stored is None else stored)

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of the cache that all slots share; 0: each slot has a cache of its own."""
        return (self.graph.block_tokens if self.graph is not None else None) or 0

    def whole_blocks(self, tokens: int) -> int:
        """``tokens``, rounded up to blocks where the cache has any."""
        return -(-tokens // self.block_tokens) * self.block_tokens if self.block_tokens else tokens

    @property
    def intermediate_size(self) -> int:
        stored = self.graph.intermediate_size if self.graph is not None else None
        return stored or round(WIDEST_MLP * self.spec.shape.hidden_size)

    @property
    def qkv_size(self) -> int:
        """Width of queries, keys and values together."""
        shape = self.spec.shape
        return (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_size

    @property
    def on(self) -> ProviderSpec:
        """The provider that it is on."""
        return spec_of(self.provider)

    def run_tokens(self, prompt_tokens: int) -> int:
        """How many of a prompt's tokens one run of the graph sees at most."""
        return min(prompt_tokens, self.chunk_size or prompt_tokens)


class SlotBytes(Struct, frozen=True):
    """What one slot adds to its model's weights."""

    kv_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.kv_bytes + self.activation_bytes


class Accounting(Protocol):
    """One way of counting. ``costs`` are the guide's slot costs of the slots that use the model, empty when it idles."""

    name: AccountingName

    def kv_bytes_per_token(self, model: ModelMemory) -> int: ...

    def weights_bytes(self, model: ModelMemory, costs: Sequence[int]) -> int: ...

    def slot(self, model: ModelMemory, context_length: int, cost: int, before: int = 0) -> SlotBytes:
        """One slot more of a model that has ``before`` slots already."""
        ...


class GuideAccounting:
    """The guide's constants: every slot brings weights, cache and activations, times its model's slot cost."""

    name: AccountingName = "guide"

    def __init__(self, constants: PerSlotEstimate) -> None:
        self._constants = constants

    def kv_bytes_per_token(self, model: ModelMemory) -> int:
        """2500 MB at 8192 tokens, spread over the tokens."""
        return self._constants.kv_cache_8k_context * BYTES_PER_MB // 8192

    def weights_bytes(self, model: ModelMemory, costs: Sequence[int]) -> int:
        return self._constants.model_weights_7b_int4 * sum(costs or (1,)) * BYTES_PER_MB

    def slot(self, model: ModelMemory, context_length: int, cost: int, before: int = 0) -> SlotBytes:
        """The same for every context: the guide knows no other."""
        return SlotBytes(
            self._constants.kv_cache_8k_context * cost * BYTES_PER_MB,
            self._constants.activation_memory * cost * BYTES_PER_MB,
        )


class FormulaAccounting:
    """The guide's KV formula, 2 · layers · hidden_size · 2 bytes a token: right only without grouped-query attention."""

    name: AccountingName = "formula"

    def __init__(self, constants: PerSlotEstimate) -> None:
        self._constants = constants

    def kv_bytes_per_token(self, model: ModelMemory) -> int:
        return 2 * model.spec.shape.num_hidden_layers * model.spec.shape.hidden_size * 2

    def weights_bytes(self, model: ModelMemory, costs: Sequence[int]) -> int:
        return model.spec.weights_bytes

    def slot(self, model: ModelMemory, context_length: int, cost: int, before: int = 0) -> SlotBytes:
        return SlotBytes(
            self.kv_bytes_per_token(model) * context_length, self._constants.activation_memory * BYTES_PER_MB
        )


class ExactAccounting:
    """Shapes and allocators (docs/memory.md), with the figures of real runs in place of computed ones where there are any."""

    name: AccountingName = "exact"

    def kv_bytes_per_token(self, model: ModelMemory) -> int:
        return model.spec.kv_bytes_per_token(model.element_bytes)

    def weights_bytes(self, model: ModelMemory, costs: Sequence[int] = ()) -> int:
        """What is loaded, and what of its files is mapped as it is used."""
        return (model.measured_load_bytes or model.on.load_bytes(model)) + model.on.mapped_bytes(model)

    def slot(self, model: ModelMemory, context_length: int, cost: int = 1, before: int = 0) -> SlotBytes:
        """A slot whose prompt may fill its whole context, in a worker that has answered others before it."""
        kv = model.on.kv_cache_bytes(model, context_length)
        activation = model.on.slot_activation_bytes(model, context_length, before)
        if model.measured_slot_ratio is not None:
            activation = max(0, round((kv + activation) * model.measured_slot_ratio) - kv)
        return SlotBytes(max(0, kv + min(0, activation)), max(0, activation))


def accounting(name: AccountingName, constants: PerSlotEstimate) -> Accounting:
    """The way of counting called ``name``."""
    if name == "exact":
        return ExactAccounting()
    return FormulaAccounting(constants) if name == "formula" else GuideAccounting(constants)


def wasted_by_rounding(model: ModelMemory, context_length: int) -> float:
    """The share of a cache that an allocator's rounding adds for nothing."""
    asked = model.spec.kv_bytes_per_token(model.element_bytes) * context_length
    taken = model.on.kv_cache_bytes(model, context_length)
    return 1 - asked / taken if taken else 0.0
