"""Options that several commands share, with their completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe_cli.core.catalog import Catalog, load_catalog
from coe_cli.core.model_spec import models_on_disk
from coe_cli.core.profile import ProfileSet, load_profiles
from coe_cli.errors import CoeError
from coe_cli.runtime.folders import catalog_paths, folders, profile_paths


def complete_profiles(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda: load_profiles(profile_paths()).profiles)


def complete_experts(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda: load_catalog(catalog_paths()).experts)


def complete_models(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda: {**load_catalog(catalog_paths()).models, **models_on_disk(folders().models)})


def _complete(incomplete: str, names: object) -> list[str]:
    try:
        return [name for name in names() if name.startswith(incomplete)]  # type: ignore[operator]
    except CoeError:
        return []


ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", "-p", help="Hardware profile.", autocompletion=complete_profiles, envvar="COE_PROFILE"),
]
ProfilesFileOption = Annotated[
    Path | None,
    typer.Option("--profiles", help="A hardware_profiles.yaml of your own; it wins over the shipped one."),
]
CatalogFileOption = Annotated[
    Path | None,
    typer.Option("--catalog", help="An experts.yaml of your own; it wins over the shipped one."),
]


def read_profiles(extra: Path | None) -> ProfileSet:
    """The profiles in force.

    Raises:
        ProfileInvalid: a profile file is wrong.
    """
    return load_profiles(profile_paths(extra))


def read_catalog(extra: Path | None) -> Catalog:
    """The catalog in force.

    Raises:
        ProfileInvalid: a catalog file is wrong.
    """
    return load_catalog(catalog_paths(extra))
