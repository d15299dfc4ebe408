"""Descriptions of the execution providers, one module each, without effects. Whoever is above ``core.units`` may import it.

A module here that has a ``PROVIDER`` is a provider; nothing outside of this package and ``coe_cli.providers`` names one.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from coe_cli.core.providers.base import GraphRules as GraphRules
from coe_cli.core.providers.base import ProviderSpec as ProviderSpec


@cache
def all_specs() -> tuple[ProviderSpec, ...]:
    """Every provider, the preferred first and the host's own last."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names if name != "base"]
    return tuple(sorted((module.PROVIDER for module in modules), key=lambda spec: spec.rank))


def names() -> list[str]:
    """The providers' names, in the order of ``all_specs``."""
    return [spec.name for spec in all_specs()]


def spec_of(name: str) -> ProviderSpec:
    """The provider called ``name``.

    Raises:
        ValueError: there is none; a profile or catalog that names it is invalid.
    """
    for spec in all_specs():
        if spec.name == name:
            return spec
    raise ValueError(f"Invalid provider '{name}': it is one of {', '.join(names())}")


def home() -> ProviderSpec:
    """The provider that profiles mean when they name none."""
    return all_specs()[0]


def host() -> ProviderSpec:
    """The provider that every machine has, in the system's memory: what is left when a card cannot be had."""
    return all_specs()[-1]


def expected_on(platform: str) -> ProviderSpec:
    """The provider that an installation on ``platform`` (as ``sys.platform``) should have."""
    return next((spec for spec in all_specs() if platform in spec.expected_on), host())


def for_card(maker: str, platform: str) -> ProviderSpec:
    """The preferred provider on ``platform`` for a card of ``maker`` (lower case, "" where unknown), else ``home``."""
    usable = [spec for spec in all_specs() if spec.on_card and spec.exists_on(platform)]
    return next((spec for spec in usable if spec.drives(maker)), home())


def runs_on(name: str) -> list[str]:
    """Providers that a model built for ``name`` runs on, the best first: its own, those of cards that take its graph, and the
    host's, which is slow. What is laid out anew for a provider (``GraphRules.packs_weights``) runs there alone.
    """
    if spec_of(name).graph.packs_weights:
        return [name]
    alike = [spec.name for spec in all_specs() if name in spec.runs_graphs_of]
    return list(dict.fromkeys([name, *alike, host().name]))


def on_host(name: str) -> bool:
    """Whether ``name`` is the host's own provider."""
    return name == host().name
