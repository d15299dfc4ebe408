"""What a machine has for models, as the probes found it, and the profile that suits it. None means unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from msgspec import Struct

from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet, Provider
from coe_cli.core.names import size_words
from coe_cli.core.providers import on_host, spec_of

INTEGRATED_BELOW_MB: Final = 1024
"""An adapter with less memory of its own than this works in the system's memory."""


SHARE_OF_SYSTEM_MEMORY: Final = 0.5
"""What an integrated card may take of the system's memory: Windows offers half of it as shared graphics memory."""


class Adapter(Struct, frozen=True):
    """One graphics adapter. ``used_mb`` counts what all programs use, and on NVIDIA's the ``reserved_mb`` that the driver keeps.

    ``luid`` is Windows' name for it until a reboot.
    """

    name: str
    probe: Literal["dxgi", "nvml", "amd_sysfs", "pci"]
    dedicated_mb: float | None = None
    shared_mb: float | None = None
    used_mb: float | None = None
    shared_used_mb: float | None = None
    luid: int | None = None
    identity: str | None = None
    reserved_mb: float | None = None

    @property
    def integrated(self) -> bool | None:
        return None if self.dedicated_mb is None else self.dedicated_mb < INTEGRATED_BELOW_MB


class Machine(Struct, frozen=True):
    """Adapters and system memory. ``gpu_known`` is False when no probe could look at all."""

    adapters: tuple[Adapter, ...] = ()
    gpu_known: bool = False
    memory_mb: float | None = None
    memory_free_mb: float | None = None
    problems: tuple[str, ...] = ()


def card_mb(machine: Machine, provider: Provider) -> float | None:
    """The most memory that ``provider`` could use on this machine when nothing else ran.

    An integrated adapter has its own memory and the shared one, which the system's memory bounds.
    """
    if not spec_of(provider).on_card:
        return machine.memory_mb
    sizes = [size for adapter in _adapters_for(machine, provider) if (size := _size(machine, adapter)) is not None]
    return max(sizes, default=None)


def free_mb(machine: Machine, provider: Provider) -> float | None:
    """What other programs leave of the largest adapter right now; on integrated adapters, of system memory too."""
    if not spec_of(provider).on_card:
        return machine.memory_free_mb
    largest = card(machine, provider)
    if largest is None or largest.used_mb is None:
        return None
    size = _size(machine, largest)
    if size is None:
        return None
    if not largest.integrated:
        return max(0.0, size - largest.used_mb)
    left = max(0.0, size - largest.used_mb - (largest.shared_used_mb or 0.0))
    return left if machine.memory_free_mb is None else min(left, machine.memory_free_mb)


def card(machine: Machine, provider: Provider) -> Adapter | None:
    """The adapter with the most memory that ``provider`` can use; those of unknown size come last."""
    return max(_adapters_for(machine, provider), key=lambda a: _size(machine, a) or 0.0, default=None)


def pick_profile(
    machine: Machine, profiles: ProfileSet, holds: Callable[[HardwareProfile], bool] = lambda profile: True
) -> tuple[HardwareProfile, str]:
    """The guide's choice and its reason: the largest profile within memory × safety margin that ``holds`` a model.

    Without a GPU, or with one that is too small for every profile, it is the first CPU profile; when nothing could be
    found out, the fallback profile.
    """
    every = list(profiles.profiles.values())
    auto = profiles.select().auto_detect
    fallback = profiles.select(auto.fallback_profile)
    cpu = next((profile for profile in every if on_host(profile.provider)), fallback)
    if machine.gpu_known and not machine.adapters:
        return cpu, "no graphics adapter was found"
    known = [(size, a) for a in machine.adapters if (size := _size(machine, a)) is not None]
    if not known:
        return fallback, "the size of the graphics memory is unknown"
    largest, adapter = max(known, key=lambda found: found[0])
    usable = largest * auto.safety_margin
    if adapter.integrated and machine.memory_mb is not None:
        usable = min(usable, machine.memory_mb * SHARE_OF_SYSTEM_MEMORY)
    fitting = [profile for profile in every if spec_of(profile.provider).on_card and profile.vram_budget_mb <= usable]
    if not fitting:
        return cpu, f"{size_words(usable)} of graphics memory are too little for every GPU profile"
    best = next(filter(holds, sorted(fitting, key=lambda profile: -profile.vram_budget_mb)), None)
    if best is None:
        return cpu, f"no profile of {size_words(usable)} or less runs an expert's model here; see `coe setup --dry-run`"
    return best, f"{size_words(largest)} found, {size_words(usable)} within the safety margin of {auto.safety_margin:g}"


def _adapters_for(machine: Machine, provider: Provider) -> list[Adapter]:
    return [adapter for adapter in machine.adapters if spec_of(provider).can_use(adapter)]


def _size(machine: Machine, adapter: Adapter) -> float | None:
    if adapter.dedicated_mb is None or not adapter.integrated:
        return adapter.dedicated_mb
    if adapter.shared_mb is None:
        return None
    shared = adapter.shared_mb if machine.memory_mb is None else min(adapter.shared_mb, machine.memory_mb)
    return adapter.dedicated_mb + shared
