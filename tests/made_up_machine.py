"""coe on a machine that is made up: ``python made_up_machine.py CARD [ARGUMENTS…]``. The card is what the probes are said to find."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from coe_cli import __main__
from coe_cli.core.hardware.machine import Adapter, Machine
from coe_cli.core.providers import all_specs, for_card
from coe_cli.runtime import probe
from coe_cli.runtime.planning import fit_report, profile_report, room, setup_plan
from coe_cli.runtime.store import model_store

GB = 1024.0
MACHINES = {
    "amd-16g": (
        "win32",
        Machine((Adapter("AMD Radeon RX 7800 XT", "dxgi", 16368.0, 16 * GB, 900.0),), True, 32 * GB, 24 * GB),
    ),
    "nvidia-8g": (
        "win32",
        Machine((Adapter("NVIDIA GeForce RTX 4060", "dxgi", 8188.0, 16 * GB, 600.0),), True, 32 * GB, 24 * GB),
    ),
    "igpu-32g": (
        "win32",
        Machine((Adapter("AMD Radeon 780M", "dxgi", 512.0, 16 * GB, 300.0),), True, 32 * GB, 24 * GB),
    ),
    **{f"none-{gb}g": ("linux", Machine((), True, gb * GB, 0.75 * gb * GB)) for gb in (2, 4, 8, 16, 32)},
    "nvidia-24g-linux": (
        "linux",
        Machine((Adapter("NVIDIA GeForce RTX 4090", "nvml", 24564.0, None, 400.0),), True, 64 * GB, 50 * GB),
    ),
    "amd-16g-linux": (
        "linux",
        Machine((Adapter("AMD Radeon RX 7800 XT", "amd_sysfs", 16368.0, 16 * GB, 900.0),), True, 32 * GB, 24 * GB),
    ),
}
INSTALLED = {"amd-16g-linux": ["cpu"]}
"""Providers that are installed; on other machines all that their system has."""


def pretend(card: str, set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """From here on the probes of this process find that machine."""
    platform, machine = MACHINES[card]
    its_own = [spec.name for spec in all_specs() if spec.exists_on(platform)]
    set_attribute(room, "installed_providers", lambda: INSTALLED.get(card, its_own))
    for module in (setup_plan, model_store):
        set_attribute(module, "free_mb", lambda where: 200 * GB)
    set_attribute(probe, "probe_machine", lambda sources=None: machine)
    set_attribute(profile_report, "sys", SimpleNamespace(platform=platform))
    set_attribute(fit_report, "for_card", lambda maker, _: for_card(maker, platform))


if __name__ == "__main__":
    pretend(sys.argv.pop(1))
    __main__.main()
