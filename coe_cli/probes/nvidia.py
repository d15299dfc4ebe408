"""NVIDIA: adapters and what all programs use of them, from NVML."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

from coe_cli.core.hardware.machine import Adapter
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.probes import ProbeFailed


class NvidiaProbe:
    """Adapters from the driver's management library, through nvidia-ml-py."""

    name = "nvml"

    def available(self) -> bool:
        return find_spec("pynvml") is not None

    def adapters(self) -> list[Adapter]:
        """All NVIDIA adapters; none when the driver is not installed.

        Raises:
            ProbeFailed: the driver is there and refuses.
        """
        import pynvml

        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
            return []
        except pynvml.NVMLError as error:
            raise ProbeFailed(str(error)) from None
        try:
            return [read_adapter(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            raise ProbeFailed(str(error)) from None
        finally:
            pynvml.nvmlShutdown()


def read_adapter(nvml: Any, index: int) -> Adapter:
    """Adapter ``index``; what this driver does not tell stays None."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(function: str) -> Any:
        try:
            return getattr(nvml, function)(handle)
        except (nvml.NVMLError, AttributeError):
            return None

    name, uuid, memory = ask("nvmlDeviceGetName"), ask("nvmlDeviceGetUUID"), read_memory(nvml, handle)
    return Adapter(
        name=_text(name) or f"NVIDIA adapter {index}",
        probe="nvml",
        dedicated_mb=None if memory is None else memory.total_mb,
        used_mb=None if memory is None else memory.used_mb + (memory.reserved_mb or 0.0),
        identity=_text(uuid),
        reserved_mb=None if memory is None else memory.reserved_mb,
    )


class CardMemory(NamedTuple):
    """``used_mb`` holds what the driver keeps for itself only where it does not tell that apart (``reserved_mb`` None)."""

    total_mb: float
    used_mb: float
    reserved_mb: float | None


def read_memory(nvml: Any, handle: Any) -> CardMemory | None:
    """A card's memory by NVML's second call, which tells the driver's part apart, else by its first; None if the driver refuses."""
    for version in (getattr(nvml, "nvmlMemory_v2", None), None):
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, *(() if version is None else (version,)))
        except (nvml.NVMLError, TypeError):
            continue
        reserved = getattr(memory, "reserved", None)
        reserved_mb = None if reserved is None else reserved / BYTES_PER_MB
        return CardMemory(memory.total / BYTES_PER_MB, memory.used / BYTES_PER_MB, reserved_mb)
    return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
