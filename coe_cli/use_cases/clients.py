"""The client of a command: the running college, or one in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from coe_cli.core.hardware.profile import ProfileSet
from coe_cli.core.models.catalog import Catalog
from coe_cli.runtime.client.client import Client
from coe_cli.runtime.folders import folders

if TYPE_CHECKING:
    from coe_cli.runtime.server.serve_options import ServeOptions


class CollegePlace(NamedTuple):
    """Which college the user means: its settings, and whether one that runs may answer (``serve``).

    ``routes``: the question names nobody.
    """

    profile: str | None = None
    profiles_file: Path | None = None
    catalog_file: Path | None = None
    serve: bool = True
    routes: bool = False


def client_for(
    place: CollegePlace,
    catalog: Catalog,
    profiles: ProfileSet,
    note: Callable[[str], None],
    timeout_s: float | None = None,
) -> Client:
    """The running college, started if need be; or one in this process, where that is asked for or no other way. ``note`` is told why the latter."""

    def own() -> Client:
        from coe_cli.runtime.client.local import LocalOptions, local_client
        from coe_cli.runtime.college.college_profile import college_profile

        profile = college_profile(profiles, place.profile, catalog, folders())
        return local_client(catalog, profile, profiles.routing, LocalOptions(timeout_s))

    if not place.serve:
        return own()
    from coe_cli.runtime.client.remote import RemoteClient

    return RemoteClient(serve_options(place), own, note, timeout_s)


def serve_options(place: CollegePlace) -> ServeOptions:
    """The college that is meant."""
    from coe_cli.runtime.server.serve_options import ServeOptions

    return ServeOptions(
        profile=place.profile,
        profiles_file=str(place.profiles_file.absolute()) if place.profiles_file else None,
        catalog_file=str(place.catalog_file.absolute()) if place.catalog_file else None,
        open_router=place.routes,
    )
