"""What `coe setup` would do on this machine: profile, models with sizes and licences, room on the disk, time."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from coe_cli.core.hardware.machine import Machine
from coe_cli.core.hardware.profile import ProfileSet, Provider
from coe_cli.core.importing.hub_files import quant_of
from coe_cli.core.memory.fit import nearest_profile
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.names import size_words
from coe_cli.core.providers import host, on_host
from coe_cli.core.routing.selection import all_models
from coe_cli.runtime import probe
from coe_cli.runtime.folders import Folders, free_mb
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.planning.fit_report import fit_report, this_machine
from coe_cli.runtime.planning.plan_inputs import PlanRequest
from coe_cli.runtime.planning.room import provider_for_card, without_room
from coe_cli.runtime.store.install import request_for

GENERAL_ON_HOST: Final = "qwen2.5-1.5b-instruct"
"""The general model for a computer without a card that coe has models for."""
_MB_PER_S: Final = 100e6 / 8 / BYTES_PER_MB
"""A line of 100 Mbit/s, for the time that is told."""
OWN_PROFILE: Final = "this-machine"


class SetupModel(Struct, frozen=True):
    """A model to fetch; ``how`` as in `coe fit`, "host" on the processor. Megabytes are of 2**20 bytes.

    ``quant`` is the quantisation of the GGUF file that it is made of, "" where there is none or its name does not say; of a
    model that is not ``verified`` the catalog's address, size and licence are checked when it is pulled.
    """

    name: str
    how: str
    experts: list[str]
    licence: str
    download_mb: float
    disk_mb: float
    installed: bool
    quant: str
    verified: bool


class SetupPlan(Struct, frozen=True):
    """What would be done; its fields are the JSON contract of `coe setup --json`.

    ``own_profile`` is the entry to write where no shipped profile suits; ``default_model`` who answers where no specialist can.
    """

    schema_version: int
    device: str
    memory_mb: int
    budget_mb: int
    provider: Provider
    profile: str
    own_profile: dict[str, int | str] | None
    default_model: str
    models: list[SetupModel]
    download_mb: float
    disk_mb: float
    disk_free_mb: float
    minutes: float
    notes: list[str]


def setup_plan(catalog: Catalog, profiles: ProfileSet, where: Folders, machine: Machine | None = None) -> SetupPlan:
    """The profile and the models that suit this machine, each in its build for the provider.

    On a card whose provider is installed these are the specialists that fit; without such, a small general model where the
    memory allows it. The embedded model always belongs to it.

    Raises:
        UsageError: neither a card nor memory could be found.
    """
    machine = machine or probe.probe_machine()
    device, maker = this_machine(machine)[0]
    wanted_provider, missing_provider = provider_for_card(maker)
    request = PlanRequest(provider=wanted_provider)
    catalog = catalog.on(wanted_provider)
    found = fit_report([(device, maker)], request, [], catalog, profiles, where).devices[0]
    notes = [f"{device.name}: {missing_provider}"] if missing_provider else []
    how_of = {expert.model: expert.how for expert in found.experts}
    fitting = [
        m for m in all_models(catalog) if catalog.models[m].provider == found.provider and how_of.get(m, "no") != "no"
    ]
    on_card = not on_host(found.provider) and not missing_provider and bool(fitting)
    default = catalog.default_model
    wanted = [default]
    if on_card:
        wanted += fitting
    else:
        if not on_host(found.provider) and not missing_provider:
            notes.append(
                f"no specialist of the catalog fits on {found.provider}, so the processor answers; "
                f"`coe models import FILE.gguf --name NAME --provider {found.provider}` makes one"
            )
        small, settings = [GENERAL_ON_HOST] if GENERAL_ON_HOST in catalog.models else [], profiles.select()
        if small and not without_room(small, settings, catalog, where.models, provider=host().name, machine=machine):
            default = GENERAL_ON_HOST
            wanted.append(default)
    room_mb = free_mb(where.models)
    installed = models_on_disk(where.models)
    models = [
        _model(name, how_of.get(name, "host") if on_card else "host", catalog, where, installed=name in installed)
        for name in dict.fromkeys(wanted)
    ]
    while len(models) > 1 and sum(m.disk_mb for m in models if not m.installed) > room_mb:
        left_out = models.pop()
        notes.append(f"{left_out.name} is left out: the disk has {size_words(room_mb)} free")
        default = catalog.default_model if left_out.name == default else default
    if unverified := [model for model in models if not model.verified]:
        quants = ", ".join(dict.fromkeys(model.quant for model in unverified if model.quant))
        notes.append(
            f"the specialists are made of GGUF files ({quants}) for {found.provider}; their addresses, sizes and licences are "
            "unverified: the hub is asked before they are fetched, and each file's header is checked"
        )
    provider = found.provider if on_card else host().name
    profile, own = _profile(profiles, found.budget_mb, provider, found.profile if on_card else None)
    missing = [model for model in models if not model.installed]
    download_mb = sum(model.download_mb for model in missing)
    return SetupPlan(
        schema_version=1,
        device=found.device,
        memory_mb=found.memory_mb,
        budget_mb=found.budget_mb,
        provider=provider,
        profile=profile,
        own_profile=own,
        default_model=default,
        models=models,
        download_mb=round(download_mb, 1),
        disk_mb=round(sum(model.disk_mb for model in missing), 1),
        disk_free_mb=round(room_mb, 1),
        minutes=round(download_mb / _MB_PER_S / 60, 1),
        notes=notes,
    )


def _model(name: str, how: str, catalog: Catalog, where: Folders, *, installed: bool) -> SetupModel:
    entry = catalog.models[name]
    return SetupModel(
        name=name,
        how=how,
        experts=catalog.experts_of(name),
        licence=entry.licence or "unknown",
        download_mb=entry.download_mb,
        disk_mb=round(request_for(name, catalog, where.models).needed_mb, 1),
        installed=installed,
        quant=next((quant_of(source.uri) for source in entry.sources), "") if entry.format == "gguf" else "",
        verified=entry.verified,
    )


def _profile(
    profiles: ProfileSet, budget_mb: int, provider: Provider, named: str | None
) -> tuple[str, dict[str, int | str] | None]:
    """The shipped profile that suits, or one of the user's own with this budget."""
    near = nearest_profile(profiles, budget_mb, provider)
    if on_host(provider) or named is not None:
        return named or near.name, None
    entry: dict[str, int | str] = {
        "vram_budget_mb": budget_mb,
        "max_concurrent_slots": near.max_concurrent_slots,
        "context_length": near.context_length,
        "provider": provider,
    }
    return OWN_PROFILE, entry
