"""Prepare the router's files where they are missing: fetch and export the embedder, train; and why that failed.

`python -m` this is the process in which a college trains, so that the memory goes when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from coe_cli.core.hardware.profile import Provider
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.notes import Note
from coe_cli.core.routing.router import Routing
from coe_cli.errors import CoeError, ModelDamaged, ModelMissing
from coe_cli.replacing import remove
from coe_cli.runtime.folders import Folders, folders, own_catalog

_TRY_AGAIN_AFTER_S = 3600.0
_PREPARES_IT = "coe route --rebuild prepares it"


def prepare_router(
    catalog: Catalog, where: Folders, provider: Provider, note: Callable[[Note], None], *, fetch: bool
) -> Routing | None:
    """Make what routes by ``catalog``; None, or why that is not possible.

    ``note`` is told what is prepared, line by line. ``fetch`` allows to download the embedder; after a failure, which is told
    in full once, that is tried again in an hour at the earliest. A question never fails for want of a router, so nothing is raised.
    """
    from coe_cli.runtime.routing.router_cache import Allowed, open_router

    failures = where.cache / "router" / "failed.json"
    try:
        try:
            open_router(catalog, where, note, provider=provider, may=Allowed(fetch=False))
        except ModelMissing as error:
            if not fetch:
                return Routing(None, 0.0, f"{error.message}, and --no-pull forbids to fetch it", _PREPARES_IT)
            if earlier := _failed_lately(failures):
                return Routing(None, 0.0, f"routing could not be prepared a while ago ({earlier})", _PREPARES_IT)
            open_router(catalog, where, note, provider=provider, may=Allowed(rebuild=isinstance(error, ModelDamaged)))
        remove(failures)
    except Exception as error:  # whatever it is, the question is answered
        reason = error.message if isinstance(error, CoeError) else f"{type(error).__name__}: {error}"
        _remember_failure(failures, reason.partition(": ")[0] if isinstance(error, CoeError) else reason)
        other = isinstance(error, CoeError) and not isinstance(error, ModelMissing)
        remedy = error.hint.rstrip(".") if isinstance(error, CoeError) and other else _PREPARES_IT
        return Routing(None, 0.0, f"routing could not be prepared ({reason})", remedy)
    return None


def learn_in_child(catalog: Catalog, provider: Provider) -> None:
    """Train a router on the examples of ``catalog`` in a process of its own, whose file others then find; no download.

    Raises:
        CoeError: what went wrong there.
    """
    from coe_cli.runtime.child import run_child

    arguments = [provider, *map(str, catalog.paths)]
    run_child(__spec__.name, arguments, lambda message: None, task="training of the router")


def _learn(send: Callable[[dict[str, object]], None]) -> None:
    from coe_cli.runtime.model_folder.on_disk import models_on_disk
    from coe_cli.runtime.routing.router_cache import Allowed, open_router
    from coe_cli.runtime.settings import load_catalog

    if sys.platform != "win32":
        os.nice(10)  # answers go first
    where = folders()
    catalog = load_catalog(list(map(Path, sys.argv[2:])), own_catalog(), models_on_disk(where.models))
    open_router(catalog, where, lambda note: None, provider=sys.argv[1], may=Allowed(fetch=False))


def _failed_lately(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        failure = json.loads(path.read_text(encoding="utf-8"))
        if 0 <= time.time() - float(failure["at"]) < _TRY_AGAIN_AFTER_S:
            return str(failure["reason"])
    return None


def _remember_failure(path: Path, reason: str) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"at": time.time(), "reason": reason[:300]}), encoding="utf-8")


if __name__ == "__main__":
    from coe_cli.runtime.child import serve_as_child

    sys.exit(serve_as_child(_learn, "training of the router"))
