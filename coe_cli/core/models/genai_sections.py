"""The allow-list of ``genai_config.json`` by section: which keys there are, and what each may be.

A key that is not listed is dropped: OGA would refuse the file for it. Keys and types are those of OGA's ``src/config.cpp``,
0.13.1 to 0.18.
"""

from __future__ import annotations

from typing import Any, Final

from coe_cli.core.models.genai_options import RUN_OPTIONS, SESSION_OPTIONS
from coe_cli.core.models.genai_rules import (
    INT32,
    Refused,
    Rule,
    Walk,
    boolean,
    either,
    file_in_folder,
    integer,
    join,
    list_of,
    matching,
    named,
    number,
    section,
    text,
)

_MAX_STAGES: Final = 64
_MAX_DEPTH: Final = 64
_COUNT = integer(0)
_TOKEN = integer(-1)
FORBIDDEN: Final = {
    "custom_ops_library": "would load native code",
    "enable_profiling": "would write files",
    "tokenizer_dir": "would read files elsewhere",
    "shared_initializers": "would read files past ONNX Runtime's checks",
}
"""Refused by name wherever they stand, and why."""

_FILE_KEYS: Final = {"filename": ".onnx", "config_filename": ".json", "adapter_filename": ".onnx_adapter"}
"""Keys whose value names a file in the model's folder, and how it ends: ``.ort`` files, for one, hide their data files."""


_NAMES = named(text, 256)
_STAGE: dict[str, Rule] = {
    "filename": file_in_folder(_FILE_KEYS["filename"]),
    "session_options": SESSION_OPTIONS,
    "run_options": RUN_OPTIONS,
    "inputs": either(list, list_of(text), _NAMES),
    "outputs": either(list, list_of(text), _NAMES),
    "output_names_forwarder": named(text, 4096),
    "reset_session_idx": integer(-1, _MAX_STAGES),
    **dict.fromkeys(
        ("run_on_prompt", "run_on_token_gen", "is_lm_head", "inherit_session_options", "run_on_cpu"), boolean
    ),
}
_STAGES = named(section(_STAGE))
_COMPONENT = section(
    {
        **_STAGE,
        "pipeline": either(list, list_of(_STAGES, _MAX_STAGES), _STAGES),
        "config_filename": file_in_folder(_FILE_KEYS["config_filename"]),
        "adapter_filename": file_in_folder(_FILE_KEYS["adapter_filename"]),
        "layer_types": list_of(text),
        "main_hidden_states": text,
        "sliding_window": section(
            {
                "window_size": _COUNT,
                "pad_value": integer(-INT32),
                "alignment": matching(r"left|right"),
                "slide_key_value_cache": boolean,
                "slide_inputs": boolean,
                "layers": list_of(_COUNT),
                "cache_slack": _COUNT,
            }
        ),
        **dict.fromkeys(("num_attention_heads", "num_hidden_layers", "num_key_value_heads"), integer(1, 65_536)),
        **dict.fromkeys(("hidden_size", "head_size"), integer(1, 2**24)),
        **dict.fromkeys(
            (
                "conv_cache_size",
                "spatial_merge_size",
                "patch_size",
                "num_visual_tokens",
                "window_size",
                "silence_duration_ms",
                "prefix_padding_ms",
            ),
            _COUNT,
        ),
        "tokens_per_second": number(0, 1e6),
        "threshold": number(0, 1),
    }
)
_COMPONENTS = ("decoder", "draft", "encoder", "embedding", "vision", "speech", "joiner", "vad", "mtp")

