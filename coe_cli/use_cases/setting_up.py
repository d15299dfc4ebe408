"""`coe setup`: say what suits this machine, agree, fetch it, prepare the router, ask a first question."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from coe_cli.core.hardware.profile import ProfileSet
from coe_cli.core.models.catalog import Catalog
from coe_cli.errors import CoeError, UsageError
from coe_cli.output.console import Output
from coe_cli.output.question import agrees, is_interactive
from coe_cli.runtime.folders import folders, own_catalog, own_profiles

if TYPE_CHECKING:
    from coe_cli.runtime.planning.setup_plan import SetupPlan

FIRST_QUESTION = "What is a deadlock?"


def run_setup(
    catalog_of: Callable[[], Catalog],
    profiles_of: Callable[[], ProfileSet],
    output: Output,
    *,
    yes: bool,
    dry_run: bool = False,
    as_json: bool = False,
) -> bool:
    """Set this machine up; whether it was done and not declined.

    Raises:
        UsageError: there is nobody to ask and ``yes`` is not given.
        CoeError: something could not be fetched; what was is kept, no setting is changed, and the next run goes on from there.
    """
    from coe_cli.runtime.planning.setup_plan import setup_plan

    catalog, profiles, where = catalog_of(), profiles_of(), folders()
    with output.waiting("looking for graphics cards"):
        plan = setup_plan(catalog, profiles, where)
    if not as_json:
        from coe_cli.output.setup_view import write_setup

        write_setup(output, plan)
    if dry_run:
        if as_json:
            output.json(plan)
        return False
    if not yes:
        if not is_interactive(output) or as_json:
            raise UsageError(
                "setup asks before it fetches, and there is nobody to ask",
                "Add --yes, or look first: coe setup --dry-run",
            )
        if not agrees(output, "Do that?", without_terminal=False, default=True):
            output.note("nothing was changed; `coe setup` does it later")
            return False
    try:
        _fetch(plan, catalog, output, listed=not as_json)
    except CoeError as error:
        again, goes_on = "run `coe setup` again", ": it goes on from there"
        hint = error.hint.rstrip(".").replace("run it again", again)
        raise type(error)(error.message, f"{hint}." if again in hint else f"{hint}. Then {again}{goes_on}.") from None
    _configure(plan, profiles, catalog, output)
    _prepare(plan, catalog_of(), output)
    if as_json:
        output.json(setup_plan(catalog_of(), profiles_of(), where))
    return True


def offer_setup(catalog_of: Callable[[], Catalog], profiles_of: Callable[[], ProfileSet], output: Output) -> bool:
    """What a first question on a terminal offers, where nothing is set up yet; whether that was done."""
    from coe_cli.runtime.model_folder.on_disk import models_on_disk

    if (
        not is_interactive(output)
        or models_on_disk(folders().models)
        or own_catalog().exists()
        or own_profiles().exists()
    ):
        return False
    output.note("nothing is set up yet; this would suit this machine (no: the question goes on without it)")
    return run_setup(catalog_of, profiles_of, output, yes=False)


def _configure(plan: SetupPlan, profiles: ProfileSet, catalog: Catalog, output: Output) -> None:
    from coe_cli.runtime.own_settings import set_setting

    if plan.own_profile is not None:
        set_setting(f"profiles.{plan.profile}", json.dumps(plan.own_profile))
    for key, value, before in (
        ("profile", plan.profile, profiles.default_profile),
        ("model", plan.default_model, catalog.default_model),
    ):
        if value != before:
            changed = set_setting(key, value)
            output.note(f"{changed.key} is {changed.value} in {changed.path}")


def _fetch(plan: SetupPlan, catalog: Catalog, output: Output, *, listed: bool) -> None:
    from coe_cli.runtime.store.install import request_for
    from coe_cli.use_cases.fetching import fetch_requests

    builds, models_dir = catalog.on(plan.provider), folders().models
    if requests := [request_for(model.name, builds, models_dir) for model in plan.models if not model.installed]:
        fetch_requests(requests, output, listed=listed)


def _prepare(plan: SetupPlan, catalog: Catalog, output: Output) -> None:
    """Prepare the router; without one the general expert answers, so this fails nothing."""
    from coe_cli.runtime.routing.router_preparation import prepare_router
    from coe_cli.use_cases.providing import Preparing

    with contextlib.closing(Preparing(output)) as view:
        problem = prepare_router(catalog, folders(), plan.provider, view, fetch=True)
    if problem is not None:
        output.note(f"{problem.problem}: questions go to the general reasoner ({problem.remedy})")


def ask_first_question(catalog: Catalog, profiles: ProfileSet, output: Output) -> None:
    from coe_cli.output.tables import write_line
    from coe_cli.use_cases.ask_steps import AskOptions, View
    from coe_cli.use_cases.asking import run_ask

    write_line(output, (f"\n$ coe ask {FIRST_QUESTION}", "bold"))
    run_ask(AskOptions(question=FIRST_QUESTION, fallback=True), catalog, profiles, output, View())
    output.note("it works: coe ask YOUR QUESTION, or coe chat")
