"""What a provider does to the world outside: the interface, with what most providers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from coe_cli.core.findings import Finding
from coe_cli.core.providers import ProviderSpec

if TYPE_CHECKING:
    from coe_cli.core.hardware.machine import Adapter


class DeviceSettings(Struct, frozen=True):
    """Which device, and how it is driven; None leaves the choice to ONNX Runtime GenAI.

    ``luid`` is an adapter's (high, low) part as DXGI tells it, the same after adapters are listed in another order;
    ``index`` counts adapters (DirectML) or CUDA devices; ``pci`` is "VENDOR:DEVICE" in hexadecimal digits (WebGPU).
    ``graph_capture`` is None where nobody said: a recorded command list, DirectML's habit, which
    newer releases than 0.13.1 can leave out. ``arena_as_requested`` keeps CUDA's pool from growing by powers of two.
    """

    luid: tuple[int, int] | None = None
    index: int | None = None
    pci: str | None = None
    graph_capture: bool | None = None
    arena_as_requested: bool = False
    threads: int | None = None


class GpuMemory(Protocol):
    """One adapter. Sizes in MB; None where the driver does not tell."""

    name: str

    @property
    def total_mb(self) -> float | None: ...

    def used_mb(self) -> float | None:
        """In use by all programs."""
        ...

    def process_mb(self) -> dict[int, float] | None:
        """In use by each process id; a process that uses nothing is missing."""
        ...


class ProviderRuntime:
    """The effects of one provider."""

    graph_options: tuple[str, ...] = ()
    """Provider options that a model's ``genai_config.json`` decides, since its graph must be made for them."""

    def __init__(self, spec: ProviderSpec) -> None:
        self.spec = spec

    def offered_by(self, oga: Any) -> bool:
        """Whether the installed ONNX Runtime GenAI has it."""
        ask = getattr(oga, f"is_{self.spec.name}_available", None)
        return bool(ask()) if ask is not None else False

    def details(self) -> dict[str, str]:
        """What this process, which has imported ONNX Runtime GenAI, has loaded of it; for ``check``."""
        return {}

    def check(self, *, offered: bool, details: Mapping[str, str], platform: str) -> list[Finding]:
        """What ``coe doctor`` says of the installation, from ``offered_by`` and ``details``."""
        return []

    def check_cards(self, adapters: Sequence[Adapter], *, platform: str) -> list[Finding]:
        """What ``coe doctor`` says of the machine's ``adapters``: whether each can be used, where only trying tells."""
        return []

    def session_options(self, threads: int) -> dict[str, str | int | bool]:
        """``session_options`` of a worker's configuration; ``threads`` is how many a worker may use."""
        return {}

    def provider_options(self, settings: DeviceSettings) -> dict[str, str]:
        """Options for OGA's ``Config.set_provider_option``."""
        return {}

    def configure(self, oga: Any, config: Any, options: Mapping[str, str]) -> None:
        """Point ``config``, which names no provider, at this one.

        Raises:
            RuntimeError: OGA does not know the provider or an option.
        """
        config.append_provider(self.spec.name)
        for key, value in options.items():
            config.set_provider_option(self.spec.name, key, value)

    def open_memory(self, settings: DeviceSettings) -> GpuMemory | None:
        """The adapter that a worker uses, or None where its memory cannot be told or is the system's."""
        return None

    def card_mb(self) -> float | None:
        """The largest adapter's memory where that can be told without loading a driver."""
        return None


class MeasuresBandwidth(ABC):
    """What the runtime of a provider whose memory bandwidth can be measured is, too."""

    @abstractmethod
    def copy_gb_per_s(self, settings: DeviceSettings) -> float:
        """10**9 bytes/s of copies in the device's memory, reads and writes counted; in a process of its own.

        Raises:
            DeviceLost: the driver refuses.
        """
