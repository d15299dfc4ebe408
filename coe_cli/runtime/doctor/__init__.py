"""`coe doctor`: everything that can be wrong with a machine, each finding with its fix."""

from __future__ import annotations

import sys
from pathlib import Path

from coe_cli.core.findings import Finding
from coe_cli.providers.installed import installed_providers
from coe_cli.runtime.doctor.devices import check_adapters, check_budget, read_drivers
from coe_cli.runtime.doctor.models import check_held_models, check_models
from coe_cli.runtime.doctor.places import check_folders, check_reading, usable_catalog, usable_profile, usable_profiles
from coe_cli.runtime.doctor.software import check_cards, check_oga, check_packages, check_system, installed_packages
from coe_cli.runtime.folders import folders
from coe_cli.runtime.worker.oga_report import read_oga


def examine(profiles_file: Path | None, catalog_file: Path | None, profile: str | None) -> list[Finding]:
    """Run every check; takes a few seconds, opens no connection and loads no model.

    Raises:
        ProfileInvalid: a shipped file is broken.
    """
    from coe_cli.runtime.probe import probe_machine

    places, machine = folders(), probe_machine()
    catalog, broken_catalog = usable_catalog(catalog_file)
    profiles, broken_profiles = usable_profiles(profiles_file)
    chosen, no_profile = usable_profile(profiles, profile)
    configuration = {finding.message: finding for finding in (*broken_catalog, *broken_profiles, *no_profile)}
    budget = check_budget(chosen, profiles, machine) if chosen is not None else []
    return [
        *check_system(),
        *check_packages(installed_packages(), platform=sys.platform),
        *check_oga(read_oga(), platform=sys.platform),
        *check_adapters(machine.adapters, machine.problems, read_drivers()),
        *check_cards(machine.adapters, platform=sys.platform),
        *configuration.values(),
        *budget,
        *check_models(catalog, places.models, installed_providers()),
        *check_held_models(places.models),
        *check_folders(places),
        *check_reading(places.models),
    ]
