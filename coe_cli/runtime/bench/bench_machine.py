"""The machine and the versions that a benchmark's figures belong to, and how fast its memories are."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from coe_cli import __version__
from coe_cli.core.bench.bench_rows import BenchMachine
from coe_cli.core.hardware.profile import Provider
from coe_cli.core.providers import spec_of
from coe_cli.errors import CoeError
from coe_cli.providers import runtime_of
from coe_cli.providers.base import MeasuresBandwidth
from coe_cli.providers.settings import settings_from, usable_cores
from coe_cli.runtime.child import Message, run_child, serve_as_child
from coe_cli.runtime.doctor.software import installed_packages
from coe_cli.runtime.probe import probe_machine


def read_machine(bandwidth_gb_per_s: dict[str, float | None]) -> BenchMachine:
    """Processor, memory and graphics adapters; ``threads`` is what workers run with on the CPU."""
    import psutil

    machine = probe_machine()
    cores = usable_cores()
    return BenchMachine(
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or cores,
        threads=settings_from().threads or cores,
        memory_mb=None if machine.memory_mb is None else round(machine.memory_mb),
        adapters=[adapter.name for adapter in machine.adapters],
        bandwidth_gb_per_s={name: None if b is None else round(b, 2) for name, b in bandwidth_gb_per_s.items()},
    )


def read_versions() -> dict[str, str]:
    """Versions that speed hangs on."""
    found = {name: v for name, v in installed_packages().items() if name.startswith("onnxruntime")}
    return {"coe": __version__, "python": platform.python_version(), "system": platform.release(), **found}


def cpu_name() -> str:
    """The processor's name as its maker writes it, or the architecture."""
    name = ""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import winreg

            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
                name = str(winreg.QueryValueEx(key, "ProcessorNameString")[0])
        elif sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            name = subprocess.run(command, capture_output=True, text=True).stdout
        else:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            name = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "")
    return " ".join(name.split()) or platform.processor() or platform.machine()


def measure_bandwidth(provider: Provider) -> tuple[float | None, str]:
    """Bandwidth of ``provider``'s memory in 10**9 bytes/s, reads and writes counted, or None and the reason."""
    if not isinstance(runtime_of(provider), MeasuresBandwidth):
        return None, f"memory bandwidth is not measured on {spec_of(provider).label}: shares of it are unknown"
    found: list[float] = []
    try:
        run_child(
            "coe_cli.runtime.bench.bench_machine",
            [provider],
            lambda message: found.append(message["gb_per_s"]),
            task="bandwidth measurement",
        )
    except CoeError as error:
        return None, f"memory bandwidth of {provider} is unknown: {error.message}"
    return found[0], ""


def _work(send: Callable[[Message], None]) -> None:
    runtime = runtime_of(sys.argv[1])
    assert isinstance(runtime, MeasuresBandwidth)
    send({"gb_per_s": runtime.copy_gb_per_s(settings_from())})


if __name__ == "__main__":
    sys.exit(serve_as_child(_work, "bandwidth measurement"))
