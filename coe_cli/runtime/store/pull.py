"""Install several models: the disk checked for all of them first, two at a time, and one failure does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from coe_cli.errors import CoeError
from coe_cli.runtime.parallel import in_parallel
from coe_cli.runtime.progress import OnProgress
from coe_cli.runtime.store.install import Request, install_request, preflight
from coe_cli.runtime.store.older_recipe import older_recipe

_AT_ONCE = 2


def pull(
    requests: list[Request],
    models_dir: Path,
    progress_of: Callable[[str], AbstractContextManager[OnProgress]],
    tell: Callable[[str], None],
    *,
    force: bool = False,
    as_is: bool = False,
) -> None:
    """Install ``requests``; ``tell`` is given a line for each model when it is ready, and at the end for each that failed of several.

    Raises:
        DiskFull: they do not all fit; nothing was fetched.
        CoeError: of the first model that failed, when all others are done; of several its message names them all.
    """
    requests = list({request.name: request for request in requests}.values())
    preflight(requests, models_dir, force=force)
    failures: dict[str, CoeError] = {}

    def install_one(request: Request) -> None:
        try:
            with progress_of(request.name) as on_progress:
                spec = install_request(request, models_dir, on_progress, force=force, as_is=as_is, tell=tell)
        except CoeError as error:
            failures[request.name] = error
        else:
            tell(f"{spec.name} is ready in {spec.folder}")
            if spec.folder and (older := older_recipe(spec.name, spec.folder)):
                tell(f"{older.message}. {older.fix}")

    if len(requests) == 1:
        install_one(requests[0])
    else:
        in_parallel([partial(install_one, request) for request in requests], _AT_ONCE)
    if failures:
        failed = [failures[request.name] for request in requests if request.name in failures]
        first = failed[0]
        if len(requests) > 1:
            for error in failed:
                tell(error.message)
            names = ", ".join(request.name for request in requests if request.name in failures)
            first.message = f"{len(failures)} of {len(requests)} models are not installed: {names}"
        raise first
