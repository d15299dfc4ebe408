"""Is a model folder whole? Sizes are checked before every load; digests when a model is installed or verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coe_cli.core.models.genai_config import GENAI_CONFIG
from coe_cli.errors import damaged
from coe_cli.runtime.atomic_write import atomic_write
from coe_cli.runtime.model_folder.graph_files import external_data_sizes
from coe_cli.runtime.model_folder.model_files import read_config
from coe_cli.runtime.regular_file import read_text

MANIFEST = "coe_manifest.json"
MANIFEST_VERSION = 1
_MAX_MANIFEST_BYTES = 16 * 2**20
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")


def write_manifest(folder: Path, origin: dict[str, Any]) -> None:
    """Record name, size and SHA-256 of every file of ``folder``, and where the model came from."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    content = {"manifest_version": MANIFEST_VERSION, "origin": origin, "files": files}
    with atomic_write(folder / MANIFEST) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of ``folder``, or None when there is none or it cannot be read."""
    try:
        content = json.loads(read_text(folder / MANIFEST, _MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None


def check_files(name: str, folder: Path) -> None:
    """Check that every file is there with its size; reads no weights.

    With a manifest the recorded sizes count; without one the sizes that the ONNX graphs ask of their external data.

    Raises:
        ModelDamaged: a file is missing, truncated or unreadable.
    """
    manifest = read_manifest(folder)
    try:
        expected = (
            [(file, int(facts["size"]), True) for file, facts in manifest["files"].items()]
            if manifest
            else [(file, size, False) for file, size in _needed_files(name, folder)]
        )
        for file, size, exact in expected:
            path = folder / file
            if not path.is_file():
                raise damaged(name, f"{path} is {'not a regular file' if path.exists() else 'missing'}")
            actual = path.stat().st_size
            if actual < size or (exact and actual != size):
                raise damaged(name, f"{path} has {actual} bytes instead of {size}")
            with path.open("rb"):
                pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(name, f"{folder} cannot be read: {error}") from None


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _needed_files(name: str, folder: Path) -> Iterable[tuple[str, int]]:
    """Files a model without a manifest cannot do without, each with the least size it may have in bytes."""
    yield GENAI_CONFIG, 2
    if not any((folder / file).is_file() for file in _TOKENIZER):
        yield _TOKENIZER[0], 2
    for graph in read_config(name, folder).files or ("model.onnx",):
        yield graph, 1
        if graph.endswith(".onnx") and (folder / graph).is_file():
            below = graph.rpartition("/")[0]
            for location, size in external_data_sizes(folder / graph).items():
                yield (f"{below}/{location}" if below else location), size
