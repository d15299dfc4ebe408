"""Everything that `coe profile check` has to look at: machine, models on disk, room, measurements, clock."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from msgspec import structs

from coe_cli.core.findings import error, ok, warning
from coe_cli.core.hardware.machine import Machine, pick_profile
from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet
from coe_cli.core.memory.planner import plan
from coe_cli.core.memory.profile_check import CheckReport, ModelState, check_profile
from coe_cli.core.memory.solve import runs_alone
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.providers import spec_of
from coe_cli.errors import CoeError
from coe_cli.runtime import probe
from coe_cli.runtime.folders import Folders, free_mb
from coe_cli.runtime.model_folder.on_disk import find_spec, models_on_disk
from coe_cli.runtime.planning.plan_inputs import PlanInputs, PlanRequest, gather
from coe_cli.runtime.planning.room import without_room
from coe_cli.runtime.probe import remember
from coe_cli.runtime.routing.embedder_memory import with_measured_embedder
from coe_cli.runtime.store.integrity import check_files


def check(
    profiles: ProfileSet,
    name: str | None,
    catalog: Catalog,
    where: Folders,
    *,
    auto: bool = False,
    machine: Machine | None = None,
) -> CheckReport:
    """Check the named profile, or with ``auto`` the one that suits the machine; what the probes found is remembered.

    Raises:
        ProfileInvalid: no profile has that name.
    """
    seen = machine if machine is not None else probe.probe_machine()
    with contextlib.suppress(OSError):  # the next plan merely knows less
        remember(seen, where.state)
    if auto:
        profile, reason = pick_profile(seen, profiles, lambda each: _runs_a_model_here(each, catalog, where))
    else:
        profile, reason = profiles.select(name), ""
    files = ", ".join(str(path) for path in profiles.paths)
    findings = [ok("file", f"valid: {files}")]
    try:
        inputs = gather(PlanRequest(), profile, catalog, where)
    except CoeError as problem:
        return CheckReport(profile, reason, seen, [*findings, error("model", problem.message, problem.hint)])
    known = structs.replace(inputs.known, guide_fixed_mb=float(profile.fixed_mb))
    profile = with_measured_embedder(profile, where)
    result = plan(profile, inputs.scenario, known)
    answering = {role.model for role in (*inputs.scenario.roles, *inputs.known.candidates)}
    running = _running(profile, inputs)
    full = without_room(list(answering), profile, catalog, where.models, machine=seen)
    models = [
        structs.replace(
            _state(model, catalog, where),
            calibration=inputs.calibrations.get(model),
            has_room=model not in full,
            runs=model in running,
        )
        for model in sorted(answering)
    ]
    findings += check_profile(
        profile, seen, models, result, disk_free_mb=_free_mb_or_none(where.models), now_s=time.time()
    )
    findings += [warning("calibration", note, "It is left out; the next runs measure anew.") for note in inputs.notes]
    return CheckReport(profile, reason, seen, findings)


def _runs_a_model_here(profile: HardwareProfile, catalog: Catalog, where: Folders) -> bool:
    if not spec_of(profile.provider).exists_on(sys.platform):
        return False
    try:
        inputs = gather(PlanRequest(), profile, catalog, where)
    except CoeError:
        return True  # the check says what is wrong
    return bool(_running(with_measured_embedder(profile, where), inputs))


def _running(profile: HardwareProfile, inputs: PlanInputs) -> set[str]:
    """The models that the profile's budget holds one at a time."""
    scenario, known = inputs.scenario, inputs.known
    roles = [role for role in (*scenario.roles, *known.candidates) if role.model in known.models]
    return {role.model for role in roles if runs_alone(profile, scenario, role, known)}


def _state(name: str, catalog: Catalog, where: Folders) -> ModelState:
    experts = tuple(catalog.experts_of(name))
    entry = catalog.models.get(name)
    on_disk = models_on_disk(where.models)
    sizes = [source.size_mb for source in entry.sources if source.size_mb is not None] if entry is not None else []
    fetch_mb = max(sizes) if sizes else entry.weights_mb if entry is not None else None
    problem, hint = None, ""
    context_length = entry.context_length if entry is not None else 0
    if name in on_disk:
        try:
            context_length = find_spec(name, catalog, where.models).context_length
            check_files(name, on_disk[name])
        except CoeError as error:
            problem, hint = error.message, error.hint
    return ModelState(name, experts, context_length, name in on_disk, problem, fetch_mb, hint=hint)


def _free_mb_or_none(folder: Path) -> float | None:
    try:
        return free_mb(folder)
    except OSError:
        return None
