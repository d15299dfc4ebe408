"""The tokens that end a model's answers, read from all files of its folder that name some."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, structs

from coe_cli.core.answers.end_of_turn import EndTokens, end_tokens
from coe_cli.core.answers.token_bytes import AddedTokens
from coe_cli.core.findings import Finding, ok, warning
from coe_cli.core.models.genai_config import GENAI_CONFIG, GenaiConfig
from coe_cli.runtime.model_folder.model_files import MAX_TOKENIZER_BYTES
from coe_cli.runtime.model_folder.tokenizer_files import TOKENIZER, chat_template, special_tokens
from coe_cli.runtime.regular_file import read_regular

_GENERATION: Final = "generation_config.json"
_MAX_IDS: Final = 256


class _Generation(Struct):
    eos_token_id: int | list[int] | None = None


_Content = TypeVar("_Content", AddedTokens, _Generation)


def model_ends(folder: Path, model: Mapping[str, Any]) -> EndTokens:
    """What ends an answer of the model in ``folder``, of which ``model`` is that section of its configuration.

    A file that is missing or cannot be read names nothing.
    """
    tokenizer = _read(folder / TOKENIZER, AddedTokens)
    generation = _read(folder / _GENERATION, _Generation)
    return end_tokens(
        model.get("eos_token_id"),
        generation.eos_token_id,
        str(special_tokens(folder)["eos_token"]),
        chat_template(folder) or "",
        {token.content: token.id for token in tokenizer.added_tokens},
        model.get("vocab_size", 0),
    )


def with_ends(folder: Path, config: GenaiConfig) -> GenaiConfig:
    """``config`` with every end of an answer for OGA to stop at."""
    ends = model_ends(folder, config.content["model"])
    if not ends.missing or len(ends.ids) > _MAX_IDS:
        return config
    model = config.content["model"] | {"eos_token_id": list(ends.ids)}
    return structs.replace(config, content=config.content | {"model": model})


def end_finding(folder: Path, config: GenaiConfig) -> Finding:
    """Whether the configuration names every token that ends an answer."""
    configured = config.content["model"].get("eos_token_id")
    ends = model_ends(folder, config.content["model"])
    if note := ends.note(configured):
        return warning("end of turn", note, "Nothing needs to be done: coe stops at all of them.")
    if not ends.ids:
        return warning("end of turn", "no file of the model names one", "Its answers end at their length only.")
    return ok("end of turn", f"{GENAI_CONFIG} names what the tokenizer and the chat template do")


def _read(path: Path, kind: type[_Content]) -> _Content:
    try:
        return msgspec.json.decode(read_regular(path, MAX_TOKENIZER_BYTES).removeprefix(b"\xef\xbb\xbf"), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return kind()
