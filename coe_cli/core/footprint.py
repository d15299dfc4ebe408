"""Bytes of weights, KV cache and activations of one model: pure arithmetic, one class for each way of counting.

Sources of the constants: the guide's figures stand in the profile file (DESIGN §4), the measured ones in DESIGN §6 and
in docs/memory.md, which `benchmarks/plan_accuracy.py` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal, Protocol

from msgspec import Struct

from coe_cli.core.cuda_memory import LIBRARIES_BYTES, Decoder, arenas_bytes, reserved_bytes, worst_arenas_bytes
from coe_cli.core.model_spec import BYTES_PER_MB, KV_ELEMENT_BYTES, ModelSpec
from coe_cli.core.onnx_graph import GraphFacts
from coe_cli.core.profile import PerSlotEstimate, Provider

AccountingName = Literal["exact", "formula", "guide"]
ACCOUNTING_NAMES: Final[tuple[AccountingName, ...]] = ("exact", "formula", "guide")

DML_SMALLEST_BYTES: Final = 64 * 1024
"""DirectML's pool has buckets from 2**16 bytes up (onnxruntime's BucketizedBufferAllocator)."""

CPU_PROCESS_BYTES: Final = 24 * BYTES_PER_MB
"""A worker that has imported OGA and loaded nothing: 24 MB resident."""

TOKENIZER_FACTOR: Final = 6
"""Resident bytes of OGA's tokenizer ÷ bytes of tokenizer.json: 21 MB for SmolLM2's 3.5 MB."""

TOKENIZER_BYTES_PER_WORD: Final = 430
"""The same for each word of the vocabulary, where there is no file to look at."""

CPU_SESSION_BYTES: Final = 32 * BYTES_PER_MB
"""What a session adds whatever the model: code pages of two libraries, thread pool, graph; 26 to 34 MB."""

CPU_ARENA_FACTOR: Final = 1.4
"""The session's arena after prompts of many lengths ÷ what the largest run needs: 1.33 to 1.39 of 28 MB and 1.36 of 52 MB.
A freed chunk is split only when it is twice what is asked (`core/arena.py`), so other lengths leave pieces between theirs, and
workers have huge pages, which are resident in steps of 2 MB."""

CPU_FAULT_AROUND_BYTES: Final = 64 * 1024
"""Linux maps this much of a file around each page that is touched (fault_around_bytes): an embedding row costs as much,
until the whole table is mapped."""

CPU_HEAP_KEPT_BYTES: Final = 16 * BYTES_PER_MB
"""Freed logits of short pieces that glibc keeps on its heap: buffers of up to 32 MB can lie there (mallopt(3),
M_MMAP_THRESHOLD), 12 MB of which were in nobody's use at the peak."""

CUDA_CONTEXT_BYTES: Final = 527 * BYTES_PER_MB
"""A process's bare CUDA context on an H100; smaller cards take less, which a calibrated plan knows."""

CUDA_UNROUNDED_FACTOR: Final = 1.07
"""Device memory ÷ file size where no graph tells the tensors apart: pages of 2 MB, measured 1.063 and 1.064."""

WIDEST_MLP: Final = 16 / 3
"""Intermediate ÷ hidden size where no graph tells it: the widest of the catalog's models (18944 ÷ 3584 = 5.29)."""

CPU_UNPACKED_FACTOR: Final = 1.4
"""Resident ÷ file size of INT4 weights in blocks of 32, where no graph tells it: (4 + 2) bits packed, 1 bit of scales
that stay mapped, over 5 bits a weight in the file."""