_MODEL = section(
    {
        "type": text,
        **dict.fromkeys(_COMPONENTS, _COMPONENT),
        "vocab_size": integer(1, 2**24),
        "context_length": integer(1, 2**28),
        "eos_token_id": either(list, list_of(_TOKEN, 256), _TOKEN),
        **dict.fromkeys(
            (
                "pad_token_id",
                "bos_token_id",
                "sep_token_id",
                "decoder_start_token_id",
                "image_token_id",
                "audio_token_id",
                "boa_token_id",
                "video_token_id",
                "vision_start_token_id",
                "bot_token_id",
                "eot_token_id",
                "bor_token_id",
                "eor_token_id",
                "blank_id",
            ),
            _TOKEN,
        ),
        **dict.fromkeys(
            (
                "num_mels",
                "fft_size",
                "hop_length",
                "win_length",
                "subsampling_factor",
                "left_context",
                "conv_context",
                "pre_encode_cache_size",
                "sample_rate",
                "chunk_samples",
                "max_symbols_per_step",
                "left_context_samples",
                "right_context_samples",
            ),
            _COUNT,
        ),
        **dict.fromkeys(("preemph", "log_eps", "norm_eps"), number(-1e9, 1e9)),
        "tdt_durations": list_of(_COUNT, 64),
    }
)
_SEARCH = section(
    {
        "num_beams": integer(1, 1),
        "num_return_sequences": integer(1, 1),
        "batch_size": integer(1, 1),
        **dict.fromkeys(("do_sample", "early_stopping", "past_present_share_buffer"), boolean),
        **dict.fromkeys(("min_length", "max_length", "top_k", "no_repeat_ngram_size", "chunk_size"), _COUNT),
        "random_seed": _TOKEN,
        "top_p": number(0, 1),
        "temperature": number(0, 1000),
        "repetition_penalty": number(1e-6, 1e6),
        **dict.fromkeys(("length_penalty", "diversity_penalty", "blank_penalty"), number(-1e6, 1e6)),
    }
)
_ENGINE = section(
    {
        "static_batching": section({"max_batch_size": integer(1, 4096)}),
        "dynamic_batching": section(
            {
                **dict.fromkeys(("block_size", "num_blocks", "max_batch_size", "max_scheduled_tokens"), integer(1)),
                "prefix_caching": boolean,
            }
        ),
    }
)
_SPECULATIVE = section(
    {
        "max_draft_tokens": integer(1, 16),
        "ngram_size": integer(0, 16),
        "min_adaptive_k": integer(0, 16),
        "ngram_chained_lookup": boolean,
        "cooldown": boolean,
    }
)
_ROOT = section({"model": _MODEL, "search": _SEARCH, "engine": _ENGINE, "speculative": _SPECULATIVE})


def check(written: dict[str, Any], walk: Walk) -> dict[str, Any]:
    """What of a whole configuration may reach OGA.

    Raises:
        Refused: it asks for something that is not allowed.
    """
    _refuse_forbidden(written)
    return dict(_ROOT(written, "", walk))


def with_files_below(content: Any, folder: str) -> Any:
    """A copy of a checked configuration with ``folder/`` before each name of a file."""
    if isinstance(content, list):
        return [with_files_below(item, folder) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        key: f"{folder}/{item}"
        if item and key in _FILE_KEYS and isinstance(item, str)
        else with_files_below(item, folder)
        for key, item in content.items()
    }


def _refuse_forbidden(written: dict[str, Any]) -> None:
    left: list[tuple[_Place | None, Any]] = [(None, written)]
    while left:
        place, value = left.pop()
        if place is not None and place.depth > _MAX_DEPTH:
            raise Refused(f"is nested more than {_MAX_DEPTH} levels deep")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if key in FORBIDDEN:
                raise Refused(f"has `{_Place(place, key).text}`, which {FORBIDDEN[key]}")
            if isinstance(item, dict | list):
                left.append((_Place(place, key), item))


class _Place:
    """Where a value stands; its text is made for a message only, since a megabyte of keys has a lot of places."""

    def __init__(self, above: _Place | None, key: str | int) -> None:
        self._above, self._key = above, key
        self.depth: int = 1 if above is None else above.depth + 1

    @property
    def text(self) -> str:
        where = "" if self._above is None else self._above.text
        return f"{where}[{self._key}]" if isinstance(self._key, int) else join(where, self._key)
