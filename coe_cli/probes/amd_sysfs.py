"""AMD on Linux: memory of the cards that the amdgpu driver runs, from sysfs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from coe_cli.core.hardware.machine import Adapter
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.probes import ProbeFailed

AMD_VENDOR: Final = "0x1002"


class AmdSysfsProbe:
    """Cards under ``root``, normally ``/sys/class/drm``."""

    name = "amd_sysfs"

    def __init__(self, root: Path = Path("/sys/class/drm")) -> None:
        self._root = root

    def available(self) -> bool:
        return sys.platform == "linux" and self._root.is_dir()

    def adapters(self) -> list[Adapter]:
        """Every card whose driver tells its memory.

        Raises:
            ProbeFailed: the folder cannot be listed.
        """
        try:
            return list(_cards(self._root).values())
        except OSError as error:
            raise ProbeFailed(f"{self._root}: {error.strerror}") from None


class AmdMemory:
    """A card whose driver tells what is in use in all."""

    def __init__(self, card: Path, name: str, total_mb: float | None) -> None:
        self._card, self.name, self.total_mb = card, name, total_mb

    def used_mb(self) -> float | None:
        return _megabytes(self._card / "device" / "mem_info_vram_used")

    def process_mb(self) -> dict[int, float] | None:
        return None


def open_amd(root: Path = Path("/sys/class/drm")) -> AmdMemory | None:
    """The card with the most memory of its own, or None where there is none of AMD's."""
    found = _cards(root)
    if not found:
        return None
    card = max(found, key=lambda path: found[path].dedicated_mb or 0.0)
    return AmdMemory(card, found[card].name, found[card].dedicated_mb)


def _cards(root: Path) -> dict[Path, Adapter]:
    paths = sorted(path for path in root.glob("card*") if "-" not in path.name)
    return {path: adapter for path in paths if (adapter := read_card(path)) is not None}


def read_card(card: Path) -> Adapter | None:
    """The adapter in ``card``, or None when it is not one of AMD's."""
    device = card / "device"
    if _read(device / "vendor") != AMD_VENDOR:
        return None
    return Adapter(
        name=_read(device / "product_name") or f"AMD {_read(device / 'device') or card.name}",
        probe="amd_sysfs",
        dedicated_mb=_megabytes(device / "mem_info_vram_total"),
        shared_mb=_megabytes(device / "mem_info_gtt_total"),
        used_mb=_megabytes(device / "mem_info_vram_used"),
        shared_used_mb=_megabytes(device / "mem_info_gtt_used"),
        identity=f"pci:1002:{(_read(device / 'device') or '0x').removeprefix('0x')}",
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _megabytes(path: Path) -> float | None:
    text = _read(path)
    return int(text) / BYTES_PER_MB if text is not None and text.isdecimal() else None
