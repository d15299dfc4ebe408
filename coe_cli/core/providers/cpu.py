"""The CPU: fp32, weights packed anew while a model loads, one arena a session.

Sources of the constants: docs/memory.md, which `benchmarks/plan_accuracy.py` writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coe_cli.core.providers.base import GraphRules, ProviderSpec
from coe_cli.core.units import BYTES_PER_MB

if TYPE_CHECKING:
    from coe_cli.core.memory.footprint import ModelMemory

PROCESS_BYTES: Final = 24 * BYTES_PER_MB
"""A worker that has imported OGA and loaded nothing: 24 MB resident."""

TOKENIZER_BYTES: Final = 17 * BYTES_PER_MB // 2
TOKENIZER_BYTES_PER_WORD: Final = 265
"""Resident bytes of OGA's tokenizer: 21.9e6 for SmolLM2's 49,152 words, 49.2e6 for Qwen2.5's 151,936 (OGA 0.18 on Linux). The
size of tokenizer.json says nothing of it: white space and the form of the merges halve the file and leave the tokenizer alike."""

SESSION_BYTES: Final = 32 * BYTES_PER_MB
"""What a session adds whatever the model: code pages of two libraries, thread pool, graph; 26 to 34 MB."""

ARENA_FACTOR: Final = 1.4
"""The session's arena after prompts of many lengths ÷ what the largest run needs: 1.33 to 1.39 of 28 MB and 1.36 of 52 MB.
A freed chunk is split only when it is twice what is asked (`core/providers/_arena.py`), so other lengths leave pieces between theirs, and
workers have huge pages, which are resident in steps of 2 MB."""

FAULT_AROUND_BYTES: Final = 64 * 1024
"""Linux maps this much of a file around each page that is touched (fault_around_bytes): an embedding row costs as much,
until the whole table is mapped."""

HEAP_RETAINED_BYTES: Final = 16 * BYTES_PER_MB
"""Freed logits of short chunks that glibc keeps on its heap: buffers of up to 32 MB can lie there (mallopt(3),
M_MMAP_THRESHOLD), 12 MB of which were in nobody's use at the peak."""

UNPACKED_FACTOR: Final = 1.4
"""Resident ÷ file size of INT4 weights in blocks of 32, where no graph tells it: (4 + 2) bits packed, 1 bit of scales
that stay mapped, over 5 bits a weight in the file."""


class Cpu(ProviderSpec):
    name = "cpu"
    label = "CPU"
    rank = 1000
    ort_name = "CPUExecutionProvider"
    oga_packages = ("onnxruntime-genai",)
    ort_packages = ("onnxruntime",)
    extra = "cpu"
    on_card = False
    slots_share_buffers = True
    graph = GraphRules(
        "fp32",
        ("int4", "int8"),
        packs_weights=True,
        block_offsets=True,
        table_bits=(4, 8),
        accuracy_level=4,
        wide_block=128,
        recipe=3,
    )

    def load_bytes(self, model: ModelMemory) -> int:
        """MLAS packs quantised weights into memory of its own with a scale and a block sum (4 bytes each) per block; the
        scales as fp32, norms and rotary tables stay beside them; an embedding that shares the head's weights is
        copied; an embedding table of its own is mapped and hardly touched; the tokenizer comes on top.
        """
        spec, graph = model.spec, model.graph
        base = PROCESS_BYTES + SESSION_BYTES
        if model.has_tokenizer:
            base += TOKENIZER_BYTES + TOKENIZER_BYTES_PER_WORD * spec.shape.vocab_size
        if graph is None or not graph.quantized_bytes:
            return base + round(spec.weights_bytes * UNPACKED_FACTOR)
        return base + graph.quantized_bytes + 2 * graph.block_bytes + graph.folded_bytes + graph.other_bytes

    def load_peak_bytes(self, model: ModelMemory) -> int:
        """The largest matrix exists twice while it is packed."""
        return self.load_bytes(model) + (model.graph.largest_quantized_bytes if model.graph is not None else 0)

    def mapped_bytes(self, model: ModelMemory) -> int:
        """An embedding table of its own, which is mapped as tokens touch it."""
        return model.graph.embedding_bytes if model.graph is not None else 0

    def slot_activation_bytes(self, model: ModelMemory, context_length: int, before: int) -> int:
        """A worker runs one chunk of one prompt at a time: each slot more brings its logits alone."""
        logits = logits_bytes(model, context_length)
        if before:
            return logits
        heap = min(logits, HEAP_RETAINED_BYTES) if model.logits_for_every_token else 0
        return logits + arena_bytes(model, context_length) + heap

    def activation_bytes(self, model: ModelMemory, context_length: int, prompt_tokens: int) -> int:
        """The tensors of one run, the logits, and an embedding table in the file, which is mapped where tokens touch it,
        apart from each other at worst.
        """
        rows = 0
        if model.graph is not None and model.graph.embedding_row_bytes:
            window = max(model.graph.embedding_row_bytes, FAULT_AROUND_BYTES)
            rows = min(model.graph.embedding_bytes, prompt_tokens * window)
        return run_bytes(model, prompt_tokens) + rows + logits_bytes(model, prompt_tokens)

    def retained_bytes(self, model: ModelMemory, prompt_tokens: int) -> int:
        return arena_bytes(model, prompt_tokens) - run_bytes(model, prompt_tokens)


def run_bytes(model: ModelMemory, prompt_tokens: int) -> int:
    """What the session's arena holds for one run, fp32.

    Three MLP tensors (gate, sigmoid, up), three of the attention (projection, transposed, rotated) and seven of the hidden
    size lie side by side, since the arena hands a freed block only to tensors that fit it. Copies with block sums lie
    beside all that, that of the hidden size twice.
    """
    copies = model.graph.widened_columns if model.graph is not None else ()
    widths = 3 * model.intermediate_size + 3 * model.qkv_size + 7 * model.spec.shape.hidden_size
    return 4 * model.run_tokens(prompt_tokens) * (widths + sum(copies) + min(copies, default=0))


def arena_bytes(model: ModelMemory, longest_prompt: int) -> int:
    """The same after many prompts of all lengths up to ``longest_prompt``."""
    return round(ARENA_FACTOR * run_bytes(model, longest_prompt))


def logits_bytes(model: ModelMemory, prompt_tokens: int) -> int:
    """Logits that a generator keeps of its last run, fp32: of every token of it, or of one where the graph prunes them."""
    rows = model.run_tokens(prompt_tokens) if model.logits_for_every_token else 1
    return 4 * rows * model.spec.shape.vocab_size


PROVIDER = Cpu()
