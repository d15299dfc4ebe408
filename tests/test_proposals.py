"""Whatever profile coe proposes for a machine, `coe profile check` passes it there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up_machine
import pytest
from made_up_machine import GB, pretend

from coe_cli.core.hardware.machine import Adapter, Machine
from coe_cli.core.memory.profile_check import CheckReport
from coe_cli.core.providers import spec_of
from coe_cli.runtime.folders import catalog_paths, folders, profile_paths
from coe_cli.runtime.planning import profile_report
from coe_cli.runtime.planning.fit_report import fit_report, this_machine
from coe_cli.runtime.planning.plan_inputs import PlanRequest
from coe_cli.runtime.planning.setup_plan import setup_plan
from coe_cli.runtime.settings import load_catalog, load_profiles

pytestmark = pytest.mark.usefixtures("own_folders")
SIZES_GB = (2, 4, 8, 9, 10, 11, 12, 16, 18, 20, 24, 32, 36, 40, 48, 54, 60, 64, 72, 80, 96, 128, 141, 192)
MACHINES: dict[str, Callable[[int], tuple[str, Machine]]] = {
    "dml": lambda gb: ("win32", Machine((Adapter("AMD", "dxgi", gb * GB, 16 * GB, 300.0),), True, 64 * GB, 50 * GB)),
    "cuda": lambda gb: ("linux", Machine((Adapter("NVIDIA", "nvml", gb * GB, None, 300.0),), True, 64 * GB, 50 * GB)),
    "webgpu": lambda gb: ("linux", Machine((Adapter("AMD", "amd_sysfs", gb * GB, 0.0, 9.0),), True, 64 * GB, 50 * GB)),
    "integrated": lambda gb: ("win32", Machine((Adapter("AMD", "dxgi", 512.0, gb * GB / 2),), True, gb * GB, gb * GB)),
    "none": lambda gb: ("linux", Machine((), True, gb * GB, 0.75 * gb * GB)),
}


@pytest.mark.parametrize("kind", MACHINES)
def test_what_is_proposed_passes_its_own_check(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(profile_report, "free_mb", lambda where: 200 * GB)
    shipped, catalog, where = load_profiles(profile_paths()), load_catalog(catalog_paths()), folders()
    failed: list[tuple[Any, ...]] = []
    platform = MACHINES[kind](SIZES_GB[0])[0]

    def hold(proposer: str, gb: int, report: CheckReport) -> None:
        if not spec_of(report.profile.provider).exists_on(platform):
            failed.append((proposer, gb, report.profile.name, report.profile.provider, platform))
        errors = [(each.check, each.message, each.fix) for each in report.findings if each.level == "error"]
        failed.extend((proposer, gb, report.profile.name, *each) for each in errors)

    on_host = kind in ("integrated", "none")
    for gb in SIZES_GB[on_host:]:  # the least budget of all is 4 GB of system memory
        monkeypatch.setitem(made_up_machine.MACHINES, "this", MACHINES[kind](gb))
        pretend("this", monkeypatch.setattr)
        machine = made_up_machine.MACHINES["this"][1]
        hold("auto", gb, profile_report.check(shipped, None, catalog, where, auto=True, machine=machine))
        planned = setup_plan(catalog, shipped, where, machine)
        found = fit_report(this_machine(machine), PlanRequest(), [], catalog, shipped, where).devices[0]
        of_fit = {
            "vram_budget_mb": found.budget_mb,
            "max_concurrent_slots": 2,
            "context_length": found.context_length,
            "provider": found.provider,
        }
        fits = any(expert.how != "no" for expert in found.experts)
        for proposer, name, own in (
            ("setup", planned.profile, planned.own_profile),
            *([("fit", found.profile or "mine", None if found.profile else of_fit)] if fits else []),
        ):
            file = tmp_path / "own.yaml"
            file.write_text(json.dumps({"profiles": {name: own} if own else {}}), encoding="utf-8")
            profiles = load_profiles([*profile_paths(), file])
            hold(proposer, gb, profile_report.check(profiles, name, catalog, where, machine=machine))
    assert failed == []
