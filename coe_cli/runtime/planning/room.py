"""What this machine can run: the provider for its card, and for which models it has no room. Whoever proposes a model asks here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import structs

from coe_cli.core.hardware.machine import Machine, card_mb
from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet, Provider
from coe_cli.core.memory.fit import Memory, fit
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.providers import home, host, on_host, spec_of
from coe_cli.providers.installed import (
    inference_packages,
    install_command,
    installed_providers,
    installed_versions,
    runtime_packages,
)
from coe_cli.runtime import probe
from coe_cli.runtime.model_folder.on_disk import provider_on_disk
from coe_cli.runtime.planning.fit_report import device_for, provider_for, roles_of

_ANY_MB: Final = 2**40


def provider_for_card(maker: str) -> tuple[Provider, str]:
    """The provider for a card of ``maker``; and what has to be installed for it where nothing that drives it is."""
    wanted, installed = provider_for(maker), installed_providers()
    if wanted in installed:
        return wanted, ""
    others = (name for name in installed if not on_host(name) and spec_of(name).drives(maker))
    if (other := next(others, None)) is not None:
        return other, ""
    spec = spec_of(wanted)
    command = install_command(spec, installed_versions([*runtime_packages(), *inference_packages()]))
    return (
        wanted,
        f"{spec.label} is not installed, so the processor answers. For the card: {command}, then `coe setup` again",
    )


def build_for(profiles: ProfileSet, named: str | None, machine: Machine | None = None) -> Provider:
    """The provider in whose build a model is fetched: the named profile's; else the default one's where this machine has that, else
    the one for its card, or the host's.

    Raises:
        ProfileInvalid: no profile has that name.
    """
    wanted = profiles.select(named).provider
    if named is not None or on_host(wanted):
        return wanted
    machine = machine or probe.probe_machine()
    if wanted in installed_providers() and card_mb(machine, wanted) is not None:
        return wanted
    device = device_for(machine, home().name)
    provider, missing = provider_for_card(device[1] if device is not None else host().name)
    return host().name if missing else provider


def choose_builds(
    names: Sequence[str], catalog: Catalog, profiles: ProfileSet, named: str | None, models_dir: Path
) -> tuple[dict[str, Provider], Machine]:
    """In which build each of ``names``, some of them addresses, is fetched, and the machine; its cards only where they matter.

    Without a ``named`` profile what is on disk keeps its build, and ``COE_PROFILE`` counts for the rest.

    Raises:
        ProfileInvalid: no profile has that name.
    """
    entries = {name: catalog.models.get(name) for name in names}
    of_cards = any(entry and (entry.builds or not on_host(entry.provider)) for entry in entries.values())
    machine = probe.probe_machine(None if of_cards else ())
    here = build_for(profiles, named or os.environ.get("COE_PROFILE") or None, machine)
    kept = {name: None if named else provider_on_disk(name, models_dir) for name in entries}
    return {
        name: kept[name] or (entry.on(here).provider if entry else here) for name, entry in entries.items()
    }, machine


def without_room(
    models: Sequence[str],
    profile: HardwareProfile,
    catalog: Catalog,
    models_dir: Path,
    *,
    provider: Provider | None = None,
    machine: Machine | None = None,
) -> set[str]:
    """Those of ``models``, in their builds for the provider, that do not run here even alone, by the rule of `coe fit`.

    The budget is the profile's, within what this machine has; for a ``provider`` that is named, all that it has. What is unknown
    has room, and so has the catalog's default model, which is what is left on the smallest machine.
    """
    asked = [name for name in models if name in catalog.models and name != catalog.default_model]
    if not asked:
        return set()
    on = provider or profile.provider
    machine = machine or probe.probe_machine()
    device = device_for(machine, on)
    if device is None and machine.gpu_known and not machine.adapters:  # the processor runs it, slowly
        device = device_for(machine, host().name)
    most_mb = _ANY_MB if provider is not None else profile.vram_budget_mb
    room_mb = most_mb if device is None else min(most_mb, device[0].usable_mb(profile.auto_detect.safety_margin))
    roles, known = roles_of(asked, on, catalog.on(on), models_dir)
    held = fit(Memory("", room_mb), structs.replace(profile, provider=on), None, room_mb, roles, known)
    return {expert.model for expert in held.experts if expert.how == "no"}
