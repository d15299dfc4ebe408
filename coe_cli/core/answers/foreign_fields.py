"""Fields of other programs' requests that coe has not: which values ask for nothing, which fields change no answer, what is refused.

OpenAI's, vLLM's, llama.cpp's, Ollama's and Anthropic's documented fields are named here, unless a request of coe's own has them. Of
any other field the name decides: one that sounds as if it chose tokens, bounded the answer or changed the prompt is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final


def _names(text: str) -> list[str]:
    return text.split()


_OFF: Final[tuple[Any, ...]] = (None, False, 0, "", [], {})
_REFUSED: Final[Mapping[str, tuple[Any, ...]]] = {
    # sampling
    **dict.fromkeys(
        _names(
            "min_p presence_penalty frequency_penalty dynatemp_range dry_multiplier xtc_probability mirostat min_keep logit_bias "
            "samplers bad_words allowed_token_ids use_beam_search logits_processors repetition_detection watermarking "
        ),
        _OFF,
    ),
    "typical_p": (*_OFF, 1),
    "tfs_z": (*_OFF, 1),
    "top_n_sigma": (*_OFF, -1),
    "repeat_last_n": (None, -1),
    "penalty_last_n": (None, -1),
    # where the answer begins and ends, and what is shown of it
    "n_predict": (None, -1, -2),
    "skip_special_tokens": (None, True),
    "truncate_prompt_tokens": (*_OFF, -1),
    "truncation": (*_OFF, "disabled"),
    "prompt_logprobs": (None,),
    "include_reasoning": (None, True),
    "parse_tool_calls": (None, True),
    "verbosity": (None, "medium"),
    "sse_ping_interval": (None, -1),
    **dict.fromkeys(
        _names(
            "include_stop_str_in_output t_max_predict_ms n_indent n_probs post_sampling_probs logprob_token_ids response_fields "
            "return_tokens return_token_ids return_tokens_as_token_ids return_prompt_text return_routed_experts "
        ),
        _OFF,
    ),
    # the prompt, and what is asked of others
    **dict.fromkeys(
        _names(
            "chat_template lora echo add_special_tokens cache_salt kv_transfer_params ec_transfer_params vllm_xargs "
            "mm_processor_kwargs media_io_kwargs web_search_options max_tool_calls functions function_call "
        ),
        _OFF,
    ),
}
"""Field → the values that ask for nothing: with any other one the answer would not be what was asked for."""

OF_REQUESTS: Final = frozenset(
    _names(
        "documents template context images audio background conversation priority mcp_servers container context_management "
        "output_config output_format dimensions think thinking reasoning reasoning_effort reasoning_format enable_thinking "
        "chat_template_kwargs "
    )
)
"""Fields that are refused where an API has them, and are a user's own columns in the rows of a batch."""

_TAKEN: Final = frozenset(
    _names(
        "length_penalty early_stopping spaces_between_special_tokens guided_decoding_backend encoding_format truncation_side "
        "dynatemp_exponent dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers xtc_threshold mirostat_tau "
        "mirostat_eta truncate penalize_nl penalize_newline n_keep n_discard num_keep cache_prompt n_cache_reuse id_slot shift "
        "num_ctx num_batch num_gpu main_gpu num_thread prediction prompt_cache_key prompt_cache_retention "
    )
)
"""Settings of what is refused by another field, or of speed and memory: whatever they say, the answer is the same."""

_WORKS_ON_ANSWERS: Final = re.compile(
    r"penalt|^min_|^max_|^top_|^dynatemp|temperature|sampl|mirostat|logit|logprob|bias|bad_words|banned|stop|eos|beam"
    r"|^best_of|^dry_|^xtc_|typical|tfs_z|epsilon|eta_cutoff|(^|_)tokens|n_predict|^seed|ngram|guid|grammar|schema|regex|choice"
    r"|structur|constrain|format|chat_template|prefix|suffix|^echo|lora|truncat|tools?$|tool_|function|thinking_"
)
"""Names of parameters that choose tokens, bound the answer or change the prompt, in whatever program's API."""


def unsupported(fields: Mapping[str, Any], known: Collection[str] = ()) -> tuple[str, str] | None:
    """The first of the ``fields``, the ``known`` ones aside, that would change an answer, and why it is refused; None: there is none."""
    penalties = (fields.get("repetition_penalty"), fields.get("repeat_penalty"))
    for name, value in fields.items():
        if name in known or name in _TAKEN:
            continue
        if name.endswith("_last_n") and all(penalty in (None, 1) for penalty in penalties):
            continue
        refused = name in _REFUSED or name in OF_REQUESTS or _WORKS_ON_ANSWERS.search(name) is not None
        if refused and value not in _REFUSED.get(name, _OFF):
            return name, "is not supported here and would change the answer; leave it out"
    return None
