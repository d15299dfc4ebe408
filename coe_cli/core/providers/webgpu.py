"""WebGPU: any card through Direct3D 12, Vulkan or Metal, by a plugin for the host's own ONNX Runtime.

The memory model is that of its buffer pool (onnxruntime/core/providers/webgpu/buffer_manager.cc) over Dawn's allocator for Vulkan
(dawn/native/vulkan/ResourceMemoryAllocatorVk.cpp); constants are measured in docs/memory.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from coe_cli.core.providers.base import FLAG, NUMBER, ErrorMeaning, GraphRules, ProviderSpec
from coe_cli.core.units import BYTES_PER_MB, power_of_two

if TYPE_CHECKING:
    from coe_cli.core.memory.footprint import ModelMemory

_POWERS: Final = [1 << exponent for exponent in range(13, 23)]
_LARGER_MB: Final = (8, 12, 16, 25, 32, 42.1875, 56.25, 64, 128, 160)
BUCKETS: Final[tuple[int, ...]] = (
    64,
    128,
    256,
    512,
    2048,
    4096,
    *_POWERS,
    *(round(size * BYTES_PER_MB) for size in _LARGER_MB),
)
"""Sizes of buffers that the pool keeps; a larger one is made as it is asked for, and given back."""

HEAP_BYTES: Final = 8 * BYTES_PER_MB
"""Dawn puts buffers below half of this into heaps, each rounded up to a power of two; others are allocations of their own."""

PAGE_BYTES: Final = 64 * 1024
DEVICE_BYTES: Final = 40 * BYTES_PER_MB
"""A process with a device, before any weights."""

FIRST_RUN_MB: Final = 48
SPLIT_ATTENTION_TOKENS: Final = 31
"""Prompts up to this length use attention that holds scores of each head for the whole context."""

_START = (
    "Update the graphics driver (on Linux with its Vulkan part, and libvulkan1), or answer on the CPU: -p embedded."
)


class WebGpu(ProviderSpec):
    name = "webgpu"
    label = "WebGPU"
    rank = 30
    ort_name = "WebGpuExecutionProvider"
    oga_packages = ("onnxruntime-genai",)
    ort_packages = ("onnxruntime",)
    plugin_package = "onnxruntime-ep-webgpu"
    extra = "webgpu"
    runs_graphs_of = ("cuda", "dml")
    graph = GraphRules("fp16", ("int4", "fp16"), lengths_on_device=True)
    session: Mapping[str, str] = {"enableGraphCapture": "1", "enableInt64": "1"}
    config_options: Mapping[str, str] = {
        "enableGraphCapture": FLAG,
        "enableInt64": FLAG,
        "enablePIXCapture": "0",
        "validationMode": "disabled|wgpuOnly|basic|full",
        "preferredLayout": "NCHW|NHWC",
        "powerPreference": "high-performance|low-power",
        "storageBufferCacheMode": "disabled|lazyRelease|simple|bucket",
        "multiRotaryCacheConcatOffset": NUMBER,
    }
    errors = (
        ErrorMeaning(
            "out_of_memory",
            r"OUT_OF_(DEVICE|HOST)_MEMORY|E_OUTOFMEMORY|\[?Invalid Buffer\b.* is invalid due to a previous error"
            r"|Failed to create GPU buffer",
            "the graphics adapter has no memory left for a buffer",
        ),
        ErrorMeaning("device_lost", r"WebGPU device lost|VK_ERROR_DEVICE_LOST|DXGI_ERROR_DEVICE|\[Device\] is lost"),
        ErrorMeaning(
            "unavailable",
            r"WebGPU execution provider is not supported|Failed to get a WebGPU adapter|No supported adapters",
            "no graphics adapter that WebGPU can use was found",
            _START,
        ),
        ErrorMeaning(
            "unavailable",
            r"requires f16 but the device does not support it",
            "the graphics adapter cannot calculate in fp16",
            _START,
        ),
    )

    def load_bytes(self, model: ModelMemory) -> int:
        """Each tensor in a buffer of its own size."""
        sizes = model.graph.initializer_bytes if model.graph is not None else (model.spec.weights_bytes,)
        return DEVICE_BYTES + _allocated(sizes)

    def kv_cache_bytes(self, model: ModelMemory, context_length: int) -> int:
        """Keys and values of each layer are a buffer of the pool each."""
        shape = model.spec.shape
        tensor = shape.num_key_value_heads * shape.head_size * model.element_bytes * context_length
        return _allocated([bucket(tensor)] * (2 * shape.num_hidden_layers))

    def slot_activation_bytes(self, model: ModelMemory, context_length: int, before: int) -> int:
        """A model's slots take their buffers from one pool; it keeps buffers of every size that a prompt asked for."""
        if before:
            return 0
        tokens = model.run_tokens(context_length)
        few = min(context_length, SPLIT_ATTENTION_TOKENS)
        kept = sum(count * ladder(size) for count, size in _buffers(model, tokens))
        return _first_run_bytes(model) + kept + ladder(_scores_bytes(model, few, context_length))

    def activation_bytes(self, model: ModelMemory, context_length: int, prompt_tokens: int) -> int:
        """The first run's own, and the buffers of one run: sixteen operators are sent together, and none of their buffers is
        free for another before that.
        """
        tokens = model.run_tokens(prompt_tokens)
        run = sum(count * bucket(size) for count, size in _buffers(model, tokens))
        if tokens <= SPLIT_ATTENTION_TOKENS:
            return FIRST_RUN_MB // 2 * BYTES_PER_MB + run + 2 * bucket(_scores_bytes(model, tokens, context_length))
        return _first_run_bytes(model) + run


def bucket(size: int) -> int:
    """The pool's buffer for ``size`` bytes."""
    place = bisect_left(BUCKETS, size)
    return BUCKETS[place] if place < len(BUCKETS) else -(-size // 16) * 16


def ladder(size: int) -> int:
    """A buffer of each of the pool's sizes up to the one for ``size`` bytes."""
    return sum(BUCKETS[: bisect_left(BUCKETS, size)]) + bucket(size)


def _allocated(sizes: list[int] | tuple[int, ...]) -> int:
    """What Dawn takes of the card for buffers of these sizes."""
    small = sum(power_of_two(size) for size in sizes if size < HEAP_BYTES // 2)
    return -(-small // HEAP_BYTES) * HEAP_BYTES + sum(
        -(-size // PAGE_BYTES) * PAGE_BYTES for size in sizes if size >= HEAP_BYTES // 2
    )


def _first_run_bytes(model: ModelMemory) -> int:
    """What the driver takes for kernels that read a prompt: on an H200 112 MB with heads of 64 elements, 176 MB with 128."""
    return (FIRST_RUN_MB + model.spec.shape.head_size) * BYTES_PER_MB


def _buffers(model: ModelMemory, tokens: int) -> list[tuple[int, int]]:
    """How many buffers of which size one run holds: the MLP's, the residual's, queries with keys and values, and logits."""
    shape = model.spec.shape
    rows = tokens if model.logits_for_every_token else 1
    widths = ((5, model.intermediate_size), (3, shape.hidden_size), (1, model.qkv_size))
    return [*((count, 2 * tokens * width) for count, width in widths), (1, 2 * rows * shape.vocab_size)]


def _scores_bytes(model: ModelMemory, tokens: int, context_length: int) -> int:
    return 2 * model.spec.shape.num_attention_heads * tokens * context_length


PROVIDER = WebGpu()
