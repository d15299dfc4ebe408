"""What this machine has: every probe that works here, put together; and what was found, kept for the next plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from coe_cli.core.hardware.machine import Adapter, Machine, card_mb
from coe_cli.core.hardware.profile import Provider
from coe_cli.probes import Probe, ProbeFailed
from coe_cli.providers import runtime_of
from coe_cli.runtime.atomic_write import write_private

MACHINE_FILE = "machine.json"
SEES_EVERY_MAKER = ("dxgi", "pci")


def probes() -> list[Probe]:
    """The probes in the order in which they are believed: NVML knows NVIDIA's cards better than DXGI does."""
    from coe_cli.probes.amd_sysfs import AmdSysfsProbe
    from coe_cli.probes.dxgi import DxgiProbe
    from coe_cli.probes.nvidia import NvidiaProbe
    from coe_cli.probes.pci import PciProbe

    return [DxgiProbe(), NvidiaProbe(), AmdSysfsProbe(), PciProbe()]


def probe_machine(sources: Sequence[Probe] | None = None) -> Machine:
    """Ask every probe that is available. On Windows DXGI sees all adapters, so NVML only adds what DXGI left open.

    Whether there is a GPU at all counts as known only when a source that sees every maker's adapters answered: DXGI or
    the PCI bus.
    """
    from coe_cli.probes.cpu import read_memory

    found: list[Adapter] = []
    problems: list[str] = []
    answered = False
    for probe in probes() if sources is None else sources:
        if not probe.available():
            continue
        try:
            seen = probe.adapters()
        except ProbeFailed as error:
            problems.append(f"{probe.name}: {error}")
            continue
        answered = answered or probe.name in SEES_EVERY_MAKER
        found = merge_adapters(found, seen)
    memory = read_memory()
    return Machine(
        adapters=tuple(found),
        gpu_known=answered,
        memory_mb=memory.total_mb,
        memory_free_mb=memory.free_mb,
        problems=tuple(problems),
    )


def merge_adapters(known: list[Adapter], more: list[Adapter]) -> list[Adapter]:
    """``more`` behind ``known``; a card that both see under one name stays once, with the gaps filled."""
    from msgspec import structs

    merged = list(known)
    taken: set[int] = set()
    for adapter in more:
        twin = next((i for i, old in enumerate(known) if i not in taken and _same(old, adapter)), None)
        if twin is None:
            merged.append(adapter)
            continue
        taken.add(twin)
        old = merged[twin]
        gaps = {field: getattr(adapter, field) for field in ("used_mb", "dedicated_mb") if getattr(old, field) is None}
        if "used_mb" in gaps:
            gaps["reserved_mb"] = adapter.reserved_mb
        merged[twin] = structs.replace(old, **gaps)
    return merged


def remember(machine: Machine, state: Path) -> None:
    """Keep what was found, so that a plan can warn about a card that is slow to ask."""
    write_private(state / MACHINE_FILE, msgspec.json.encode(machine))


def remembered(state: Path) -> Machine | None:
    """What the last probe found, or None."""
    try:
        return msgspec.json.decode((state / MACHINE_FILE).read_bytes(), type=Machine)
    except (OSError, msgspec.DecodeError):
        return None


def quick_card_mb(provider: Provider, state: Path) -> float | None:
    """The card's memory without loading a driver: what the provider can tell, else what the last `coe profile check` found."""
    if (size := runtime_of(provider).card_mb()) is not None:
        return size
    machine = remembered(state)
    return card_mb(machine, provider) if machine is not None else None


def _same(one: Adapter, other: Adapter) -> bool:
    if one.probe == other.probe:
        return False
    if other.probe == "pci":
        maker = other.name.split()[0].lower()
        return one.identity == other.identity or (one.probe == "nvml" and maker == "nvidia")
    first, second = (adapter.name.lower().removeprefix("nvidia ") for adapter in (one, other))
    return first == second
