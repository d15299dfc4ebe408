"""Which expert and which model answer a question, when the user chose and when the chosen model is not there."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet, Provider
from coe_cli.core.models.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.providers import on_host
from coe_cli.errors import ModelMissing


class Choice(Struct, frozen=True):
    """``fallback`` is another model that may answer if this one cannot."""

    model: str
    expert: str | None
    system_prompt: str
    template: str | None
    fallback: str | None
    install: bool
    missing: str | None = None
    """The expert's own model, where it is not on disk and ``model`` answers in its place."""


def choose_model(catalog: Catalog, on_disk: Collection[str], *, expert: str | None, model: str | None) -> Choice:
    """Settle expert and model.

    A model named by the user is taken or refused; without an expert it is asked in the general reasoner's words. Otherwise the expert's own model answers if it is on disk, else its
    fallback, else the embedded default, which may have to be installed first.

    Raises:
        UsageError: unknown expert.
        ModelMissing: the named model is unknown, or known and not on disk (the embedded default excepted).
    """
    role = catalog.expert(expert) if expert is not None else None
    if model is not None:
        if model not in on_disk and model != catalog.default_model:
            if model not in catalog.models:
                raise catalog.unknown_model(model, list(on_disk))
            raise ModelMissing(f"model `{model}` is not on disk", f"Fetch it: coe models pull {model}")
        template = role.template if role is not None and role.model == model else _template_of(catalog, model)
        general = catalog.experts.get(GENERAL_EXPERT)
        system = role.system_prompt if role is not None else general.system_prompt if general is not None else ""
        return Choice(model, expert, system, template, None, model not in on_disk)
    name = expert or GENERAL_EXPERT
    role = catalog.expert(name)
    if role.model in on_disk:
        retry_with = role.fallback if role.fallback in on_disk and role.fallback != role.model else None
        return Choice(role.model, name, role.system_prompt, role.template, retry_with, False)
    fallback = role.fallback if role.fallback in on_disk else catalog.default_model
    assert fallback is not None
    return Choice(
        fallback,
        name,
        role.system_prompt,
        _template_of(catalog, fallback),
        None,
        fallback not in on_disk,
        role.model if role.model != fallback else None,
    )


def models_for(catalog: Catalog, profile: HardwareProfile) -> list[str]:
    """Names of the catalog's models for the profile's provider: what its college consists of. A CPU has those alone that were meant for it."""
    entries = {name: catalog.models[name] for name in all_models(catalog)}
    if on_host(profile.provider):
        return [name for name, entry in entries.items() if entry.provider == profile.provider]
    return [name for name, entry in entries.items() if entry.on(profile.provider).provider == profile.provider]


def all_models(catalog: Catalog) -> list[str]:
    """Names of the catalog's models but those that no expert asks and whose licence is unknown: they are fetched by name only."""
    asked = {catalog.default_model, *(expert.model for expert in catalog.experts.values())}
    return [name for name, entry in catalog.models.items() if name in asked or entry.licence]


def choose_profile(profiles: ProfileSet, name: str | None, provider: Provider) -> HardwareProfile:
    """The named profile, or the default one, or, if that is for another provider, the first one for ``provider``.

    Raises:
        ProfileInvalid: no profile has that name.
    """
    profile = profiles.select(name)
    if name is None and profile.provider != provider:
        return next((p for p in profiles.profiles.values() if p.provider == provider), profile)
    return profile


def _template_of(catalog: Catalog, model: str) -> str | None:
    """The plain template that the catalog's experts use for ``model``, if it has no chat template."""
    return next((e.template for e in catalog.experts.values() if e.model == model and e.template is not None), None)
