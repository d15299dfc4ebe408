"""DirectML: any graphics adapter on Windows; pools of powers of two; a generator takes tokens once (docs/memory.md)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from coe_cli.core.providers._dml_operators import operators
from coe_cli.core.providers.base import FLAG, Capabilities, ErrorMeaning, GraphRules, ProviderSpec
from coe_cli.core.units import power_of_two

if TYPE_CHECKING:
    from coe_cli.core.memory.footprint import ModelMemory

SMALLEST_BYTES: Final = 64 * 1024
"""The pool has buckets from 2**16 bytes up (onnxruntime's BucketizedBufferAllocator)."""

START_HINT: Final = "Update the graphics driver, or answer on the CPU: -p embedded."


class DirectML(ProviderSpec):
    name = "dml"
    slots_share_buffers = True
    label = "DirectML"
    rank = 10
    ort_name = "DmlExecutionProvider"
    oga_packages = ("onnxruntime-genai-directml", "onnxruntime-genai-winml")
    ort_packages = ("onnxruntime-directml", "onnxruntime-windowsml")
    extra = "directml"
    other_extras: Mapping[str, str] = {"onnxruntime-genai-winml": "winml"}
    platforms = ("win32",)
    expected_on = ("win32",)
    capabilities = Capabilities(can_continue=False, can_rewind=False)
    graph = GraphRules(
        "fp16",
        ("int4", "fp16"),
        norms_in_fp32=True,
        rotation_in_attention=False,
        quantized_embedding=False,
        matrix_bits=(4, 8),
        operators=operators(),
    )
    session: Mapping[str, str] = {"enable_graph_capture": "1"}
    config_options: Mapping[str, str] = {
        "luid": r"-?\d{1,10}:-?\d{1,10}",
        "device_index": r"\d{1,4}",
        "enable_graph_capture": FLAG,
    }
    session_entries = ("ep.dml.disable_graph_fusion", "ep.dml.enable_graph_capture", "ep.dml.enable_cpu_sync_spinning")
    errors = (
        ErrorMeaning("device_lost", r"887A0005|887A0006|887A0007|887A0020|DXGI_ERROR_DEVICE"),
        ErrorMeaning(
            "unavailable",
            r"887A0004|DXGI_ERROR_UNSUPPORTED",
            "the graphics adapter or its driver has not what DirectML needs (887A0004)",
            START_HINT,
        ),
        ErrorMeaning(
            "unavailable",
            r"887A0002|DXGI_ERROR_NOT_FOUND",
            "no graphics adapter with Direct3D 12 was found (887A0002)",
            f"`coe doctor` lists the adapters that COE_DEVICE can name. {START_HINT}",
        ),
        ErrorMeaning(
            "unavailable",
            r"887A0022|DXGI_ERROR_NOT_CURRENTLY_AVAILABLE",
            "the graphics adapter is not available now, as in a remote session (887A0022)",
            "Sit at the machine itself or close what holds the adapter, or answer on the CPU: -p embedded.",
        ),
        ErrorMeaning(
            "unavailable",
            r"887A002D|DXGI_ERROR_SDK_COMPONENT_MISSING",
            "a part of DirectX is missing (887A002D)",
            "Unset any DirectX debug layer or add Windows' optional feature Graphics Tools, or answer on the CPU:"
            " -p embedded.",
        ),
        ErrorMeaning(
            "unavailable",
            r"D3D12CreateDevice|D3D12\.dll|DirectML\.dll|DMLCreateDevice|Direct3D 12",
            "no Direct3D 12 device could be made",
            START_HINT,
        ),
    )

    def load_bytes(self, model: ModelMemory) -> int:
        """Weights are uploaded before rounding is switched on, so the files count as they are."""
        return model.spec.weights_bytes

    def kv_cache_bytes(self, model: ModelMemory, context_length: int) -> int:
        """Each layer's keys and values are a tensor of their own that is rounded up."""
        shape = model.spec.shape
        tensor = shape.num_key_value_heads * shape.head_size * model.element_bytes * context_length
        return 2 * shape.num_hidden_layers * rounded(tensor)

    def slot_activation_bytes(self, model: ModelMemory, context_length: int, before: int) -> int:
        """The first slot's buffers serve the others, since a worker runs one prompt or step at a time.

        A pool serves allocations of its own power of two alone (onnxruntime's BucketizedBufferAllocator), so what a prompt
        of half the length takes is no part of what the longest took, unless both round to the same.
        """
        return 0 if before else _pools_bytes(_Run.of(model, context_length), model.run_tokens(context_length))

    def activation_bytes(self, model: ModelMemory, context_length: int, prompt_tokens: int) -> int:
        """The temporary of the compiled graph and the logits, each rounded."""
        return sum(_Run.of(model, context_length).buffers(model.run_tokens(prompt_tokens)))


SCORE_BYTES: Final = 12
"""Bytes of the temporary for each attention score, of which each head has one for each prompt token and place of the cache:
three copies in fp32."""

MASK_BYTES: Final = 4
"""Bytes for each prompt token and place of the cache, whatever the number of heads."""


class _Run(Struct, frozen=True):
    """One run of a graph, which DirectML compiles into one operator with one temporary (docs/memory.md).

    ``fixed_bytes`` of it are there at any prompt: the matrices of one layer and of the head in fp16, and the keys or values
    of one layer for all heads in fp32. ``logits_bytes`` are of one token, in fp16.
    """

    fixed_bytes: int
    token_bytes: int
    logits_bytes: int
    every_token: bool

    @classmethod
    def of(cls, model: ModelMemory, context_length: int) -> _Run:
        shape = model.spec.shape
        heads, hidden, mlp = shape.num_attention_heads, shape.hidden_size, 3 * model.intermediate_size
        attention = heads * shape.head_size
        matrices = hidden * (mlp + model.qkv_size + attention + shape.vocab_size)
        quantized = model.graph is None or model.graph.quantized_bytes > 0
        return cls(
            fixed_bytes=2 * matrices * quantized + 4 * attention * context_length,
            token_bytes=2 * (mlp + 2 * hidden + model.qkv_size) + (SCORE_BYTES * heads + MASK_BYTES) * context_length,
            logits_bytes=2 * shape.vocab_size,
            every_token=model.logits_for_every_token,
        )

    def buffers(self, tokens: int) -> tuple[int, int, int]:
        """The temporary and the logits, in fp16 and in fp32, of a run of ``tokens``."""
        logits = self.logits_bytes * (tokens if self.every_token else 1)
        return rounded(self.fixed_bytes + tokens * self.token_bytes), rounded(logits), rounded(2 * logits)


def rounded(size: int) -> int:
    """What the pool takes for an allocation of ``size`` bytes: a power of two, at least 64 KiB."""
    return max(SMALLEST_BYTES, power_of_two(size)) if size > 0 else 0


@lru_cache(maxsize=256)
def _pools_bytes(run: _Run, tokens: int) -> int:
    """Kept, since solving for slots or a context asks for the same models a thousand times."""
    lengths = [run.buffers(tokens >> halved) for halved in range(tokens.bit_length())]
    return sum(sum(set(sizes)) for sizes in zip(*lengths, strict=True))


PROVIDER = DirectML()
