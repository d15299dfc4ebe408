"""What a batch on this machine needs: the resolver, the router when a row asks for it, and the engine over a college."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.memory.pressure import admission_share
from coe_cli.core.models.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.providers import on_host
from coe_cli.core.scheduling.scheduler_state import pool_from_profile
from coe_cli.errors import DoesNotFit, ModelMissing
from coe_cli.providers.settings import worker_threads
from coe_cli.runtime.batch.batch_engine import RowSource
from coe_cli.runtime.batch.batch_index import Route
from coe_cli.runtime.batch.client_engine import ClientEngine, CostOf, lanes_for
from coe_cli.runtime.client.client import Client
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing.shared_router import SharedRouter


def batch_resolver(catalog: Catalog, models_dir: Path, profile: HardwareProfile, where: Folders) -> RequestResolver:
    """Settles rows as `coe serve` settles requests."""
    router = SharedRouter(catalog, where, profile.provider)
    return RequestResolver(catalog, models_dir, profile, router)


def bulk_router(
    catalog: Catalog,
    where: Folders,
    profile: HardwareProfile,
    note: Callable[[str], None],
    *,
    fetch: bool,
    enabled: bool = True,
) -> Route:
    """Routes many questions at once; the router is opened, and fetched if need be, at the first of them.

    Where routing is not ``enabled`` all of them go to the general reasoner, which is said once.
    """
    opened: list[object] = []

    def general(questions: Sequence[str]) -> list[str]:
        if not opened:
            opened.append(None)
            note(f"routing is off, so {GENERAL_EXPERT} answers the rows that name nobody")
        return [GENERAL_EXPERT] * len(questions)

    if not enabled:
        return general

    def route(questions: Sequence[str]) -> list[str]:
        from coe_cli.runtime.routing.router_cache import Allowed, QuestionRouter, open_router

        if not opened:
            try:
                opened.append(
                    open_router(
                        catalog,
                        where,
                        lambda said: note(said.line),
                        provider=profile.provider,
                        may=Allowed(fetch=fetch),
                    )
                )
            except ModelMissing as error:
                raise ModelMissing(
                    f"some rows name neither expert nor model, and they cannot be routed: {error.message}",
                    f"{error.hint} Or give these rows an expert with -e.",
                ) from error
        router = opened[0]
        assert isinstance(router, QuestionRouter)
        return [decision.experts[0].name for decision in router.route_many(questions)]

    return route


def client_engine(
    rows: RowSource,
    catalog: Catalog,
    profile: HardwareProfile,
    client_of: Callable[[int | None], tuple[Client, bool]],
    *,
    retries: int,
) -> ClientEngine:
    """An engine for ``rows``. ``client_of`` makes the client of a college that is to have so many replicas.

    It also says whether the college has them; one that runs already answers in all slots of its profile.

    Raises:
        DoesNotFit: not even the smallest model of the rows fits the profile.
    """
    cost_of, pool = cost_in(profile, catalog), pool_from_profile(profile)
    refuse_what_cannot_fit(rows, profile, cost_of)
    workers = min(profile.max_concurrent_slots, worker_threads()) if on_host(profile.provider) else None
    lanes = lanes_for(rows, pool, cost_of, workers)
    client, has_replicas = client_of(None if workers is None else lanes.count)
    if not has_replicas:
        lanes = lanes_for(rows, pool, cost_of, None)
    return ClientEngine(client, lanes, pool, cost_of, retries=retries)


def refuse_what_cannot_fit(rows: RowSource, profile: HardwareProfile, cost_of: CostOf) -> None:
    """
    Raises:
        DoesNotFit: not even the smallest model of the rows fits the profile.
    """
    costs = {model: cost_of(rows.spec(model))[0].need_mb() for model in rows.remaining()}
    critical_mb = admission_share(profile.pressure_thresholds, alone=True) * (profile.vram_budget_mb - profile.fixed_mb)
    name = min(costs, key=costs.__getitem__)
    if costs[name] > critical_mb:
        raise DoesNotFit(
            f"no model of the batch fits: `{name}` needs {costs[name]:.0f} MB, and profile {profile.name} allows"
            f" {critical_mb:.0f} ({profile.vram_budget_mb} budget less {profile.fixed_mb} fixed)",
            "Choose a profile with a larger budget (-p), or a smaller model.",
        )
