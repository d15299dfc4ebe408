"""The effects of the execution providers, one module each: packages, OGA's configuration, devices, memory, bandwidth.

A module here that has a ``RUNTIME`` belongs to the ``PROVIDER`` of the module with its name in ``core.providers``.
"""

from __future__ import annotations

import importlib

from coe_cli.core.providers import spec_of
from coe_cli.providers.base import ProviderRuntime

_added: dict[str, ProviderRuntime] = {}


def runtime_of(name: str) -> ProviderRuntime:
    """The effects of the provider called ``name``; those that all have in common where it has none of its own.

    Raises:
        ValueError: there is no such provider.
    """
    if name not in _added:
        spec = spec_of(name)
        module_name = f"{__name__}.{type(spec).__module__.rpartition('.')[2]}"
        if type(spec).__module__ != f"coe_cli.core.providers.{module_name.rpartition('.')[2]}":
            return ProviderRuntime(spec)
        _added[name] = importlib.import_module(module_name).RUNTIME
    return _added[name]


def add(runtime: ProviderRuntime) -> None:
    """Make ``runtime`` known in this process, in place of one of the same name."""
    _added[runtime.spec.name] = runtime


def remove(name: str) -> None:
    """Forget what ``add`` made known."""
    _added.pop(name, None)
