"""Take a model off the disk."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from coe_cli.core.catalog import Catalog
from coe_cli.core.model_name import check_name
from coe_cli.core.model_spec import BYTES_PER_MB, models_on_disk
from coe_cli.errors import CoeError, ModelMissing
from coe_cli.runtime.canary import forget
from coe_cli.runtime.model_store import model_lock
from coe_cli.runtime.progress import ignore
from coe_cli.runtime.residents import resident_models


class ModelResident(CoeError):
    """The model is in use."""

    code = "model_resident"


def remove(name: str, catalog: Catalog, models_dir: Path, state_dir: Path, *, force: bool = False) -> float:
    """Remove a model and return the MB that it took on disk.

    The folder is renamed first, so nothing half-removed is ever seen under its name. A link to a folder elsewhere is
    removed, the folder is not.

    Raises:
        UsageError: not a name.
        ModelMissing: it is not on disk, or its folder cannot be written.
        ModelResident: a worker holds it, and not ``force``.
    """
    check_name(name)
    folder = models_dir / name
    if not os.path.lexists(folder):
        if name in catalog.models:
            raise ModelMissing(f"model `{name}` is not on disk", "See `coe models list`.")
        raise catalog.unknown_model(name, list(models_on_disk(models_dir)))
    workers = resident_models(models_dir).get(name, [])
    if workers and not force:
        raise ModelResident(
            f"model `{name}` is in use by process {', '.join(map(str, workers))}",
            f"Take it out first (coe stop {name}), or: coe models rm {name} --force",
        )
    try:
        with model_lock(models_dir, name, ignore):
            if folder.is_symlink():
                folder.unlink()
                forget(state_dir, name)
                return 0.0
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
            doomed = models_dir / f".removed-{name}-{uuid.uuid4().hex[:8]}"
            folder.rename(doomed)
            shutil.rmtree(doomed)
    except OSError as error:
        raise ModelMissing(
            f"model `{name}` cannot be removed: {error.strerror or error}",
            "Stop what uses it (coe stop) and make the folder writable, then run it again.",
        ) from error
    forget(state_dir, name)
    return size / BYTES_PER_MB
