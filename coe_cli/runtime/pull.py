"""Install several models: the disk checked for all of them first, two at a time, and one failure does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from coe_cli.errors import CoeError
from coe_cli.runtime.downloads import in_parallel
from coe_cli.runtime.install import Request, install_request, preflight
from coe_cli.runtime.progress import OnProgress

_AT_ONCE = 2


def pull(
    requests: list[Request],
    models_dir: Path,
    progress_of: Callable[[str], OnProgress],
    tell: Callable[[str], None],
    *,
    force: bool = False,
    as_is: bool = False,
) -> None:
    """Install ``requests``; ``tell`` is given a line for each model that is ready.

    Raises:
        DiskFull: they do not all fit; nothing was fetched.
        CoeError: of the first model that failed, when all others are done; with several, the message names them all.
    """
    requests = list({request.name: request for request in requests}.values())
    preflight(requests, models_dir, force=force)
    failures: dict[str, CoeError] = {}

    def install_one(request: Request) -> None:
        try:
            spec = install_request(request, models_dir, progress_of(request.name), force=force, as_is=as_is, tell=tell)
        except CoeError as error:
            failures[request.name] = error
        else:
            tell(f"{spec.name} is ready in {spec.folder}")

    if len(requests) == 1:
        install_one(requests[0])
    else:
        in_parallel([partial(install_one, request) for request in requests], _AT_ONCE)
    if failures:
        first = next(failures[request.name] for request in requests if request.name in failures)
        if len(failures) > 1:
            first.message = "; ".join(error.message for error in failures.values())
        raise first
