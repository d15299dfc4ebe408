"""What a batch on this machine needs: the resolver, the router when a row asks for it, and the engine over a college."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import structs

from coe_cli.core.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.profile import HardwareProfile
from coe_cli.core.providers import on_host
from coe_cli.core.scheduler_state import pool_from_profile
from coe_cli.core.sharing import working_set
from coe_cli.errors import DoesNotFit, ModelMissing
from coe_cli.providers.settings import worker_threads
from coe_cli.runtime.batch.batch_engine import Engine, RowSource
from coe_cli.runtime.batch.batch_index import Route
from coe_cli.runtime.batch.batch_local import LocalEngine
from coe_cli.runtime.batch.beside import Beside
from coe_cli.runtime.college.college import CollegeSettings
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.meter import meter_for
from coe_cli.runtime.college.recorder import Recorder
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.prompts.prompts import own
from coe_cli.runtime.routing.shared_router import SharedRouter

MakeEngine = Callable[[HardwareProfile], Engine]


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
        from coe_cli.runtime.routing.router_cache import QuestionRouter, open_router

        if not opened:
            try:
                opened.append(open_router(catalog, where, note, provider=profile.provider, fetch=fetch))
            except ModelMissing as error:
                raise ModelMissing(
                    f"some rows name neither expert nor model, and they cannot be routed: {error.message}",
                    f"{error.hint} Or give these rows an expert with -e.",
                ) from error
        router = opened[0]
        assert isinstance(router, QuestionRouter)
        return [decision.experts[0].name for decision in router.route_many(questions)]

    return route


def engine_beside_others(
    rows: RowSource, profile: HardwareProfile, where: Folders, note: Callable[[str], None], make: MakeEngine
) -> Engine:
    """An engine with the part of the profile's budget that the running college and other batches leave to it.

    ``note`` is told what that costs, and of the time that it waits for its part.

    Raises:
        DoesNotFit: not even the smallest model of the rows fits the profile.
    """
    cost_of = cost_in(profile)
    costs = {model: cost_of(rows.spec(model))[0] for model in rows.remaining()}
    critical_mb = profile.pressure_thresholds.critical * (profile.vram_budget_mb - profile.fixed_mb)
    name, least_mb = min(((name, cost.need_mb()) for name, cost in costs.items()), key=lambda each: each[1])
    if least_mb > critical_mb:
        raise DoesNotFit(
            f"no model of the batch fits: `{name}` needs {least_mb:.0f} MB, and profile {profile.name} allows"
            f" {critical_mb:.0f} ({profile.vram_budget_mb} budget less {profile.fixed_mb} fixed)",
            "Choose a profile with a larger budget (-p), or a smaller model.",
        )
    workers, slots = 1, profile.max_concurrent_slots
    if on_host(profile.provider):  # a worker for each slot
        workers, slots = min(profile.max_concurrent_slots, worker_threads()), 1
    beside = Beside(where.state, profile, note)
    try:
        engine = make(beside.part(working_set(costs, workers, slots, critical_mb)))
    except BaseException:
        beside.close()
        raise
    return ClaimingEngine(engine, beside)


class ClaimingEngine:
    """An engine and its part of the budget, which is given back when it is closed."""

    def __init__(self, engine: Engine, beside: Beside) -> None:
        self._engine, self._beside = engine, beside
        self.run, self.stop, self.status = engine.run, engine.stop, engine.status

    def close(self) -> None:
        """See ``Engine.close``."""
        try:
            self._engine.close()
        finally:
            self._beside.close()


def local_engine(
    profile: HardwareProfile,
    *,
    retries: int,
    worker_command: list[str] | None = None,
) -> LocalEngine:
    """A college in this process under ``profile``.

    The order of the rows is known, so no model is kept for those who might ask for it next: it goes when the next one
    needs its room.
    """
    pool = structs.replace(pool_from_profile(profile), min_resident_s=0.0, preload_enabled=False, keep_alive_s=None)
    settings = CollegeSettings(
        pool, cost_in(profile), worker_command=worker_command, recorder=Recorder(), prompts=own()
    )
    on_cpu = on_host(profile.provider)
    return LocalEngine(settings, meter_for(profile), profile=profile.name, retries=retries, side_by_side=on_cpu)
