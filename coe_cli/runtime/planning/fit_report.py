"""`coe fit`: from a card's name or an amount of memory to what it holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from coe_cli.core.hardware.cards import HOW_TO_WRITE_MEMORY, MB_PER_GB, find_card, parse_memory_mb, similar_cards
from coe_cli.core.hardware.machine import SHARE_OF_SYSTEM_MEMORY, Machine, card, card_mb
from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet, Provider
from coe_cli.core.memory.fit import Fit, FitReport, Memory, fit, nearest_profile, uses_the_device
from coe_cli.core.memory.footprint import ModelMemory
from coe_cli.core.memory.scenario import Known, Role, role_of
from coe_cli.core.memory.slot_context import fitting_context
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.names import size_words
from coe_cli.core.providers import for_card, home, host, on_host, spec_of
from coe_cli.errors import CoeError, UsageError
from coe_cli.runtime.folders import Folders, own_profiles
from coe_cli.runtime.model_folder.on_disk import find_spec, models_on_disk
from coe_cli.runtime.planning.plan_inputs import PlanRequest, answering_models, memory_of, with_files
from coe_cli.runtime.routing.embedder_memory import with_measured_embedder

_WHOLE_PROMPT_CONTEXT = 2048
"""Tokens a slot where memory grows with their square: a larger device holds more experts rather than longer contexts."""
_NO_CARD_MB = 256
"""No card has so little: a bare number up to it was meant as gigabytes."""


def devices_from(text: str | None, igpu: str | None) -> list[tuple[Memory, str]]:
    """The devices that a user means, each with its maker ("" where that is unknown).

    ``text`` is a card's name, an amount of memory, or several of them joined by ``+``; ``igpu`` the memory of a computer whose
    graphics share it.

    Raises:
        UsageError: an unknown card or an amount that cannot be read.
    """
    if igpu is not None:
        if text is not None:
            raise UsageError("a card and --igpu exclude each other", "Give one of the two.")
        return [(Memory(f"integrated graphics, {igpu} of system memory", _memory_mb(igpu), integrated=True), "")]
    return [_device(part.strip()) for part in (text or "").split("+")]


def _device(text: str) -> tuple[Memory, str]:
    found = find_card(text)
    if found is not None:
        return Memory(found.name, found.memory_gb * MB_PER_GB, bandwidth_gb_s=found.bandwidth_gb_s), found.vendor
    if text[:1].isdigit():
        memory_mb = _memory_mb(text)
        return Memory(size_words(memory_mb), memory_mb), ""
    if not text:
        raise UsageError("a card is missing", "Name one, or an amount of memory: coe fit 16G, coe fit 24G+24G")
    near = similar_cards(text)
    hint = f"Did you mean `{near[0]}`?" if near else "Give its memory instead: coe fit 16G"
    raise UsageError(f"no card called `{text}` is known", hint)


def _memory_mb(text: str) -> int:
    try:
        memory_mb = parse_memory_mb(text)
    except ValueError as error:
        raise UsageError(str(error), HOW_TO_WRITE_MEMORY) from None
    if memory_mb <= _NO_CARD_MB and text.strip().isdecimal():
        raise UsageError(f"`{text}` is {size_words(memory_mb)}", f"Did you mean {text}G?")
    return memory_mb


def this_machine(machine: Machine | None = None) -> list[tuple[Memory, str]]:
    """The largest card of this machine, or its system memory where there is none."""
    if machine is None:
        from coe_cli.runtime.probe import probe_machine

        machine = probe_machine()
    found = device_for(machine, home().name) or device_for(machine, host().name)
    if found is None:
        raise UsageError(
            "neither a card nor the memory of this machine could be found", 'Name it: coe fit "RX 7800 XT"'
        )
    return [found]


def device_for(machine: Machine, provider: Provider) -> tuple[Memory, str] | None:
    """What ``provider`` works in, with its maker: the largest card that it can use, or the system's memory; None where that is unknown."""
    best, size = card(machine, provider), card_mb(machine, provider)
    if size is None:
        return None
    if best is None or on_host(provider):
        return Memory("this machine's processor", round(size)), host().name
    if best.integrated and machine.memory_mb is not None:
        memory_mb = round(min(machine.memory_mb, size / SHARE_OF_SYSTEM_MEMORY))
        return Memory(f"{best.name}, in the system's memory", memory_mb, integrated=True), best.name.lower()
    sold = find_card(best.name)
    bandwidth_gb_s = sold.bandwidth_gb_s if sold is not None else None
    return Memory(best.name, round(size), bool(best.integrated), bandwidth_gb_s), best.name.lower()


