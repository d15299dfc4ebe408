"""DirectML: any graphics adapter on Windows; pools of powers of two; a generator takes tokens once (DESIGN §8)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from coe_cli.core.providers._dml_operators import operators
from coe_cli.core.providers.base import FLAG, Capabilities, ErrorMeaning, GraphRules, ProviderSpec
from coe_cli.core.units import power_of_two

if TYPE_CHECKING:
    from coe_cli.core.memory.footprint import ModelMemory

SMALLEST_BYTES: Final = 64 * 1024
"""The pool has buckets from 2**16 bytes up (onnxruntime's BucketizedBufferAllocator)."""

_START = "Update the graphics driver, or answer on the CPU: -p embedded."


class DirectML(ProviderSpec):
    name = "dml"
    label = "DirectML"
    rank = 10
    ort_name = "DmlExecutionProvider"
    oga_packages = ("onnxruntime-genai-directml",)
    ort_packages = ("onnxruntime-directml",)
    extra = "directml"
    platforms = ("win32",)
    expected_on = ("win32",)
    capabilities = Capabilities(can_continue=False, can_rewind=False, graph_capture=True, memory_returned_by="model")
    graph = GraphRules(
        "fp16",
        ("int4", "fp16"),
        norms_in_fp32=True,
        rotation_in_attention=False,
        quantized_embedding=False,
        shares_cache=True,
        matrix_bits=(4, 8),
        operators=operators(),
    )
    session: Mapping[str, str] = {"enable_graph_capture": "1"}
    config_options: Mapping[str, str] = {
        "luid": r"-?\d{1,10}:-?\d{1,10}",
        "device_index": r"\d{1,4}",
        "enable_graph_capture": FLAG,
    }
    errors = (
        ErrorMeaning("device_lost", r"887A0005|887A0006|887A0007|887A0020|DXGI_ERROR_DEVICE"),
        ErrorMeaning(
            "unavailable",
            r"887A0004|DXGI_ERROR_UNSUPPORTED",
            "the graphics adapter or its driver has not what DirectML needs (887A0004)",
            _START,
        ),
        ErrorMeaning(
            "unavailable",
            r"887A0002|DXGI_ERROR_NOT_FOUND",
            "no graphics adapter with Direct3D 12 was found (887A0002)",
            f"`coe doctor` lists the adapters that COE_DEVICE can name. {_START}",
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
            _START,
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
        """Each slot is counted alone, with pools for prompts of every length, which is an upper bound.

        A pool serves allocations of its own power of two alone (onnxruntime's BucketizedBufferAllocator), so what a prompt
        of half the length takes is no part of what the longest took.
        """
        return _pools_bytes(*_widths(model), model.run_tokens(context_length))

    def activation_bytes(self, model: ModelMemory, context_length: int, prompt_tokens: int) -> int:
        """fp16: the tensors that are alive at once in the MLP and the logits, each rounded."""
        return _run_bytes(*_widths(model), model.run_tokens(prompt_tokens))


def rounded(size: int) -> int:
    """What the pool takes for an allocation of ``size`` bytes: a power of two, at least 64 KiB."""
    return max(SMALLEST_BYTES, power_of_two(size)) if size > 0 else 0


def _widths(model: ModelMemory) -> tuple[tuple[int, ...], int, bool]:
    """Elements a token of the tensors that are alive at once, of the logits, and whether each token has logits."""
    shape = model.spec.shape
    widths = (*[model.intermediate_size] * 3, *[shape.hidden_size] * 2, model.qkv_size)
    return widths, shape.vocab_size, model.logits_for_every_token


def _run_bytes(widths: tuple[int, ...], vocab_size: int, every_token: bool, tokens: int) -> int:
    logits = rounded(2 * (tokens if every_token else 1) * vocab_size)
    return sum(rounded(2 * tokens * width) for width in widths) + logits


@lru_cache(maxsize=256)
def _pools_bytes(widths: tuple[int, ...], vocab_size: int, every_token: bool, tokens: int) -> int:
    """Kept, since solving for slots or a context asks for the same models a thousand times."""
    return sum(_run_bytes(widths, vocab_size, every_token, tokens >> halved) for halved in range(tokens.bit_length()))


PROVIDER = DirectML()
