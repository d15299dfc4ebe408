"""The tokenizer of an imported model, as Hugging Face files, and its special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from coe_cli.core.importing.genai_config import SpecialTokens, gguf_special_tokens, hf_special_tokens
from coe_cli.core.importing.gguf_tokenizer import tokenizer_files
from coe_cli.errors import ModelDamaged, UsageError, first_line
from coe_cli.runtime.importing.source import ModelSource
from coe_cli.runtime.model_folder.model_files import MAX_TOKENIZER_BYTES
from coe_cli.runtime.regular_file import read_regular, read_text

_MAX_JSON_BYTES: Final = 32 * 2**20
_COPIED: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def write_tokenizer(source: ModelSource, folder: Path) -> SpecialTokens:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and the chat template into ``folder``.

    Raises:
        UsageError: a Hugging Face folder has no ``tokenizer.json``.
        ModelDamaged: the source's tokenizer cannot be used.
    """
    if source.kind == "gguf":
        _write_gguf_tokenizer(source, folder)
        special = gguf_special_tokens(source.metadata)
    else:
        for name in _COPIED:
            if (source.path / name).exists():
                (folder / name).write_bytes(_file_of(source.path, name))
        if not (folder / "tokenizer.json").is_file():
            raise UsageError(
                f"{source.path} has no tokenizer.json", "Fetch a build of the model that has one, or a GGUF file."
            )
        generation = _json(source.path / "generation_config.json")
        special = hf_special_tokens(source.metadata, generation, _tokenizer_ids(folder), source.decoder.vocab_size)
    _name_known_class(folder)
    return special


def _file_of(folder: Path, name: str) -> bytes:
    """A file of the source. Links are followed: the hub's own cache keeps its files beside such a folder.

    Raises:
        ModelDamaged: it is no regular file of a sensible size.
    """
    path = folder / name
    try:
        return read_regular(path, MAX_TOKENIZER_BYTES)
    except OSError as error:
        raise ModelDamaged(f"{path} cannot be read: {error.strerror or error}", "Fetch it again.") from None


def _write_gguf_tokenizer(source: ModelSource, folder: Path) -> None:
    from tokenizers import Tokenizer

    try:
        tokenizer, config = tokenizer_files(source.metadata, source.decoder.vocab_size)
        text = json.dumps(tokenizer, ensure_ascii=False)
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare ones
        raise ModelDamaged(
            f"{source.path} has a tokenizer that cannot be used: {first_line(error)}", "Use another build of the model."
        ) from None
    (folder / "tokenizer.json").write_text(text, encoding="utf-8", newline="\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8", newline="\n"
    )


def _tokenizer_ids(folder: Path) -> dict[str, int]:
    """``bos``, ``eos`` and ``pad`` of tokenizer_config.json as ids."""
    config = _json(folder / "tokenizer_config.json")
    try:
        tokenizer = json.loads(read_text(folder / "tokenizer.json", MAX_TOKENIZER_BYTES))
        ids = {str(token["content"]): int(token["id"]) for token in tokenizer.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelDamaged(f"{folder / 'tokenizer.json'} cannot be used: {error!r}", "Fetch it again.") from None
    found = {}
    for key in ("bos", "eos", "pad"):
        token = config.get(f"{key}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in ids:
            found[key] = ids[text]
    return found


def _name_known_class(folder: Path) -> None:
    """Name a tokenizer class that OGA 0.13.1 knows: it refuses transformers 5's ``TokenizersBackend``."""
    path = folder / "tokenizer_config.json"
    config = _json(path)
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    try:
        found = json.loads(read_text(path, _MAX_JSON_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDamaged(f"{path} cannot be used: {error!r}", "Fetch it again.") from None
    return found if isinstance(found, dict) else {}
