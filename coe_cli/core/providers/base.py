"""What a provider is to everything pure: capabilities, graph rules, memory model, and what its errors mean.

The effects of the same provider (packages, OGA's configuration, probes) are in ``coe_cli.providers``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from coe_cli.core.hardware.machine import Adapter
    from coe_cli.core.memory.footprint import ModelMemory

ErrorKind = Literal["out_of_memory", "device_lost", "unavailable"]
"""``device_lost``: it worked and is gone; ``unavailable``: it could not be started at all."""

_GRAVEST_FIRST: Final[tuple[ErrorKind, ...]] = ("out_of_memory", "device_lost", "unavailable")


class Capabilities(Struct, frozen=True):
    """What a provider's generators can do. Slots, prefill, warm-up, plan and admission follow it.

    ``can_continue``: tokens may be appended to a generator that has taken some. ``can_rewind``: its cache may be cut back
    to an earlier length. ``continuous_batching``: it has the kernels of paged attention, with which all answers of a model share
    each run of its graph (docs/conversion.md).
    """

    can_continue: bool = True
    can_rewind: bool = True
    continuous_batching: bool = False

    @property
    def prompt_chunks(self) -> bool:
        """Whether a prompt may be read in chunks; else each is one run of the graph, however long."""
        return self.can_continue

    @property
    def reuses_prefixes(self) -> bool:
        """Whether a generator can answer again, and keep what two prompts have in common."""
        return self.can_continue and self.can_rewind


class OperatorSupport(Struct, frozen=True):
    """Opsets from ``since`` to below ``before`` (None: all later ones), and element types of the first input, by ONNX's names."""

    since: int
    before: int | None
    types: frozenset[str]

    def takes(self, opset: int) -> bool:
        """Whether a node of this operator runs in a graph of ``opset``."""
        return self.since <= opset and (self.before is None or opset < self.before)


class GraphRules(Struct, frozen=True):
    """What a graph must keep to on a provider: for whoever writes or checks one; ``core.models.graph_check`` checks.

    ``operators`` by domain (empty for ONNX's own) and name; None: all that ONNX Runtime has. ``matrix_bits``: what
    MatMulNBits may have, empty where nothing is known. ``lengths_on_device``: what attention reads of the mask is calculated without Shape,
    which is the CPU's: WebGPU can record such a run; CUDA's attention reads the length before it has come from the card (docs/conversion.md). ``paged_attention``: the graph is for continuous batching, which an import
    asks for. ``packs_weights``: the provider lays quantised weights out anew, so a graph built
    for it runs nowhere else. ``block_offsets``: MatMulNBits is fed with block sums, which keep each block's real offset
    (docs/conversion.md). ``table_bits``: what embeddings written here may have for GatherBlockQuantized. ``accuracy_level``:
    MatMulNBits' own, 4 rounds activations to 8 bits. ``wide_block``: weights a scale of heads and of what was in 6 bits. ``recipe``: the version of what importing writes for the provider, raised
    with each change that the count of matrices in the record does not tell; 1 was written by way of PyTorch. ``alike_since``: from
    which version on a model is as good as one of today, but for what that count tells.
    """

    float_type: Literal["fp32", "fp16"]
    precisions: tuple[Literal["int4", "int8", "fp16"], ...]
    packs_weights: bool = False
    block_offsets: bool = False
    table_bits: tuple[int, ...] = ()
    accuracy_level: int = 0
    wide_block: int = 32
    recipe: int = 2
    alike_since: int = 2
    norms_in_fp32: bool = False
    rotation_in_attention: bool = True
    quantized_embedding: bool = True
    lengths_on_device: bool = False
    paged_attention: bool = False
    matrix_bits: tuple[int, ...] = ()
    operators: Mapping[tuple[str, str], OperatorSupport] | None = None

    @property
    def float_bits(self) -> int:
        """Bits of activations, scales and the cache."""
        return 32 if self.float_type == "fp32" else 16

    @property
    def cache_element_bytes(self) -> int:
        """Bytes of one cache element where the model on disk does not say."""
        return 4 if self.float_type == "fp32" else 2


FLAG: Final = "[01]"
NUMBER: Final = r"-?\d{1,18}"
"""Values in ``ProviderSpec.config_options``."""


class ErrorMeaning(Struct, frozen=True):
    """What a native error is whose text matches ``pattern`` (without regard to case).

    ``reason`` is said instead of the text, where the text says nothing to a user; ``hint`` says what to do.
    """

    kind: ErrorKind
    pattern: str
    reason: str | None = None
    hint: str | None = None

    def matches(self, text: str) -> bool:
        return re.search(self.pattern, text, re.IGNORECASE) is not None


