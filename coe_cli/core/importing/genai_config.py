"""The ``genai_config.json`` of an imported model, and the token ids that end its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from coe_cli.core.answers.end_of_turn import end_texts, token_ids
from coe_cli.core.importing.decoder import Decoder
from coe_cli.core.importing.encodings import fitted
from coe_cli.core.providers import GraphRules, ProviderSpec

BLOCK_TOKENS: Final = 256
"""Tokens of a block of a paged cache: what PagedAttention's kernels take a multiple of."""
_BLOCKS, _ANSWERS_AT_ONCE = 128, 8
"""A paged cache where nobody says more; a worker is told its own (``runtime.worker.engine``)."""
PAGED_INPUTS: Final[dict[str, tuple[str, list[str | int]]]] = {
    "input_ids": ("INT64", ["num_tokens"]),
    "block_table": ("INT32", ["batch_size", "max_num_blocks"]),
    "cumulative_sequence_lengths": ("INT32", ["batch_size + 1"]),
    "past_sequence_lengths": ("INT32", ["batch_size"]),
    "attention_metadata": ("INT32", [3]),
    "logits_indices": ("INT32", ["num_logits"]),
}
"""Those of a paged graph beside its caches: ONNX's element type and shape of each."""


class SpecialTokens(Struct, frozen=True):
    """``eos`` are all ids that end an answer, the model's own first."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def gguf_special_tokens(metadata: Mapping[str, Any]) -> SpecialTokens:
    """The ids that a GGUF header names, and those of tokens that end an answer by their text."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    kinds = metadata.get("tokenizer.ggml.token_type") or []

    def named(key: str) -> list[int]:
        return token_ids(metadata.get(f"tokenizer.ggml.{key}_token_id"), len(tokens))

    ends = named("eos") + named("eot") + named("eom")
    control = {text: index for index, text in enumerate(tokens) if kinds[index : index + 1] in ([3], [4])}
    ends += sorted(control[text] for text in end_texts(control))
    return _special(named("bos"), ends, named("padding"))


def hf_special_tokens(
    config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer_ids: Mapping[str, int], vocab_size: int
) -> SpecialTokens:
    """The union of what ``config.json``, ``generation_config.json`` and the tokenizer (``eos`` → id) say."""

    def named(key: str) -> list[int]:
        own = [tokenizer_ids[key]] if key in tokenizer_ids else []
        field = f"{key}_token_id"
        return token_ids(generation.get(field), vocab_size) + token_ids(config.get(field), vocab_size) + own

    return _special(named("bos"), named("eos"), named("pad"))


def _special(bos: list[int], eos: Iterable[int], pad: list[int]) -> SpecialTokens:
    ends = tuple(dict.fromkeys(eos))
    return SpecialTokens(bos[0] if bos else None, ends, pad[0] if pad else None)


def genai_config(
    decoder: Decoder, provider: ProviderSpec, special: SpecialTokens, graph: str, rules: GraphRules | None = None
) -> dict[str, Any]:
    """The configuration that ONNX Runtime GenAI reads, as its model builder writes it; ``rules``: others than the provider's."""
    rules = fitted(rules or provider.graph, decoder)
    names = [*PAGED_INPUTS] if rules.paged_attention else ["input_ids", "attention_mask"]
    inputs = {name: name for name in names} | {
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if not rules.rotation_in_attention:
        inputs["position_ids"] = "position_ids"
    batching = {"block_size": BLOCK_TOKENS, "num_blocks": _BLOCKS, "max_batch_size": _ANSWERS_AT_ONCE}
    end = special.eos[0] if special.eos else 0
    return {
        "model": {
            "bos_token_id": special.bos if special.bos is not None else end,
            "context_length": decoder.context_length,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [{provider.name: dict(provider.session)}] if provider.on_card else [],
                },
                "filename": graph,
                "head_size": decoder.head_size,
                "hidden_size": decoder.hidden_size,
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": decoder.heads,
                "num_hidden_layers": decoder.layers,
                "num_key_value_heads": decoder.kv_heads,
            },
            "eos_token_id": end if len(special.eos) < 2 else list(special.eos),
            "pad_token_id": special.pad if special.pad is not None else end,
            "type": decoder.genai_type,
            "vocab_size": decoder.vocab_size,
        },
        "search": {
            "diversity_penalty": 0.0,
            "do_sample": False,
            "early_stopping": True,
            "length_penalty": 1.0,
            "max_length": decoder.context_length,
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    } | ({"engine": {"dynamic_batching": batching}} if rules.paged_attention else {})
