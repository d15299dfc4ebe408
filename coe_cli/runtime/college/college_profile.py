"""The hardware profile of a college where its user may have named none."""

from __future__ import annotations

import contextlib
from pathlib import Path

from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.routing.selection import choose_profile
from coe_cli.errors import CoeError
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.model_folder.on_disk import models_on_disk, spec_from_folder
from coe_cli.runtime.routing.embedder_memory import with_measured_embedder


def college_profile(profiles: ProfileSet, name: str | None, catalog: Catalog, where: Folders) -> HardwareProfile:
    """The named profile; else the default one if a model on disk is for its provider, else one that some model is for.

    Its fixed part has the embedder's memory as it was measured, where it was.

    Raises:
        ProfileInvalid: no profile has that name.
    """
    return with_measured_embedder(_profile_of_the_file(profiles, name, catalog, where.models), where)


def _profile_of_the_file(profiles: ProfileSet, name: str | None, catalog: Catalog, models_dir: Path) -> HardwareProfile:
    if name is not None:
        return profiles.select(name)
    default = profiles.select(None)
    providers = []
    for model, folder in models_on_disk(models_dir).items():
        with contextlib.suppress(CoeError):
            providers.append(spec_from_folder(model, folder).provider)
    if default.provider in providers:
        return default
    provider = providers[0] if providers else catalog.models[catalog.default_model].provider
    return choose_profile(profiles, None, provider)