def fit_report(
    devices: Sequence[tuple[Memory, str]],
    request: PlanRequest,
    models: Sequence[str],
    catalog: Catalog,
    profiles: ProfileSet,
    where: Folders,
) -> FitReport:
    """What each device holds; with several devices each gets what the ones before it do not hold together.

    Of ``request`` only provider and context length count.

    Raises:
        ModelMissing, ModelDamaged: a model of ``models`` is unknown or cannot be read.
        ProfileInvalid: the default profile is broken.
    """
    fits: list[Fit] = []
    notes: list[str] = []
    left: list[Role] | None = None
    for device, vendor in devices:
        chosen = request.provider or provider_for(vendor)
        profile, named, budget_mb = _profile_for(device, chosen, profiles, where)
        roles, known = roles_of(models, chosen, with_files(catalog, models, chosen), where.models)
        offered = structs.replace(profile, vram_budget_mb=budget_mb)
        whole_prompts = not spec_of(chosen).capabilities.prompt_chunks
        most = min(profile.context_length, _WHOLE_PROMPT_CONTEXT) if whole_prompts else profile.context_length
        context = request.context_length or fitting_context(offered, known.models.values(), most)
        profile = structs.replace(profile, context_length=context)
        result = fit(device, profile, named, budget_mb, [r for r in roles if left is None or r in left], known)
        fits.append(result)
        held = {expert.expert for expert in result.experts if expert.how == "together"}
        left = [role for role in roles if role.expert not in held and (left is None or role in left)]
    used = [result for result in fits if any(expert.how != "no" for expert in result.experts)]
    if not used:
        notes.append("nothing fits: name a smaller model with -m, or see what suits this machine: coe setup --dry-run")
    for result in {result.budget_mb: result for result in used if result.profile is None}.values():
        notes.append(
            f"no shipped profile has this budget; put into {own_profiles()}:\n"
            f"profiles: {{mine: {{vram_budget_mb: {result.budget_mb}, max_concurrent_slots: 2,"
            f" context_length: {result.context_length}, provider: {result.provider}}}}}\nand ask with -p mine"
        )
    if len(fits) > 1:
        notes.append(
            "a college uses one card: run one for each, with COE_DEVICE=0, 1, … and a COE_STATE_DIR of its own; "
            "the second table has what the first card does not hold together"
        )
    return FitReport(fits, notes)


def provider_for(vendor: str) -> Provider:
    """The preferred provider of this system for a device of ``vendor``."""
    return vendor if on_host(vendor) else for_card(vendor, sys.platform).name


def _profile_for(
    device: Memory, provider: Provider, profiles: ProfileSet, where: Folders
) -> tuple[HardwareProfile, str | None, int]:
    """The profile to count with, its name if it suits the device as it is, and the budget in MB."""
    default = profiles.select()
    usable_mb = device.usable_mb(default.auto_detect.safety_margin)
    near = nearest_profile(profiles, usable_mb, provider)
    counted = with_measured_embedder(structs.replace(near, provider=provider), where)
    return counted, near.name if uses_the_device(near, usable_mb, provider) else None, usable_mb


def roles_of(models: Sequence[str], provider: Provider, catalog: Catalog, models_dir: Path) -> tuple[list[Role], Known]:
    """What is to be placed: ``models``, else those that answer for the experts; with the memory of each.

    Raises:
        ModelMissing, ModelDamaged: a model of ``models`` is unknown or cannot be read.
    """
    on_disk = models_on_disk(models_dir)
    if models:
        roles = [Role(name, name) for name in models]
    else:
        answering = answering_models(catalog, on_disk, provider, explicit=False)
        roles = [role_of(catalog, expert, model) for expert, model in answering.items()]
    memory: dict[str, ModelMemory] = {}
    for model in dict.fromkeys(role.model for role in roles):
        try:
            memory[model] = memory_of(find_spec(model, catalog, models_dir), provider)
        except CoeError:
            if models:
                raise
    return [role for role in roles if role.model in memory], Known(memory)
