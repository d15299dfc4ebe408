"""Prompts whose token ids are the bytes of the last message: what the worker without a model reads."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from coe_cli.runtime.prompts.prompt_messages import Prepare, Prompt


class BytePrompts:
    """Made in this process, without a tokenizer."""

    async def prepared(self, request: Prepare) -> Prompt:
        return Prompt(list(request.messages[-1].content.encode()))


def write_byte_tokenizer(folder: Path) -> None:
    """Files with which the real prompt process makes the same prompts."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(rest)}
    tokenizer = Tokenizer(models.BPE({letters[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages[-1]['content'] }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")
