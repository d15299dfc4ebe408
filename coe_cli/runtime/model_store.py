"""The models folder: find a whole model, or install one so that nothing half-made is ever seen under its name."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coe_cli.core.catalog import Catalog, ModelEntry
from coe_cli.core.model_name import check_name
from coe_cli.core.model_spec import BYTES_PER_MB, ModelSpec, models_on_disk, spec_from_folder
from coe_cli.errors import DoesNotFit, ModelDamaged, ModelMissing
from coe_cli.runtime.integrity import check_files, write_manifest
from coe_cli.runtime.progress import OnProgress, Step
from coe_cli.runtime.sources import fetch

_FP16_COPIES_OF_GGUF = 5
"""Converting needs the source, its weights as fp16 and the result side by side: about five times a 4-bit file."""


class DiskFull(DoesNotFit):
    """The disk has no room for the model."""

    code = "disk_full"


def open_model(name: str, folder: Path) -> ModelSpec:
    """The spec of a model on disk whose files are all there.

    Raises:
        ModelDamaged: a file is missing, truncated or unreadable.
    """
    spec = spec_from_folder(name, folder)
    check_files(name, folder)
    return spec


def folder_of(name: str, catalog: Catalog, models_dir: Path) -> Path:
    """The folder of a model that is on disk.

    Raises:
        UsageError: not a name.
        ModelMissing: it is not there.
    """
    check_name(name)
    folder = models_dir / name
    if folder.is_dir():
        return folder
    if name in catalog.models:
        raise ModelMissing(f"model `{name}` is not on disk", f"Fetch it: coe models pull {name}")
    raise catalog.unknown_model(name, list(models_on_disk(models_dir)))


def install(
    name: str, catalog: Catalog, models_dir: Path, on_progress: OnProgress, *, force: bool = False
) -> ModelSpec:
    """Fetch, convert where needed, check and put in place the catalog's model ``name``.

    Two installs of one model at once give one model: the second waits and finds it done. The folder appears under its
    name by a rename when it is complete; whatever interrupts it leaves nothing behind under that name.

    Raises:
        ModelMissing: unknown name, no source reachable, or a folder that cannot be written.
        DiskFull: too little room.
    """
    entry = catalog.models.get(name)
    if entry is None:
        raise catalog.unknown_model(name, list(models_on_disk(models_dir)))
    target = models_dir / name
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with model_lock(models_dir, name, on_progress):
            if target.exists() and not force:
                return open_model(name, target)
            _check_room(name, entry, models_dir)
            staging = models_dir / f".partial-{name}"
            try:
                _build(name, entry, staging, on_progress)
                if target.exists():
                    shutil.rmtree(target)
                staging_result = staging / "model"
                staging_result.rename(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return open_model(name, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"the disk of {models_dir} is full",
                "Free some space, or set COE_MODELS_DIR to a folder on a larger disk.",
            ) from error
        raise ModelMissing(
            f"model `{name}` cannot be written to {models_dir}: {error.strerror or error}",
            "Make the folder writable, or set COE_MODELS_DIR to another one.",
        ) from error


def _build(name: str, entry: ModelEntry, staging: Path, on_progress: OnProgress) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    result = staging / "model"
    arrived, source = fetch(name, entry.sources, staging / "download", on_progress)
    if entry.format == "gguf":
        from coe_cli.runtime.convert import convert

        result.mkdir()
        convert(arrived, result, provider=entry.provider, precision="int4", on_progress=on_progress)
    else:
        arrived.rename(result)
    on_progress(Step("Checking", 0, None))
    spec = spec_from_folder(name, result)
    if spec.shape != entry.shape:
        raise ModelDamaged(
            f"model `{name}` from {source.uri} has another shape than the catalog says",
            "Report it, with `coe --version`.",
        )
    write_manifest(result, {"uri": source.uri, "sha256": source.sha256, "licence": entry.licence})
    check_files(name, result)


def _check_room(name: str, entry: ModelEntry, models_dir: Path) -> None:
    sizes = [source.size_mb for source in entry.sources if source.size_mb]
    factor = _FP16_COPIES_OF_GGUF if entry.format == "gguf" else 1.05
    needed_mb = max(sizes, default=entry.weights_mb) * factor
    free_mb = shutil.disk_usage(models_dir).free / BYTES_PER_MB
    if free_mb < needed_mb:
        raise DiskFull(
            f"installing `{name}` needs {needed_mb:.0f} MB and the disk of {models_dir} has {free_mb:.0f} MB free",
            "Free some space, or set COE_MODELS_DIR to a folder on a larger disk.",
        )


@contextmanager
def model_lock(models_dir: Path, name: str, on_progress: OnProgress) -> Iterator[None]:
    """Hold the install lock of one model; the system frees it if the process dies."""
    import filelock

    lock = filelock.FileLock(models_dir / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        on_progress(Step("Waiting for another coe that fetches this model", 0, None))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
        if os.name == "nt":
            (models_dir / f".{name}.lock").unlink(missing_ok=True)
