"""Linux: which graphics adapters sit on the PCI bus, for those that no driver's interface tells more about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from coe_cli.core.hardware.machine import Adapter

DISPLAY_CLASS: Final = "0x03"
VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
"""Makers of adapters that can run models; a server's or a virtual machine's display chip cannot."""


class PciProbe:
    """Devices under ``root``, normally ``/sys/bus/pci/devices``. Their memory stays unknown."""

    name = "pci"

    def __init__(self, root: Path = Path("/sys/bus/pci/devices")) -> None:
        self._root = root

    def available(self) -> bool:
        return sys.platform == "linux" and self._root.is_dir()

    def adapters(self) -> list[Adapter]:
        found = []
        for device in sorted(self._root.iterdir()):
            try:
                kind, vendor, model = ((device / name).read_text().strip() for name in ("class", "vendor", "device"))
            except (OSError, UnicodeDecodeError):
                continue
            if kind.startswith(DISPLAY_CLASS) and vendor in VENDORS:
                identity = f"pci:{vendor.removeprefix('0x')}:{model.removeprefix('0x')}"
                found.append(Adapter(f"{VENDORS[vendor]} {model}", "pci", identity=identity))
        return found