COMMON_ERRORS: Final = (
    ErrorMeaning(
        "out_of_memory", r"out of memory|bad_alloc|failed to allocate|not enough memory|E_OUTOFMEMORY|8007000E|BFCArena"
    ),
    ErrorMeaning("device_lost", r"device (was )?(removed|hung|lost)"),
    ErrorMeaning(
        "unavailable",
        r"provider .*(not (enabled|available|supported)|unknown)|unknown provider|not (been )?built with"
        r"|cannot open shared object|failed to load library|no (suitable|compatible) (device|adapter)",
    ),
)
"""Texts of ONNX Runtime and its GenAI library that mean the same on every provider."""


class ProviderSpec(ABC):
    """One execution provider, without effects. A subclass in this package with an instance called ``PROVIDER`` is one."""

    name: str
    """In profiles, catalogs, options and JSON."""
    label: str
    """For people: "DirectML"."""
    rank: int
    """Order of preference, the smallest first; the host's own is last."""
    ort_name: str
    """ONNX Runtime's name for it."""
    oga_packages: tuple[str, ...]
    """Distributions of ONNX Runtime GenAI that have it."""
    ort_packages: tuple[str, ...]
    """Distributions of ONNX Runtime that have it."""
    plugin_package: str | None = None
    """The distribution of its own library, where that is loaded into an ONNX Runtime of ``ort_packages``."""
    extra: str
    """The extra of coe-cli that installs it."""
    other_extras: Mapping[str, str] = {}
    """One of ``oga_packages`` → the extra that installs that one instead."""
    platforms: tuple[str, ...] = ()
    """Values of ``sys.platform`` where it exists; empty: everywhere."""
    expected_on: tuple[str, ...] = ()
    """Platforms whose installation should have it."""
    makers: tuple[str, ...] = ()
    """Makers of the cards that it drives, in lower case; empty: all."""
    slots_share_buffers: bool = False
    """Whether the buffers of a model's first slot serve its others, which then add a fixed amount each."""
    on_card: bool = True
    """Whether models are in a graphics adapter's memory; else in the system's."""
    capabilities: Capabilities = Capabilities()
    graph: GraphRules
    runs_graphs_of: tuple[str, ...] = ()
    """Providers whose models it runs as they are, where their own is not installed."""
    session: Mapping[str, str] = {}
    """Its options in the ``genai_config.json`` of a model that is imported for it."""
    config_options: Mapping[str, str] = {}
    """The options that a ``genai_config.json`` from elsewhere may set for it, and what their values must match. Those that name
    files or libraries, or hand over an address, belong in none."""
    session_entries: tuple[str, ...] = ()
    """The same of ``session_options``: entries of its own, each 0 or 1."""
    errors: tuple[ErrorMeaning, ...] = ()
    """Before those that all providers share."""

    @property
    def config_names(self) -> tuple[str, ...]:
        """What a ``genai_config.json`` calls it in ``provider_options``, in lower case."""
        return (self.name,)

    def exists_on(self, platform: str) -> bool:
        """Whether it can be had on ``platform``, a value of ``sys.platform``."""
        return not self.platforms or platform in self.platforms

    def drives(self, maker: str) -> bool:
        """Whether it drives cards in whose description, in lower case, ``maker`` stands."""
        return not self.makers or any(name in maker for name in self.makers)

    def can_use(self, adapter: Adapter) -> bool:
        """Whether models can run on ``adapter``."""
        return self.drives(adapter.name.lower())

    def installed_with(self, packages: Collection[str]) -> bool:
        """Whether the distributions that have it are among ``packages``."""
        return any(name in packages for name in self.oga_packages) and self.plugin_package in (None, *packages)

    def meaning(self, text: str) -> ErrorMeaning | None:
        """What a native error's text means, the gravest kind first, or None where nothing is known."""
        found = [error for error in (*self.errors, *COMMON_ERRORS) if error.matches(text)]
        return min(found, key=lambda error: _GRAVEST_FIRST.index(error.kind), default=None)

    @abstractmethod
    def load_bytes(self, model: ModelMemory) -> int:
        """What a loaded model holds before any prompt."""

    def load_peak_bytes(self, model: ModelMemory) -> int:
        """The most that is in use while a model loads."""
        return self.load_bytes(model)

    def mapped_bytes(self, model: ModelMemory) -> int:
        """Files that stay mapped and become resident as they are touched."""
        return 0

    def kv_cache_bytes(self, model: ModelMemory, context_length: int) -> int:
        """The cache of one slot: OGA allocates all of ``context_length`` when it makes the generator."""
        return model.spec.kv_bytes_per_token(model.element_bytes) * context_length

    @abstractmethod
    def slot_activation_bytes(self, model: ModelMemory, context_length: int, before: int) -> int:
        """What one slot adds beside its cache to a worker with ``before`` others, after prompts of all lengths."""

    @abstractmethod
    def activation_bytes(self, model: ModelMemory, context_length: int, prompt_tokens: int) -> int:
        """What a prefill of ``prompt_tokens`` in a fresh process adds to weights and cache at its peak."""

    def retained_bytes(self, model: ModelMemory, prompt_tokens: int) -> int:
        """What prompts of other lengths up to ``prompt_tokens`` add to that."""
        return 0