class ModelMemory(Struct, frozen=True):
    """A model on a provider, with what is known of its graph. ``calibration`` comes from real runs."""

    spec: ModelSpec
    provider: Provider
    graph: GraphFacts | None = None
    prunes_logits: bool | None = None
    chunk_size: int | None = None
    tokenizer_file_bytes: int | None = None
    measured_load_bytes: int | None = None
    measured_slot_ratio: float | None = None

    @property
    def element_bytes(self) -> int:
        """Bytes of one cache element: the graph's, else what the provider's builds use."""
        stored = self.graph.cache_element_bytes if self.graph is not None else None
        return stored or KV_ELEMENT_BYTES[self.provider]

    @property
    def logits_for_every_token(self) -> bool:
        """Whether a prefill makes logits for each prompt token; taken for granted while nothing says otherwise."""
        stored = self.graph.prunes_logits if self.graph is not None else None
        return not (self.prunes_logits if stored is None else stored)

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
    def decoder(self) -> Decoder:
        """The sizes that CUDA's arenas depend on."""
        shape = self.spec.shape
        return Decoder(
            layers=shape.num_hidden_layers,
            hidden=shape.hidden_size,
            attention=shape.num_attention_heads * shape.head_size,
            qkv=self.qkv_size,
            inner=self.intermediate_size,
            heads=shape.num_attention_heads,
            vocab=shape.vocab_size,
            cache_width=shape.num_key_value_heads * shape.head_size,
            element_bytes=self.element_bytes,
            prunes_logits=not self.logits_for_every_token,
            chunk_size=self.chunk_size or 0,
        )


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
    """Shapes and allocators (DESIGN §4), with the figures of real runs in place of computed ones where there are any."""

    name: AccountingName = "exact"

    def kv_bytes_per_token(self, model: ModelMemory) -> int:
        return model.spec.kv_bytes_per_token(model.element_bytes)

    def weights_bytes(self, model: ModelMemory, costs: Sequence[int] = ()) -> int:
        """What is loaded, and on the CPU an embedding table of its own, which is mapped as tokens touch it."""
        table = model.graph.embedding_bytes if model.graph is not None and model.provider == "cpu" else 0
        return (model.measured_load_bytes or load_bytes(model)) + table

    def slot(self, model: ModelMemory, context_length: int, cost: int = 1, before: int = 0) -> SlotBytes:
        """A slot whose prompt may fill its whole context, in a worker that has answered others before it.

        A model's slots share what its arenas have taken: on CUDA by simulation, on the CPU because a worker runs one piece
        of one prompt at a time, so that each slot more brings its cache and its logits alone. On DirectML each is counted
        alone, with pools for prompts of every length, which is an upper bound.
        """
        kv = kv_cache_bytes(model, context_length)
        if model.provider == "cpu":
            activation = logits = cpu_logits_bytes(model, context_length)
            if not before:
                activation += cpu_arena_bytes(model, context_length)
                activation += min(logits, CPU_HEAP_KEPT_BYTES) if model.logits_for_every_token else 0
        elif model.provider == "cuda":
            total = worst_arenas_bytes(model.decoder, context_length, before + 1)
            activation = max(
                0, total - (worst_arenas_bytes(model.decoder, context_length, before) if before else 0) - kv
            )
        else:
            activation = dml_pooled_bytes(model, context_length)
        if model.measured_slot_ratio is not None:
            activation = max(0, round((kv + activation) * model.measured_slot_ratio) - kv)
        return SlotBytes(kv, activation)


def accounting(name: AccountingName, constants: PerSlotEstimate) -> Accounting:
    """The way of counting called ``name``."""
    if name == "exact":
        return ExactAccounting()
    return FormulaAccounting(constants) if name == "formula" else GuideAccounting(constants)


def power_of_two(size: int) -> int:
    """The least power of two that is not below ``size``; 0 stays 0."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


def dml_rounded(size: int) -> int:
    """What DirectML's pool takes for an allocation of ``size`` bytes: a power of two, at least 64 KiB."""
    return max(DML_SMALLEST_BYTES, power_of_two(size)) if size > 0 else 0


def kv_cache_bytes(model: ModelMemory, context_length: int) -> int:
    """The cache of one slot: OGA allocates all of ``context_length`` when it makes the generator.

    On DirectML each layer's keys and values are a tensor of their own that is rounded up.
    """
    if model.provider != "dml":
        return model.spec.kv_bytes_per_token(model.element_bytes) * context_length
    shape = model.spec.shape
    tensor = shape.num_key_value_heads * shape.head_size * model.element_bytes * context_length
    return 2 * shape.num_hidden_layers * dml_rounded(tensor)


def load_bytes(model: ModelMemory) -> int:
    """What a loaded model holds before any prompt.

    CPU: MLAS packs quantised weights into memory of its own with a scale and a block sum (4 bytes each) per block; the
    stored scales, norms and rotary tables were read and stay mapped; an embedding that shares the head's weights is
    copied; an embedding table of its own is mapped and hardly touched; the tokenizer comes on top. CUDA: the bare context, libraries, and each
    tensor in pages of its own. DirectML: weights are uploaded before rounding is switched on, so the files count as
    they are.
    """
    spec, graph = model.spec, model.graph
    if model.provider == "cuda":
        sizes = graph.initializer_bytes if graph is not None else ()
        weights = reserved_bytes(sizes) if sizes else round(spec.weights_bytes * CUDA_UNROUNDED_FACTOR)
        return CUDA_CONTEXT_BYTES + LIBRARIES_BYTES + weights
    if model.provider == "dml":
        return spec.weights_bytes
    file = model.tokenizer_file_bytes
    words = spec.shape.vocab_size
    base = CPU_PROCESS_BYTES + CPU_SESSION_BYTES
    base += TOKENIZER_BYTES_PER_WORD * words if file is None else TOKENIZER_FACTOR * file
    if graph is None or not graph.quantized_bytes:
        return base + round(spec.weights_bytes * CPU_UNPACKED_FACTOR)
    return base + graph.quantized_bytes + 2 * graph.block_bytes + graph.folded_bytes + graph.other_bytes


