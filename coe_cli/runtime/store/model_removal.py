"""Take a model off the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from coe_cli import replacing
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.model_name import check_name
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.errors import CoeError, ModelMissing
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.progress import ignore, size_of
from coe_cli.runtime.server.loaded_models import models_in_use
from coe_cli.runtime.store.golden_answer import forget
from coe_cli.runtime.store.model_store import discard, model_lock, staging_folder

RENAMES_REFUSED = os.name == "nt"
"""Whether a folder with open files cannot be renamed."""


class ModelInUse(CoeError):
    """The model is in use."""

    code = "model_resident"


def check_replaceable(name: str, models_dir: Path) -> None:
    """Check, before anything is fetched or converted, that the folder of ``name`` could be replaced.

    Raises:
        ModelInUse: a worker holds it, and this system does not rename what is in use.
    """
    workers = models_in_use(models_dir).get(name, []) if RENAMES_REFUSED and (models_dir / name).exists() else []
    if workers:
        raise ModelInUse(
            f"model `{name}` is in use by process {', '.join(map(str, workers))}", f"Take it out first: coe stop {name}"
        )


def remove(
    name: str, catalog: Catalog, models_dir: Path, state_dir: Path, *, tell: Callable[[str], None], force: bool = False
) -> float:
    """Remove a model, and what a broken-off install of it left; returns the MB that they took on disk.

    ``tell`` gets a line before, where experts need the model.

    The folder is renamed first, so nothing half-removed is ever seen under its name. A link to a folder elsewhere is
    removed, the folder is not.

    Raises:
        UsageError: not a name.
        ModelMissing: it is not on disk, or its folder cannot be written.
        ModelInUse: a worker holds it, and not ``force``.
    """
    check_name(name)
    folder, staging = models_dir / name, staging_folder(name, models_dir)
    if not os.path.lexists(folder) and not staging.exists():
        if name in catalog.models:
            raise ModelMissing(f"model `{name}` is not on disk", "See `coe models list`.")
        raise catalog.unknown_model(name, list(models_on_disk(models_dir)))
    workers = models_in_use(models_dir).get(name, [])
    if workers and not force:
        raise ModelInUse(
            f"model `{name}` is in use by process {', '.join(map(str, workers))}",
            f"Take it out first (coe stop {name}), or: coe models rm {name} --force",
        )
    if os.path.lexists(folder) and (need := catalog.need_of(name)):
        tell(need)
    try:
        with model_lock(models_dir, name, ignore):
            size = size_of(staging)
            discard(staging, name)
            if folder.is_symlink():
                replacing.remove(folder)
            elif folder.exists():
                size += size_of(folder)
                discard(folder, name)
    except OSError as error:
        raise ModelMissing(
            f"model `{name}` cannot be removed: {error.strerror or error}",
            "Stop what uses it (coe stop) and make the folder writable, then run it again.",
        ) from error
    forget(state_dir, name)
    return size / BYTES_PER_MB
