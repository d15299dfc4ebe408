"""CUDA: fp16 on NVIDIA's cards; two arenas that grow by powers of two, simulated by ``_cuda_arenas``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from coe_cli.core.providers._cuda_arenas import (
    LIBRARIES_BYTES,
    Decoder,
    arenas_bytes,
    paged_arenas_bytes,
    reserved_bytes,
    worst_arenas_bytes,
)
from coe_cli.core.providers.base import FLAG, NUMBER, Capabilities, ErrorMeaning, GraphRules, ProviderSpec
from coe_cli.core.units import BYTES_PER_MB

if TYPE_CHECKING:
    from coe_cli.core.hardware.machine import Adapter
    from coe_cli.core.memory.footprint import ModelMemory

CONTEXT_BYTES: Final = 527 * BYTES_PER_MB
"""A process's bare CUDA context on an H100; smaller cards take less, which a calibrated plan knows."""

UNROUNDED_FACTOR: Final = 1.07
"""Device memory ÷ file size where no graph tells the tensors apart: pages of 2 MB, measured 1.063 and 1.064."""

_DRIVER = "Update NVIDIA's driver (`nvidia-smi` shows it), or answer on the CPU: -p embedded."

_FLAGS: Final = (
    "enable_cuda_graph",
    "do_copy_in_default_stream",
    "cudnn_conv_use_max_workspace",
    "cudnn_conv1d_pad_to_nc1d",
    "tunable_op_enable",
    "tunable_op_tuning_enable",
    "enable_skip_layer_norm_strict_mode",
    "prefer_nhwc",
    "use_ep_level_unified_stream",
    "use_tf32",
    "fuse_conv_bias",
)
_NUMBERS: Final = (
    "max_mem",
    "arena_extend_strategy",
    "initial_chunk_size_bytes",
    "max_dead_bytes_per_chunk",
    "initial_growth_chunk_size_bytes",
    "gpu_mem_limit",
    "sdpa_kernel",
    "tunable_op_max_tuning_duration_ms",
)


class Cuda(ProviderSpec):
    name = "cuda"
    label = "CUDA"
    rank = 20
    ort_name = "CUDAExecutionProvider"
    oga_packages = ("onnxruntime-genai-cuda",)
    ort_packages = ("onnxruntime-gpu",)
    extra = "cuda"
    platforms = ("win32", "linux")
    makers = ("nvidia",)
    capabilities = Capabilities(continuous_batching=True)
    graph = GraphRules("fp16", ("int4", "fp16"), recipe=4, alike_since=4)
    session: Mapping[str, str] = {"enable_cuda_graph": "0"}
    config_options: Mapping[str, str] = {
        **dict.fromkeys(_FLAGS, FLAG),
        **dict.fromkeys(_NUMBERS, NUMBER),
        "device_id": r"\d{1,4}",
        "cudnn_conv_algo_search": "EXHAUSTIVE|HEURISTIC|DEFAULT",
    }
    errors = (
        ErrorMeaning("out_of_memory", r"cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|CUDA failure 2\b"),
        ErrorMeaning("device_lost", r"cudaErrorLaunchFailure|cudaErrorIllegalAddress|CUDA failure (700|719)"),
        ErrorMeaning(
            "unavailable",
            r"CUDA failure (35|803)\b|cudaErrorInsufficientDriver|driver version is insufficient",
            "the graphics driver is too old for these packages",
            _DRIVER,
        ),
        ErrorMeaning(
            "unavailable",
            r"CUDA failure (100|999)\b|cudaErrorNoDevice|no CUDA-capable device",
            "the driver shows no CUDA device",
            _DRIVER,
        ),
    )

    def can_use(self, adapter: Adapter) -> bool:
        return adapter.probe == "nvml" or super().can_use(adapter)

    def load_bytes(self, model: ModelMemory) -> int:
        """The bare context, libraries, and each tensor in pages of its own."""
        sizes = model.graph.initializer_bytes if model.graph is not None else ()
        weights = reserved_bytes(sizes) if sizes else round(model.spec.weights_bytes * UNROUNDED_FACTOR)
        return CONTEXT_BYTES + LIBRARIES_BYTES + weights

    def kv_cache_bytes(self, model: ModelMemory, context_length: int) -> int:
        """A slot's part of a paged cache is whole blocks."""
        return super().kv_cache_bytes(model, model.whole_blocks(context_length))

    def slot_activation_bytes(self, model: ModelMemory, context_length: int, before: int) -> int:
        """A model's slots share what its arenas have taken: by simulation, with and without the slot.

        A paged cache is one for all slots, and where the arena has doubled for it a slot more takes less than its blocks.
        """
        decoder, cache = decoder_of(model), self.kv_cache_bytes(model, context_length)
        if model.block_tokens:
            each = model.whole_blocks(context_length)
            others = paged_arenas_bytes(decoder, before * each) if before else 0
            return paged_arenas_bytes(decoder, (before + 1) * each) - others - cache
        total = worst_arenas_bytes(decoder, context_length, before + 1)
        others = worst_arenas_bytes(decoder, context_length, before) if before else 0
        return max(0, total - others - cache)

    def activation_bytes(self, model: ModelMemory, context_length: int, prompt_tokens: int) -> int:
        """What the two arenas take beyond the cache, fp16."""
        taken = arenas_bytes(decoder_of(model), context_length, prompt_tokens)
        return max(0, taken - self.kv_cache_bytes(model, context_length))


def decoder_of(model: ModelMemory) -> Decoder:
    """The sizes that CUDA's arenas depend on."""
    shape = model.spec.shape
    return Decoder(
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        attention=shape.num_attention_heads * shape.head_size,
        qkv=model.qkv_size,
        inner=model.intermediate_size,
        heads=shape.num_attention_heads,
        vocab=shape.vocab_size,
        cache_width=shape.num_key_value_heads * shape.head_size,
        element_bytes=model.element_bytes,
        prunes_logits=not model.logits_for_every_token,
        chunk_size=model.chunk_size or 0,
    )


PROVIDER = Cuda()
