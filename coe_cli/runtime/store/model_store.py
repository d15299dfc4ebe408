"""The models folder: find a whole model, and change one so that nothing half-made is ever seen under its name."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.model_name import check_name
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.core.names import size_words
from coe_cli.errors import DiskFull, ModelMissing
from coe_cli.replacing import move, remove_folder
from coe_cli.runtime.atomic_write import is_full
from coe_cli.runtime.folders import free_mb, obstacle
from coe_cli.runtime.model_folder.model_files import check_safe, model_stamp
from coe_cli.runtime.model_folder.on_disk import models_on_disk, spec_from_folder
from coe_cli.runtime.progress import OnProgress, Step, size_of
from coe_cli.runtime.store.integrity import check_files, read_manifest


class InUse(ModelMissing):
    """Another program holds the folder that a finished model is to replace."""


_MORE_ROOM = "Free some space, or set COE_MODELS_DIR to a folder on a larger disk."


def open_model(name: str, folder: Path) -> ModelSpec:
    """The spec of a model on disk whose files are all there, with their stamp.

    Raises:
        ModelDamaged: a file is missing, truncated or unreadable, or the model asks for what is not allowed.
    """
    stamp = model_stamp(folder)
    spec = spec_from_folder(name, folder)
    check_files(name, folder)
    check_safe(name, folder)
    return replace(spec, stamp=stamp)


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


def check_room(name: str, models_dir: Path, needed_bytes: float) -> None:
    """Check the disk before something is written.

    Raises:
        DiskFull: it has less free than ``needed_bytes``.
    """
    room_mb, needed_mb = free_mb(models_dir), needed_bytes / BYTES_PER_MB
    if room_mb < needed_mb:
        raise DiskFull(
            f"installing {name} needs {size_words(needed_mb)} and the disk of {models_dir} has {size_words(room_mb)} free",
            _MORE_ROOM,
        )


@contextmanager
def writing(name: str, models_dir: Path, on_progress: OnProgress) -> Iterator[None]:
    """Create the models folder, hold the lock of model ``name``, and explain what the system refuses.

    Raises:
        DiskFull: the disk ran full.
        ModelMissing: the folder cannot be written.
    """
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with model_lock(models_dir, name, on_progress):
            for old in models_dir.glob(f".removed-{name}-*"):
                remove_folder(old, ignore_errors=True)
            yield
    except OSError as error:
        if is_full(error):
            what = "takes no file so large" if error.errno == errno.EFBIG else "is full"
            raise DiskFull(f"the disk of {models_dir} {what}", _MORE_ROOM) from error
        wrong = obstacle(models_dir)
        raise ModelMissing(
            f"model `{name}` cannot be written to {models_dir}: {wrong or error.strerror or error}",
            f"{'Put a folder there' if wrong else 'Make the folder writable'}, or set COE_MODELS_DIR to another one.",
        ) from error


def staging_folder(name: str, models_dir: Path) -> Path:
    """Where ``name`` is made; hidden, and kept when an install breaks off, so that the next one goes on from there."""
    return models_dir / f".partial-{name}"


def unfinished(models_dir: Path) -> dict[str, float]:
    """Model name → MB that an install which broke off has left for the next one to go on from."""
    prefix = staging_folder("", models_dir).name
    return {
        folder.name.removeprefix(prefix): size_of(folder) / BYTES_PER_MB
        for folder in sorted(models_dir.glob(f"{prefix}*"))
    }


def discard(folder: Path, name: str) -> None:
    """Remove a folder of model ``name``: at one stroke from where it is, so that nobody still writing into it brings it
    back, and then from the disk.

    Raises:
        OSError: the system refuses.
    """
    if folder.exists():
        doomed = _doomed(name, folder.parent)
        move(folder, doomed)
        remove_folder(doomed)


def _doomed(name: str, models_dir: Path) -> Path:
    """A new name out of sight; what is left there is removed with the next change of the model."""
    return models_dir / f".removed-{name}-{uuid.uuid4().hex[:8]}"


def put_in_place(result: Path, target: Path) -> None:
    """Give the finished folder ``result`` the name ``target``; what had that name before is removed.

    Raises:
        InUse: the old folder is held; ``result`` waits for ``take_finished``.
        OSError: the system refuses; the old folder is then still there.
    """
    old: Path | None = None
    if target.exists():
        old = _doomed(target.name, target.parent)
        try:
            move(target, old)
        except PermissionError as error:
            finished = _finished(target)
            if result != finished:
                remove_folder(finished, ignore_errors=True)
                move(result, finished)
            raise InUse(
                f"model `{target.name}` is ready, but its old folder is in use ({error.strerror})",
                "Stop what uses it (coe stop), then run the same command: all that is left is to put it in place.",
            ) from error
    try:
        move(result, target)
    except OSError:
        if old is not None:
            move(old, target)
        raise
    if old is not None:
        remove_folder(old, ignore_errors=True)


def take_finished(target: Path, is_wanted: Callable[[dict[str, Any]], bool]) -> bool:
    """Put in place what was finished before and could not be; whether there was one whose origin ``is_wanted``.

    Raises:
        InUse, OSError: as ``put_in_place``.
    """
    finished = _finished(target)
    manifest = read_manifest(finished)
    if manifest is not None and is_wanted(manifest["origin"]):
        put_in_place(finished, target)
        return True
    remove_folder(finished, ignore_errors=True)
    return False


def _finished(target: Path) -> Path:
    return target.with_name(f".finished-{target.name}")


@contextmanager
def model_lock(models_dir: Path, name: str, on_progress: OnProgress) -> Iterator[None]:
    """Hold the lock of one model; the system frees it if the process dies."""
    import filelock

    lock = filelock.FileLock(models_dir / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        on_progress(Step("Waiting for another coe that works on this model", 0, None))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
