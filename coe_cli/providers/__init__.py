"""The effects of the execution providers, one module each: packages, OGA's configuration, devices, memory, bandwidth.

A module here that has a ``RUNTIME`` belongs to the ``PROVIDER`` of the module with its name in ``core.providers``.
"""

from __future__ import annotations

import importlib
from functools import cache

from coe_cli.core.providers import spec_of
from coe_cli.providers.base import ProviderRuntime


@cache
def runtime_of(name: str) -> ProviderRuntime:
    """The effects of the provider called ``name``.

    Raises:
        ValueError: there is no such provider.
    """
    module = type(spec_of(name)).__module__.rpartition(".")[2]
    runtime: ProviderRuntime = importlib.import_module(f"{__name__}.{module}").RUNTIME
    return runtime
