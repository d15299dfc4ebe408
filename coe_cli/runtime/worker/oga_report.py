"""What the installed ONNX Runtime GenAI says of itself: run in a process of its own, which prints one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from msgspec import Struct

from coe_cli.runtime.package import start_code
from coe_cli.runtime.worker.worker_process import worker_environment

_TIMEOUT_S = 60.0
_START = start_code("coe_cli.runtime.worker.oga_report")


class OgaReport(Struct, frozen=True):
    """``problem`` says why it cannot be imported. ``directml`` is the DLL that this process has loaded, on Windows."""

    version: str | None = None
    dml: bool = False
    cuda: bool = False
    directml_path: str | None = None
    directml_version: str | None = None
    problem: str | None = None


def read_oga() -> OgaReport:
    """Import ONNX Runtime GenAI in a child process and ask it."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _START],
            capture_output=True,
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=worker_environment(),
        )
    except subprocess.TimeoutExpired:
        return OgaReport(problem=f"importing it took longer than {_TIMEOUT_S:g} s")
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    try:
        return OgaReport(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError):
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return OgaReport(problem=tail[-1] if tail else f"its import ended with code {done.returncode}")


def main() -> None:
    """Import it and print the report."""
    try:
        import onnxruntime_genai as oga
    except Exception as error:
        answer: dict[str, Any] = {"problem": str(error).splitlines()[0] if str(error) else type(error).__name__}
    else:
        path = _loaded_module("DirectML.dll") if sys.platform == "win32" else None
        answer = {
            "version": str(getattr(oga, "__version__", "unknown")),
            "dml": bool(oga.is_dml_available()),
            "cuda": bool(oga.is_cuda_available()),
            "directml_path": path,
            "directml_version": _file_version(path) if path else None,
        }
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)


def _loaded_module(name: str) -> str | None:
    """The file that this process has loaded as ``name`` (Windows)."""
    import ctypes

    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel32.GetModuleHandleW.restype = ctypes.c_void_p
    kernel32.GetModuleHandleW.argtypes = [ctypes.c_wchar_p]
    kernel32.GetModuleFileNameW.argtypes = [ctypes.c_void_p, ctypes.c_wchar_p, ctypes.c_uint32]
    handle = kernel32.GetModuleHandleW(name)
    if not handle:
        return None
    buffer = ctypes.create_unicode_buffer(32768)
    return buffer.value if kernel32.GetModuleFileNameW(handle, buffer, len(buffer)) else None


def _file_version(path: str) -> str | None:
    """The four numbers of a DLL's fixed version information (Windows: VS_FIXEDFILEINFO)."""
    import ctypes

    version = ctypes.WinDLL("version", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    size = version.GetFileVersionInfoSizeW(ctypes.c_wchar_p(path), None)
    if not size:
        return None
    data = ctypes.create_string_buffer(size)
    if not version.GetFileVersionInfoW(ctypes.c_wchar_p(path), 0, size, data):
        return None
    pointer, length = ctypes.c_void_p(), ctypes.c_uint()
    if not version.VerQueryValueW(data, ctypes.c_wchar_p("\\"), ctypes.byref(pointer), ctypes.byref(length)):
        return None
    assert pointer.value is not None
    high, low = (ctypes.c_uint32 * 4).from_address(pointer.value)[2:4]
    return f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}"


if __name__ == "__main__":
    main()
