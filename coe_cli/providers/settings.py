"""What a worker is started with: device and threads from the environment, and OGA's configuration."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coe_cli.core.providers import spec_of
from coe_cli.errors import UsageError
from coe_cli.providers import runtime_of
from coe_cli.providers.base import DeviceSettings

_LUID = re.compile(r"luid:(-?\d+):(\d+)")
_PCI = re.compile(r"pci:([0-9a-f]{4,8}:[0-9a-f]{4,8})", re.IGNORECASE)


def settings_from(environment: Mapping[str, str] = os.environ) -> DeviceSettings:
    """Settings from ``COE_DEVICE`` (``1``, ``luid:HIGH:LOW`` or ``pci:VENDOR:DEVICE``), ``COE_GRAPH_CAPTURE``, ``COE_CUDA_ARENA``, ``COE_THREADS``.

    Raises:
        UsageError: a value that cannot be read.
    """
    device = environment.get("COE_DEVICE", "").strip()
    luid, pci = _LUID.fullmatch(device), _PCI.fullmatch(device)
    if device and not luid and not pci and not device.isdecimal():
        raise UsageError(
            f"COE_DEVICE is `{device}`",
            "Write an adapter's number, luid:HIGH:LOW or pci:VENDOR:DEVICE; `coe doctor` lists them.",
        )
    arena = environment.get("COE_CUDA_ARENA", "powers_of_two")
    if arena not in ("powers_of_two", "as_requested"):
        raise UsageError(f"COE_CUDA_ARENA is `{arena}`", "Write powers_of_two or as_requested.")
    capture = environment.get("COE_GRAPH_CAPTURE", "").strip()
    threads = environment.get("COE_THREADS", "").strip()
    if threads and (not threads.isdecimal() or int(threads) < 1):
        raise UsageError(f"COE_THREADS is `{threads}`", "Write a number of threads, 1 or more.")
    return DeviceSettings(
        luid=(int(luid[1]), int(luid[2])) if luid else None,
        index=int(device) if device.isdecimal() else None,
        pci=pci[1].lower() if pci else None,
        graph_capture=capture.lower() not in ("0", "no", "off", "false") if capture else None,
        arena_as_requested=arena == "as_requested",
        threads=int(threads) if threads else None,
    )


def default_provider_options(provider: str) -> dict[str, str]:
    """The options that the environment asks for.

    Raises:
        UsageError: a value that cannot be read.
    """
    return runtime_of(provider).provider_options(settings_from())


def default_session_options(provider: str, threads: int | None = None) -> dict[str, str | int | bool]:
    """Session options that a worker starts with on ``provider``; ``threads`` in place of ``worker_threads()``."""
    return runtime_of(provider).session_options(threads or worker_threads())


def worker_threads() -> int:
    """Threads of a worker on the CPU: as many as there are cores, unless the user wants another number.

    ONNX Runtime GenAI's own choice halves the speed.
    """
    return settings_from().threads or usable_cores()


def allowed_cores() -> int:
    """Logical cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Physical cores that this process may use."""
    import psutil

    return min(allowed_cores(), psutil.cpu_count(logical=False) or allowed_cores())


def configure(
    oga: Any,
    config: Any,
    provider: str,
    provider_options: Mapping[str, str],
    session_options: Mapping[str, str | int | bool],
    of_model: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Point an OGA ``Config`` at ``provider``; the model's own provider section is replaced.

    ``of_model`` are the options of that section: those count that depend on the graph. The model's ``search.chunk_size`` is
    taken out where attention over a later chunk does not see the earlier ones.

    Raises:
        RuntimeError: OGA does not know the provider or an option.
    """
    if session_options:
        config.overlay(json.dumps({"model": {"decoder": {"session_options": dict(session_options)}}}))
    if not spec_of(provider).capabilities.prompt_chunks:
        config.overlay(json.dumps({"search": {"chunk_size": 0}}))
    config.clear_providers()
    runtime = runtime_of(provider)
    of_graph = {key: of_model[key] for key in runtime.graph_options if key in of_model}
    runtime.configure(oga, config, {**of_graph, **provider_options})
