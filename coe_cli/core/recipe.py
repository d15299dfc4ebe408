"""How a model is converted for a provider: which weights get how many bits, how the graph is built, how it is run."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from coe_cli.core.profile import Provider
from coe_cli.core.providers import spec_of
from coe_cli.errors import UsageError

Precision = Literal["int4", "int8", "fp16"]
Method = Literal["symmetric", "asymmetric", "offset_corrected"]
Part = Literal["qkv", "o", "gate_up", "down", "head"]

SUPPORTED_ARCHITECTURES = ("llama", "qwen2")
"""Values of ``model_type`` (Hugging Face) and ``general.architecture`` (GGUF) that the converter takes. BioMistral's and
law-LLM's GGUF files call themselves llama; DeepSeek-R1-Distill-Qwen and Qwen2.5 are qwen2."""


class WeightFormat(Struct, frozen=True):
    """One matrix's format in MatMulNBits: bits a weight, weights a scale, and how scales and codes are found."""

    bits: Literal[4, 8]
    method: Method
    block_size: int = 32


class Recipe(Struct, frozen=True):
    """One way to convert a model.

    ``builder_precision`` and ``builder_options`` go to ``onnxruntime_genai.models.builder``. Where ``weights`` is set,
    the builder writes an fp32 graph and our own quantiser writes the weights; where it is empty, the builder quantises.
    ``accuracy_level`` 4 lets ONNX Runtime round the activations to 8 bits, block by block.
    """

    provider: Provider
    precision: Precision
    builder_precision: Literal["fp32", "fp16", "int4", "int8"]
    builder_options: dict[str, str] = {}
    weights: dict[Part, WeightFormat] = {}
    accuracy_level: int = 4


_COMMON = {"hf_token": "false", "prune_lm_head": "true"}
_HEAD = WeightFormat(8, "symmetric")
_INT4 = WeightFormat(4, "offset_corrected")
_INT8 = WeightFormat(8, "asymmetric")


def _body(weight_format: WeightFormat) -> dict[Part, WeightFormat]:
    return {
        "qkv": weight_format,
        "o": weight_format,
        "gate_up": weight_format,
        "down": weight_format,
        "head": _HEAD,
    }


_PACKED: dict[Precision, WeightFormat] = {"int4": _INT4, "int8": _INT8}
"""What our own quantiser writes, for providers in fp32."""


def recipe_for(provider: Provider, precision: Precision) -> Recipe:
    """The recipe in force for a provider and a precision.

    Raises:
        UsageError: there is none.
    """
    rules = spec_of(provider).graph
    if precision in rules.precisions:
        if rules.float_type == "fp32":
            return Recipe(provider, precision, "fp32", _COMMON, _body(_PACKED[precision]))
        own_table = {} if rules.quantized_embedding else {"shared_embeddings": "false"}
        return Recipe(provider, precision, precision, {**_COMMON, **own_table})
    raise UsageError(
        f"there is no {precision} recipe for provider `{provider}`",
        "Choose --precision int4; int8 is for the CPU, fp16 for GPUs.",
    )


def session_options(provider: Provider, cores: int) -> dict[str, Any]:
    """The overlay for ``model.decoder.session_options`` of ``genai_config.json`` that a worker should run with.

    ``cores`` is the number of physical cores that the worker may use. On the CPU the default thread count halves the speed.
    """
    if spec_of(provider).on_card:
        return {}
    return {"intra_op_num_threads": max(1, cores), "inter_op_num_threads": 1}


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON values, for the record that lies beside a converted model."""
    plain: dict[str, Any] = msgspec.to_builtins(recipe)
    return plain
