"""Windows: whether a Direct3D 12 and a DirectML device can be made on each adapter; in a process of its own, with a limit.

A broken driver can hang or end the process that makes a device. The child prints one JSON list.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, convert

from coe_cli.package import start_code
from coe_cli.probes import ProbeFailed, dxgi

_TIMEOUT_S: Final = 60.0
_START: Final = start_code("coe_cli.probes.d3d12")

FEATURE_LEVELS: Final = {
    "12_2": 0xC200,
    "12_1": 0xC100,
    "12_0": 0xC000,
    "11_1": 0xB100,
    "11_0": 0xB000,
    "1_0_core": 0x1000,
}
"""D3D_FEATURE_LEVEL (d3dcommon.h), the highest first."""

IID_D3D12_DEVICE: Final = dxgi.Guid(
    0x189819F1, 0x1DB6, 0x4B57, (ctypes.c_uint8 * 8)(0xBE, 0x54, 0x18, 0x21, 0x33, 0x9B, 0x85, 0xF7)
)
IID_DML_DEVICE: Final = dxgi.Guid(
    0x6DBD6437, 0x96FD, 0x423F, (ctypes.c_uint8 * 8)(0xA9, 0x8C, 0xAE, 0x5E, 0x7C, 0x2A, 0x57, 0x3F)
)
DML_FEATURE_LEVELS: Final = {
    "6.4": 0x6400,
    "6.3": 0x6300,
    "6.2": 0x6200,
    "6.1": 0x6100,
    "6.0": 0x6000,
    "5.2": 0x5200,
    "5.1": 0x5100,
    "5.0": 0x5000,
}
"""DML_FEATURE_LEVEL (DirectML.h) down to what ONNX Runtime asks for, the highest first."""


class DeviceTrial(Struct, frozen=True):
    """``feature_level`` and ``directml_level`` are the highest with which a device could be made, None where none could."""

    adapter: str
    feature_level: str | None = None
    error: str | None = None
    directml_level: str | None = None
    directml_error: str | None = None


def try_devices() -> list[DeviceTrial]:
    """Make and give back both devices on each hardware adapter, in a child process.

    Raises:
        ProbeFailed: the child took too long or was ended, or DXGI refuses.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _START], capture_output=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"making a Direct3D 12 device took longer than {_TIMEOUT_S:g} s") from None
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1])
        if isinstance(answer, str):
            raise ProbeFailed(answer)
        return convert(answer, list[DeviceTrial])
    except (IndexError, ValueError):
        raise ProbeFailed(
            f"making a Direct3D 12 device ended its process with code {done.returncode & 0xFFFFFFFF:#x}"
        ) from None


def main() -> None:
    """Try both devices on each adapter and print what came of it."""
    answer: Any
    try:
        found: list[dict[str, Any]] = []
        dxgi.each_adapter(lambda adapter, desc: _try(adapter, desc, found))
        answer = found
    except ProbeFailed as error:
        answer = str(error)
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a driver's threads may outlive main


def _try(adapter: ctypes.c_void_p, desc: dxgi.AdapterDesc1, found: list[dict[str, Any]]) -> None:
    known = dxgi.adapter_from(desc)
    if known is None:
        return
    trial: dict[str, Any] = {"adapter": known.name}
    found.append(trial)
    device, trial["feature_level"], trial["error"] = _highest(
        "d3d12.dll", "D3D12CreateDevice", FEATURE_LEVELS, lambda level: (adapter, level, ctypes.byref(IID_D3D12_DEVICE))
    )
    if device is None:
        return
    path = _directml_path()
    if path is None:
        trial["directml_error"] = "the package has no DirectML.dll"
        return
    made, trial["directml_level"], trial["directml_error"] = _highest(
        str(path),
        "DMLCreateDevice1",
        DML_FEATURE_LEVELS,
        lambda level: (device, 0, level, ctypes.byref(IID_DML_DEVICE)),
    )
    for instance in (made, device):
        if instance is not None:
            dxgi.release(instance)


def _highest(
    library: str, name: str, levels: dict[str, int], arguments: Any
) -> tuple[ctypes.c_void_p | None, str | None, str | None]:
    """The device of the highest of ``levels`` that can be made, and that level; else the error of the lowest."""
    try:
        create = getattr(ctypes.WinDLL(library), name)  # type: ignore[attr-defined,unused-ignore]
    except (OSError, AttributeError) as error:
        return None, None, f"{name} of {library}: {error}"
    create.restype, code = ctypes.c_long, 0
    for level, number in levels.items():
        device = ctypes.c_void_p()
        code = create(*arguments(number), ctypes.byref(device))
        if code >= 0 and device.value:
            return device, level, None
    return None, None, f"{name} was refused ({code & 0xFFFFFFFF:08X})"


def _directml_path() -> Path | None:
    """The DirectML.dll that ONNX Runtime loads, without importing it."""
    for package, place in (("onnxruntime", "capi"), ("onnxruntime_genai", "")):
        spec = find_spec(package)
        path = Path(spec.origin).parent / place / "DirectML.dll" if spec is not None and spec.origin else None
        if path is not None and path.is_file():
            return path
    return None


if __name__ == "__main__":
    main()
