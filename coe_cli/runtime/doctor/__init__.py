"""`coe doctor`: everything that can be wrong with a machine, each finding with its fix."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from coe_cli.core.findings import Finding, warning
from coe_cli.providers.installed import installed_providers
from coe_cli.runtime.doctor.devices import check_adapters, check_budget, read_drivers
from coe_cli.runtime.doctor.models import check_held_models, check_models
from coe_cli.runtime.doctor.places import check_folders, check_reading, usable, usable_profile
from coe_cli.runtime.doctor.software import check_cards, check_oga, check_packages, check_system, installed_packages
from coe_cli.runtime.folders import folders
from coe_cli.runtime.settings import read_catalog, read_profiles
from coe_cli.runtime.worker.oga_report import read_oga


def examine(profiles_file: Path | None, catalog_file: Path | None, profile: str | None) -> list[Finding]:
    """Run every check; takes a few seconds, opens no connection and loads no model.

    Raises:
        ProfileInvalid: a shipped file is broken.
    """
    from coe_cli.runtime.probe import probe_machine

    places, machine = folders(), probe_machine()
    catalog, broken_catalog = usable(read_catalog, catalog_file)
    profiles, broken_profiles = usable(read_profiles, profiles_file)
    chosen, no_profile = usable_profile(profiles, profile)
    configuration = {finding.message: finding for finding in (*broken_catalog, *broken_profiles, *no_profile)}
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "system": check_system,
        "packages": lambda: check_packages(installed_packages(), platform=sys.platform),
        "runtime": lambda: check_oga(read_oga(), platform=sys.platform),
        "adapters": lambda: check_adapters(machine.adapters, machine.problems, read_drivers()),
        "cards": lambda: check_cards(machine.adapters, platform=sys.platform),
        "configuration": configuration.values,
        "memory": lambda: check_budget(chosen, profiles, machine) if chosen is not None else [],
        "models": lambda: check_models(catalog, places.models, installed_providers()),
        "college": lambda: check_held_models(places.models),
        "folders": lambda: check_folders(places),
        "disk": lambda: check_reading(places.models),
    }
    return [finding for name, check in checks.items() for finding in _outcome(name, check)]


def _outcome(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check found; one that the system refuses does not keep the others from being shown."""
    try:
        return list(check())
    except OSError as refusal:
        return [warning(name, f"could not be looked at: {refusal}", "coe doctor, once more; if it stays, coe logs")]
