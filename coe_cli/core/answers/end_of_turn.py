"""Which tokens end an answer: the union of what a model's configuration, its tokenizer and its chat template say.

Published models disagree with themselves: a ``genai_config.json`` that knows another end than the chat template lets the model
write on, as the user, until its tokens run out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

END_OF_TURN: Final = frozenset(
    (
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|eot|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|end|>",
        "<|return|>",
        "<|END_OF_TURN_TOKEN|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "[|endofturn|]",
        "<EOT>",
        "<|EOT|>",
        "<｜end▁of▁sentence｜>",
        "_<EOT>",
        "</s>",
    )
)
"""Texts of tokens that end an answer in whatever vocabulary they are (llama.cpp, src/llama-vocab.cpp, special_eog_ids)."""

_HARMONY: Final = {"<|return|>", "<|channel|>"}
"""Where these are tokens, ``<|end|>`` ends one message of a turn and the turn goes on (gpt-oss)."""


class EndTokens(Struct, frozen=True):
    """``ids`` end an answer, the configuration's own first; ``missing`` are those that it does not name, id → who names it."""

    ids: tuple[int, ...]
    missing: dict[int, str]

    def note(self, configured: Any) -> str:
        """What is to be said of ``missing`` where the configuration names ``configured``; empty where nothing is."""
        if not self.missing:
            return ""
        named = ", ".join(f"{token} ({why})" for token, why in self.missing.items())
        listed = configured if isinstance(configured, list) else [configured]
        known = ", ".join(str(token) for token in listed if token is not None) or "nothing"
        return f"genai_config.json ends an answer at token {known}, and the model's other files at {named} too"


def token_ids(value: Any, vocab_size: int) -> list[int]:
    """The ids in a configuration's value: one, a list of them, or something else, which names none."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < vocab_size]


def end_texts(texts: Iterable[str]) -> set[str]:
    """Those control tokens of a vocabulary that end an answer by their text."""
    known = set(texts)
    ends = known & END_OF_TURN
    return ends - {"<|end|>"} if known >= _HARMONY else ends


def end_tokens(
    configured: Any, generation: Any, eos_text: str, template: str, control_tokens: Mapping[str, int], vocab_size: int
) -> EndTokens:
    """All ids that end an answer.

    Args:
        configured: ``eos_token_id`` of genai_config.json.
        generation: ``eos_token_id`` of generation_config.json; None where there is none.
        eos_text: ``eos_token`` of the tokenizer; empty where it has none.
        template: the chat template's source; empty where there is none.
        control_tokens: text → id of the tokenizer's added tokens.
    """
    own = token_ids(configured, vocab_size)
    found = [(token, "generation_config.json") for token in token_ids(generation, vocab_size)]
    if eos_text in control_tokens:
        found.append((control_tokens[eos_text], f"the tokenizer's {eos_text}"))
    found += [
        (control_tokens[text], f"the chat template's {text}")
        for text in sorted(end_texts(control_tokens))
        if text in template
    ]
    missing: dict[int, str] = {}
    for token, why in found:
        if token not in own and 0 <= token < vocab_size:
            missing.setdefault(token, why)
    return EndTokens((*dict.fromkeys(own), *missing), missing)
