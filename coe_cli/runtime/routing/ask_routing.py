"""The route of a question that names no expert: by the running college, or in this process; prepared once when needed.

A question never fails because it could not be routed: then there is no decision, and the reason is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from coe_cli.core.catalog import Catalog
from coe_cli.core.profile import Provider
from coe_cli.core.router import Decision
from coe_cli.core.router_examples import examples_digest
from coe_cli.errors import CoeError, ModelDamaged, ModelMissing
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.server.route_messages import RouteRequest

if TYPE_CHECKING:
    from coe_cli.runtime.server.college_client import CollegeClient

_TRY_AGAIN_AFTER_S = 3600.0
_PREPARES_IT = "coe route --rebuild prepares it"


class Routed(NamedTuple):
    """Who answers, or why that is not known and what to do about it.

    ``latency_ms`` is the routing's own time, without what it had to load.
    """

    decision: Decision | None
    latency_ms: float
    by: Literal["college", "coe"]
    problem: str = ""
    remedy: str = _PREPARES_IT


def route_question(
    text: str,
    catalog: Catalog,
    where: Folders,
    provider: Provider,
    note: Callable[[str], None],
    *,
    college: CollegeClient | None = None,
    fetch: bool = True,
) -> Routed:
    """The decision for ``text``.

    ``college`` is asked first, if there is one; it refuses where its examples are not those of ``catalog``. ``note`` is
    told what is prepared, line by line, which happens at the first question only. ``fetch`` allows to download the
    embedder for that; after a failure this is tried again in an hour at the earliest.
    """
    if college is not None:
        with contextlib.suppress(CoeError):
            named = os.environ.get("COE_EMBEDDER") or None
            answer = college.route(RouteRequest([text], examples_digest(catalog), named))
            return Routed(answer.decisions[0], answer.latency_ms, "college")
    return _here(text, catalog, where, provider, note, fetch)


def _here(
    text: str, catalog: Catalog, where: Folders, provider: Provider, note: Callable[[str], None], fetch: bool
) -> Routed:
    from coe_cli.runtime.routing.router_cache import open_router

    failures = where.cache / "router" / "failed.json"
    try:
        try:
            router = open_router(catalog, where, note, provider=provider, fetch=False)
        except ModelMissing as error:
            if not fetch:
                return Routed(None, 0.0, "coe", f"{error.message}, and --no-pull forbids to fetch it")
            if earlier := _failed_lately(failures):
                return Routed(None, 0.0, "coe", f"routing could not be prepared a while ago ({earlier})")
            damaged = isinstance(error, ModelDamaged)
            router = open_router(catalog, where, note, provider=provider, rebuild=damaged)
        failures.unlink(missing_ok=True)
        begin = time.perf_counter()
        decision = router.route(text)
        return Routed(decision, (time.perf_counter() - begin) * 1000, "coe")
    except Exception as error:  # whatever it is, the question is answered
        reason = error.message if isinstance(error, CoeError) else f"{type(error).__name__}: {error}"
        _remember_failure(failures, reason)
        other = isinstance(error, CoeError) and not isinstance(error, ModelMissing)
        remedy = error.hint.rstrip(".") if isinstance(error, CoeError) and other else _PREPARES_IT
        return Routed(None, 0.0, "coe", f"routing could not be prepared ({reason})", remedy)


def unrouted_note(routed: Routed, expert: str) -> str:
    """What the user is told when there is no decision."""
    return f"{routed.problem}: {expert} answers ({routed.remedy})"


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