def load_peak_bytes(model: ModelMemory) -> int:
    """The most that is in use while a model loads: on the CPU the largest matrix exists twice while it is packed."""
    extra = model.graph.largest_quantized_bytes if model.graph is not None and model.provider == "cpu" else 0
    return load_bytes(model) + extra


def activation_bytes(model: ModelMemory, context_length: int, prompt_tokens: int) -> int:
    """What a prefill of ``prompt_tokens`` adds to weights and cache at its peak; ``chunk_size`` bounds the tokens.

    CPU: the tensors of one run, the logits, and an embedding table in the file, which is mapped where tokens touch it,
    apart from each other at worst. CUDA, fp16: what the two arenas take beyond the cache. DirectML, fp16: the tensors that
    are alive at once in the MLP and the logits, each rounded.
    """
    if model.provider == "cuda":
        taken = arenas_bytes(model.decoder, context_length, prompt_tokens)
        return max(0, taken - kv_cache_bytes(model, context_length))
    if model.provider == "dml":
        return _dml_run_bytes(*_dml_widths(model), run_tokens(model, prompt_tokens))
    rows = 0
    if model.graph is not None and model.graph.embedding_row_bytes:
        window = max(model.graph.embedding_row_bytes, CPU_FAULT_AROUND_BYTES)
        rows = min(model.graph.embedding_bytes, prompt_tokens * window)
    return cpu_run_bytes(model, prompt_tokens) + rows + cpu_logits_bytes(model, prompt_tokens)


def dml_pooled_bytes(model: ModelMemory, context_length: int) -> int:
    """What DirectML's pools hold of activations when prompts of every length have been read.

    A pool serves allocations of its own power of two alone (onnxruntime's BucketizedBufferAllocator), so what a prompt of
    half the length takes is no part of what the longest took.
    """
    return _dml_pools_bytes(*_dml_widths(model), run_tokens(model, context_length))


def _dml_widths(model: ModelMemory) -> tuple[tuple[int, ...], int, bool]:
    """Elements a token of the tensors that are alive at once, of the logits, and whether each token has logits."""
    shape = model.spec.shape
    widths = (*[model.intermediate_size] * 3, *[shape.hidden_size] * 2, model.qkv_size)
    return widths, shape.vocab_size, model.logits_for_every_token


def _dml_run_bytes(widths: tuple[int, ...], vocab_size: int, every_token: bool, tokens: int) -> int:
    logits_bytes = dml_rounded(2 * (tokens if every_token else 1) * vocab_size)
    return sum(dml_rounded(2 * tokens * width) for width in widths) + logits_bytes


@lru_cache(maxsize=256)
def _dml_pools_bytes(widths: tuple[int, ...], vocab_size: int, every_token: bool, tokens: int) -> int:
    """Kept, since solving for slots or a context asks for the same models a thousand times."""
    return sum(
        _dml_run_bytes(widths, vocab_size, every_token, tokens >> halved) for halved in range(tokens.bit_length())
    )


def run_tokens(model: ModelMemory, prompt_tokens: int) -> int:
    """How many of a prompt's tokens one run of the graph sees at most."""
    return min(prompt_tokens, model.chunk_size or prompt_tokens)


def cpu_run_bytes(model: ModelMemory, prompt_tokens: int) -> int:
    """What the session's arena on the CPU holds for one run, fp32.

    Three MLP tensors (gate, sigmoid, up), three of the attention (projection, transposed, rotated) and seven of the hidden
    size lie side by side, since the arena hands a freed block only to tensors that fit it. Copies with block sums lie
    beside all that, that of the hidden size twice.
    """
    copies = model.graph.widened_columns if model.graph is not None else ()
    widths = 3 * model.intermediate_size + 3 * model.qkv_size + 7 * model.spec.shape.hidden_size
    return 4 * run_tokens(model, prompt_tokens) * (widths + sum(copies) + min(copies, default=0))


def cpu_arena_bytes(model: ModelMemory, longest_prompt: int) -> int:
    """The same after many prompts of all lengths up to ``longest_prompt``."""
    return round(CPU_ARENA_FACTOR * cpu_run_bytes(model, longest_prompt))


def cpu_logits_bytes(model: ModelMemory, prompt_tokens: int) -> int:
    """Logits that a generator keeps of its last run, fp32: of every token of it, or of one where the graph prunes them."""
    rows = run_tokens(model, prompt_tokens) if model.logits_for_every_token else 1
    return 4 * rows * model.spec.shape.vocab_size


def wasted_by_rounding(model: ModelMemory, context_length: int) -> float:
    """The share of a DirectML cache that rounding adds for nothing, 0 on other providers."""
    asked = model.spec.kv_bytes_per_token(model.element_bytes) * context_length
    taken = kv_cache_bytes(model, context_length)
    return 1 - asked / taken if taken else 0.0
