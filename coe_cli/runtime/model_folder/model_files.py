"""The files of a model's folder that ONNX Runtime GenAI reads: do they lie in it, and which are they by now?"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Final

from coe_cli.core.models.genai_config import GENAI_CONFIG, MAX_CONFIG_BYTES, GenaiConfig, parse_config
from coe_cli.core.models.source_uri import check_member
from coe_cli.errors import ModelDamaged, UsageError, damaged, first_line
from coe_cli.runtime.model_folder.graph_files import graph_needs
from coe_cli.runtime.regular_file import lies_in, read_regular, read_text

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer_module.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
MAX_TOKENIZER_BYTES: Final = 256 * 2**20
_NAMING: Final = ("tokenizer_config.json", "tokenizer_module.json")
"""Files in which ``tiktoken_file`` names another one."""
_MAX_FILES: Final = 10_000


def read_config(name: str, folder: Path) -> GenaiConfig:
    """The configuration of model ``name`` in ``folder``.

    Raises:
        ModelDamaged: it is missing, unreadable or no JSON, or asks for something that is not allowed; the message names it.
    """
    path = folder / GENAI_CONFIG
    try:
        raw = read_regular(path, MAX_CONFIG_BYTES)
    except FileNotFoundError:
        raise damaged(name, f"{path} is missing") from None
    except OSError as error:
        raise damaged(name, f"{path} cannot be read: {error.strerror or error}") from None
    return parse_config(name, raw, str(path))


def check_safe(name: str, folder: Path, config: GenaiConfig | None = None) -> None:
    """Check that a model reads nothing outside of its folder: graphs, their data, tokenizer; links are resolved.

    Raises:
        ModelDamaged: it does, or asks OGA for something that is not allowed; nothing of it was run.
    """
    config = config or read_config(name, folder)
    inside = [GENAI_CONFIG, *config.files, *tokenizer_files(name, folder)]
    for file in config.files:
        if not file.endswith(".onnx") or not (folder / file).exists():
            continue
        try:
            data = graph_needs(folder / file, all_nodes=False).files
        except (OSError, ValueError) as error:
            raise damaged(name, str(error)) from None
        below = file.rpartition("/")[0]
        for location in data:
            _check_name(name, location, f"{file} reads its weights from")
            inside.append(f"{below}/{location}" if below else location)
    for file in inside:
        path = folder / file
        if not lies_in(path, folder):
            raise _refused(name, f"{path} is a link to something outside of the model's folder")
        if path.exists() and not path.is_file():
            raise _refused(name, f"{path} is not a regular file")


def tokenizer_files(name: str, folder: Path) -> list[str]:
    """The tokenizer's files that are there, a ``tiktoken_file`` that they name among them.

    Raises:
        ModelDamaged: they name a file outside of the folder, or cannot be read.
    """
    found = [file for file in TOKENIZER_FILES if (folder / file).exists()]
    for file in _NAMING:
        if file not in found:
            continue
        try:
            named = json.loads(read_text(folder / file, MAX_TOKENIZER_BYTES)).get("tiktoken_file")
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise damaged(name, f"{folder / file} cannot be read: {first_line(error)}") from None
        if named:
            found.append(_check_name(name, str(named), f"{file} reads its vocabulary from"))
    return found


def model_stamp(folder: Path) -> str:
    """A digest of path, inode, size and times of every file of a model: another one when anything was changed or replaced.

    Costs a look at each file and reads none. Hidden files are coe's or a hub's own and do not count. Empty where the
    folder cannot be looked through.
    """
    try:
        return _stamp(folder)
    except OSError:
        return ""


def _stamp(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    left, seen = [folder], 0
    while left:
        place = left.pop()
        paths = sorted(path for path in place.iterdir() if not path.name.startswith("."))
        for path in paths[: _MAX_FILES - seen]:
            info = path.stat() if path.exists() else path.lstat()
            if stat.S_ISDIR(info.st_mode):
                if not path.is_symlink():
                    left.append(path)
                continue
            facts = (os.fspath(path), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
            digest.update(repr(facts).encode("utf-8", "surrogateescape"))
        seen += len(paths)
    return digest.hexdigest()


def _check_name(name: str, file: str, what: str) -> str:
    try:
        return check_member(file)
    except UsageError:
        raise _refused(name, f"{what} {file[:80]!r}, outside of the model's folder") from None


def _refused(name: str, problem: str) -> ModelDamaged:
    return ModelDamaged(
        f"model `{name}` is refused: {problem}", "Nothing of it was run. Use another build of the model."
    )
