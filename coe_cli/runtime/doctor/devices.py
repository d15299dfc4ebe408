"""`coe doctor`: graphics adapters, their memory and drivers, and whether the profile fits them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from coe_cli.core.findings import Finding, ok, warning
from coe_cli.core.hardware.machine import Adapter, Machine, card_mb
from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet
from coe_cli.core.memory.profile_check import KEEP_SMALL
from coe_cli.core.names import share_words, size_words
from coe_cli.core.providers import on_host

_DISPLAY_CLASS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"


def check_adapters(adapters: Sequence[Adapter], problems: Sequence[str], drivers: Sequence[str]) -> list[Finding]:
    """Each adapter with its memory, what could not be asked, and the drivers."""
    findings = []
    for number, adapter in enumerate(adapters):
        parts = [
            _mb(adapter.dedicated_mb, "of its own"),
            _mb(adapter.shared_mb, "shared"),
            _mb(adapter.used_mb and max(0.0, adapter.used_mb - (adapter.reserved_mb or 0.0)), "in use"),
            _mb(adapter.reserved_mb, "kept by the driver"),
        ]
        known = ", ".join(part for part in parts if part) or "memory unknown"
        luid = f", COE_DEVICE=luid:{adapter.luid >> 32}:{adapter.luid & 0xFFFFFFFF}" if adapter.luid is not None else ""
        findings.append(ok("adapters", f"{number}: {adapter.name}: {known}{luid}"))
    if not adapters:
        findings.append(ok("adapters", "no graphics adapter was found: models run on the CPU (coe ask -p embedded)"))
    findings += [warning("adapters", problem, "Update the graphics driver.") for problem in problems]
    findings += [ok("driver", driver) for driver in drivers]
    return findings


def check_budget(profile: HardwareProfile, profiles: ProfileSet, machine: Machine) -> list[Finding]:
    """Whether the profile's budget is there: out of memory is most often a profile that is too large."""
    size_mb, where = card_mb(machine, profile.provider), "memory" if on_host(profile.provider) else "graphics memory"
    if size_mb is None:
        said = f"profile {profile.name} is for {profile.provider}, and no adapter's size is known"
        return [warning("memory", said, "coe ask -p embedded answers on the CPU")]
    if profile.vram_budget_mb <= size_mb:
        return [
            ok("memory", f"profile {profile.name} plans with {share_words(profile.vram_budget_mb, size_mb)} {where}")
        ]
    usable = size_mb * profile.auto_detect.safety_margin
    fitting = [p for p in profiles.profiles.values() if p.provider == profile.provider and p.vram_budget_mb <= usable]
    best = max(fitting, key=lambda p: p.vram_budget_mb, default=None)
    return [
        warning(
            "memory",
            f"profile {profile.name} plans with {size_words(profile.vram_budget_mb)} and there are {size_words(size_mb)} of {where}: "
            "it will run out",
            KEEP_SMALL
            if on_host(profile.provider)
            else f"Use -p {best.name if best else 'embedded'}, or set COE_PROFILE.",
        )
    ]


def read_drivers() -> list[str]:
    """Graphics drivers with their versions, from Windows' registry or Linux' /proc and /sys."""
    return _windows_drivers() if sys.platform == "win32" else _linux_drivers(Path("/"))


def _linux_drivers(root: Path) -> list[str]:
    found = []
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", text):
            found.append(f"nvidia {match[1]}")
    except OSError:
        pass
    for name in ("amdgpu", "i915", "xe"):
        if (root / "sys/module" / name).is_dir():
            version = root / "sys/module" / name / "version"
            found.append(f"{name} {version.read_text().strip()}" if version.is_file() else f"{name}, the kernel's own")
    return found


def _windows_drivers() -> list[str]:
    if sys.platform != "win32":
        return []
    import winreg

    found = []
    for number in range(16):
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, rf"{_DISPLAY_CLASS}\{number:04}") as key:
                name, version, date = (
                    winreg.QueryValueEx(key, v)[0] for v in ("DriverDesc", "DriverVersion", "DriverDate")
                )
                found.append(f"{name}: {version} of {date}")
        except OSError:
            continue
    return found


def _mb(value: float | None, what: str) -> str:
    return "" if value is None else f"{size_words(value)} {what}"
