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
    if name in _added:
        return _added[name]
    spec = spec_of(name)
    package, _, module_name = type(spec).__module__.rpartition(".")
    if package != "coe_cli.core.providers":
        return ProviderRuntime(spec)
    runtime: ProviderRuntime = importlib.import_module(f"{__name__}.{module_name}").RUNTIME
    return runtime


def add(runtime: ProviderRuntime) -> None:
    """Make ``runtime`` known in this process, in place of one of the same name."""
    _added[runtime.spec.name] = runtime


def remove(name: str) -> None:
    """Forget what ``add`` made known."""
    _added.pop(name, None)
