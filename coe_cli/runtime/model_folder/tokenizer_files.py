"""What a model's folder says of its tokenizer: chat template, special tokens, and a stamp that changes with the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coe_cli.runtime.regular_file import read_text

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_TOKENS = "special_tokens_map.json"
_TEMPLATE = "chat_template.jinja"
_TEMPLATE_JSON = "chat_template.json"
_GENAI_CONFIG = "genai_config.json"
_FILES = (TOKENIZER, _CONFIG, _TOKENS, _TEMPLATE, _TEMPLATE_JSON, _GENAI_CONFIG)
_MAX_BYTES = 32 * 2**20
"""More than any configuration; the tokenizer itself is read by its own library."""

Stamp = tuple[tuple[int, int, int, int] | None, ...]


def stamp(folder: Path) -> Stamp:
    """(inode, bytes, mtime, ctime) of each file that prompts are made with; None for one that is not there."""
    return tuple(_facts(folder / name) for name in _FILES)


def _facts(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def chat_template(folder: Path) -> str | None:
    """The text of the model's chat template, or None where it has none."""
    own = folder / _TEMPLATE
    try:
        if own.is_file() and own.stat().st_size <= _MAX_BYTES:
            return own.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    return next(
        (text for name in (_CONFIG, _TEMPLATE_JSON) if (text := _named(_json(folder / name).get("chat_template")))),
        None,
    )


def _named(template: Any) -> str | None:
    """The template itself, or of several with names the default one."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None


def special_tokens(folder: Path) -> dict[str, Any]:
    """``bos_token``, ``eos_token`` and their like → their text, as chat templates are given them."""
    found: dict[str, Any] = {"bos_token": "", "eos_token": "", "pad_token": "", "unk_token": ""}
    for name in (_TOKENS, _CONFIG):
        for key, value in _json(folder / name).items():
            if not key.endswith(("_token", "_tokens")):
                continue
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[key] = text
            elif isinstance(text, list):
                found[key] = [entry.get("content") if isinstance(entry, dict) else entry for entry in text]
    return found


def adds_bos(folder: Path) -> bool | None:
    """``add_bos_token`` of the tokenizer's configuration; None where it says nothing."""
    found = _json(folder / _CONFIG).get("add_bos_token")
    return found if isinstance(found, bool) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path, _MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
