"""What models there are: the catalog's and those on disk, with their cost, and which are the same weights twice."""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from pathlib import Path

from msgspec import Struct

from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec, spec_from_catalog
from coe_cli.core.providers import runs_on, spec_of
from coe_cli.errors import CoeError
from coe_cli.runtime.model_folder.on_disk import models_on_disk, spec_from_folder
from coe_cli.runtime.store.integrity import check_files, read_manifest
from coe_cli.runtime.store.older_recipe import older_recipe

_SAMPLE_BYTES = 65_536


class ModelRow(Struct, frozen=True):
    """One model. ``problem`` says what is wrong with its folder, ``hint`` what to do; figures that are then unknown are None."""

    name: str
    on_disk: bool
    size_mb: float | None
    context_length: int | None
    provider: str | None
    experts: list[str]
    kv_bytes_per_token: int | None
    duplicate_of: list[str]
    default: bool
    problem: str | None
    hint: str | None
    runs_on: list[str]


def list_models(catalog: Catalog, models_dir: Path) -> list[ModelRow]:
    """All models by name: first those on disk."""
    found = models_on_disk(models_dir)
    duplicates = duplicate_weights(found)
    rows = [_row(name, catalog, found.get(name), duplicates) for name in sorted({*catalog.models, *found})]
    return sorted(rows, key=lambda row: (not row.on_disk, row.name.lower()))


def duplicates_of(name: str, models_dir: Path) -> list[str]:
    """Other models on disk with the same weights as ``name``."""
    return all_duplicates(models_dir).get(name, [])


def all_duplicates(models_dir: Path) -> dict[str, list[str]]:
    """Model → other models on disk with the same weights, for those that have any."""
    return duplicate_weights(models_on_disk(models_dir))


def _row(name: str, catalog: Catalog, folder: Path | None, duplicates: dict[str, list[str]]) -> ModelRow:
    spec: ModelSpec | None = None
    failure: tuple[str, str] | None = None
    try:
        if folder is None:
            spec = spec_from_catalog(name, catalog.models[name])
        else:
            spec = spec_from_folder(name, folder)
            check_files(name, folder)
            if older := older_recipe(name, folder):
                failure = (older.message, older.fix)
    except CoeError as error:
        failure = (error.message, error.hint)
    return ModelRow(
        name=name,
        on_disk=folder is not None,
        size_mb=round(spec.weights_bytes / BYTES_PER_MB, 1) if spec else None,
        context_length=spec.context_length if spec else None,
        provider=spec.provider if spec else None,
        experts=catalog.experts_of(name),
        kv_bytes_per_token=spec.kv_bytes_per_token(spec_of(spec.provider).graph.cache_element_bytes) if spec else None,
        duplicate_of=duplicates.get(name, []),
        default=name == catalog.default_model,
        problem=failure[0] if failure else None,
        hint=failure[1] if failure else None,
        runs_on=runs_on(spec.provider) if spec else [],
    )


def duplicate_weights(found: dict[str, Path]) -> dict[str, list[str]]:
    """Model → other models with the same weights: by size, then by samples, and by digests where both are recorded."""
    by_size: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, folder in found.items():
        with contextlib.suppress(OSError):  # it was removed meanwhile
            if sizes := tuple(sorted(path.stat().st_size for path in _weight_files(folder))):
                by_size[sizes].append(name)
    same: dict[str, list[str]] = {}
    for names in by_size.values():
        if len(names) < 2:
            continue
        by_content: dict[str, list[str]] = defaultdict(list)
        for name in names:
            with contextlib.suppress(OSError):
                by_content[_fingerprint(found[name])].append(name)
        for group in by_content.values():
            digests = {name: _recorded_digests(found[name]) for name in group}
            for name in group:
                others = [other for other in group if other != name and None in (digests[name], digests[other])]
                others += [other for other in group if other != name and digests[name] == digests[other] is not None]
                if others:
                    same[name] = sorted(others)
    return same


def _recorded_digests(folder: Path) -> list[str] | None:
    """The SHA-256 of the weight files as the manifest has them, or None where it does not have them all."""
    manifest = read_manifest(folder)
    recorded = [(manifest or {"files": {}})["files"].get(path.name) for path in _weight_files(folder)]
    digests = [facts.get("sha256") if isinstance(facts, dict) else None for facts in recorded]
    return None if None in digests else sorted(str(digest) for digest in digests)


def _fingerprint(folder: Path) -> str:
    """A digest of 16 blocks spread over each weight file: it tells different weights of one size apart at no cost."""
    digest = hashlib.sha256()
    for path in sorted(_weight_files(folder), key=lambda p: p.stat().st_size):
        size = path.stat().st_size
        with path.open("rb") as file:
            for part in range(16):
                file.seek(size * part // 16)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """The external data of the graph; the graph itself where there is none, since its weights are then in it."""
    files = [path for path in folder.iterdir() if path.is_file() and ".onnx" in path.name]
    return [path for path in files if path.suffix != ".onnx"] or files
