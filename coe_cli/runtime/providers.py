"""Execution providers (DirectML, CUDA, CPU): how each is configured, which are installed, and which a model gets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct

from coe_cli.core.profile import HardwareProfile, Provider
from coe_cli.errors import DeviceLost, UsageError

RUNTIMES: dict[str, Provider] = {
    "onnxruntime-genai-directml": "dml",
    "onnxruntime-genai-cuda": "cuda",
    "onnxruntime-genai": "cpu",
}
"""Distributions of ONNX Runtime GenAI and the fastest provider of each; all of them have the CPU."""

_LUID = re.compile(r"luid:(-?\d+):(\d+)")


class DeviceSettings(Struct, frozen=True):
    """Which device, and how it is driven; None leaves the choice to ONNX Runtime GenAI.

    ``luid`` is an adapter's (high, low) part as DXGI tells it, the same after adapters are listed in another order;
    ``index`` counts adapters (DirectML) or CUDA devices. ``graph_capture`` is DirectML's recorded command list, which
    newer releases than 0.13.1 can leave out. ``arena_as_requested`` keeps CUDA's pool from growing by powers of two.
    """

    luid: tuple[int, int] | None = None
    index: int | None = None
    graph_capture: bool = True
    arena_as_requested: bool = False
    threads: int | None = None


def settings_from(environment: Mapping[str, str] = os.environ) -> DeviceSettings:
    """Settings from ``COE_DEVICE`` (``1`` or ``luid:HIGH:LOW``), ``COE_GRAPH_CAPTURE``, ``COE_CUDA_ARENA``, ``COE_THREADS``.

    Raises:
        UsageError: a value that cannot be read.
    """
    device = environment.get("COE_DEVICE", "").strip()
    luid = _LUID.fullmatch(device)
    if device and not luid and not device.isdecimal():
        raise UsageError(
            f"COE_DEVICE is `{device}`", "Write an adapter's number or luid:HIGH:LOW; `coe doctor` lists them."
        )
    arena = environment.get("COE_CUDA_ARENA", "powers_of_two")
    if arena not in ("powers_of_two", "as_requested"):
        raise UsageError(f"COE_CUDA_ARENA is `{arena}`", "Write powers_of_two or as_requested.")
    threads = environment.get("COE_THREADS", "").strip()
    if threads and (not threads.isdecimal() or int(threads) < 1):
        raise UsageError(f"COE_THREADS is `{threads}`", "Write a number of threads, 1 or more.")
    return DeviceSettings(
        luid=(int(luid[1]), int(luid[2])) if luid else None,
        index=int(device) if device.isdecimal() else None,
        graph_capture=environment.get("COE_GRAPH_CAPTURE", "1").lower() not in ("0", "no", "off", "false"),
        arena_as_requested=arena == "as_requested",
        threads=int(threads) if threads else None,
    )


def provider_options(provider: str, settings: DeviceSettings) -> dict[str, str]:
    """Options for OGA's ``Config.set_provider_option``; empty on the CPU.

    DirectML: ``luid`` ("HIGH:LOW") or ``device_index``; ``enable_graph_capture`` is read since after 0.13.1, which
    ignores it. CUDA: ``device_id``, ``arena_extend_strategy`` as a number (DESIGN §6: a name fails).
    """
    options: dict[str, str] = {}
    if provider == "dml":
        if settings.luid is not None:
            options["luid"] = f"{settings.luid[0]}:{settings.luid[1]}"
        elif settings.index is not None:
            options["device_index"] = str(settings.index)
        if not settings.graph_capture:
            options["enable_graph_capture"] = "0"
    elif provider == "cuda":
        if settings.index is not None:
            options["device_id"] = str(settings.index)
        if settings.arena_as_requested:
            options["arena_extend_strategy"] = "1"
    return options


def default_provider_options(provider: str) -> dict[str, str]:
    """The options that the environment asks for.

    Raises:
        UsageError: a value that cannot be read.
    """
    return provider_options(provider, settings_from())


def default_session_options(provider: str, threads: int | None = None) -> dict[str, str | int | bool]:
    """Session options that a worker starts with on ``provider``; ``threads`` in place of ``worker_threads()``.

    On CUDA each weight is allocated by itself: from the arena, the same model took between 5302 and 6422 MB from one load
    to the next, and without it 5356 each time (docs/memory.md).

    On the CPU memory patterns are off: for each pair of lengths that it has seen before ONNX Runtime takes all buffers of a
    run as one block, which finds no room between the pieces that other lengths left, so a worker's arena grew to twice
    what its largest prompt needs (docs/memory.md).
    """
    if provider == "cuda":
        return {"session.use_device_allocator_for_initializers": "1"}
    if provider == "cpu":
        return {"intra_op_num_threads": threads or worker_threads(), "enable_mem_pattern": False}
    return {}


def worker_threads() -> int:
    """Threads of a worker on the CPU: as many as there are cores, unless the user wants another number.

    ONNX Runtime GenAI's own choice halves the speed (DESIGN §6).
    """
    return settings_from().threads or usable_cores()


def usable_cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import psutil

    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical))


def installed_runtimes() -> dict[str, str]:
    """Distribution → version of every ONNX Runtime GenAI that is installed; more than one is a mistake."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in RUNTIMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def runtime_version(provider: Provider) -> str | None:
    """Version of the installed ONNX Runtime GenAI that has ``provider``, or None."""
    installed = installed_runtimes()
    for name, version in installed.items():
        if RUNTIMES[name] == provider or provider == "cpu":
            return version
    return None


def installed_providers() -> list[Provider]:
    """Providers that the installed packages have on this system, the fastest first; no driver is asked."""
    fast: list[Provider] = []
    for name in installed_runtimes():
        provider = RUNTIMES[name]
        if provider == "dml" and sys.platform != "win32":
            continue
        if provider != "cpu":
            fast.append(provider)
    return [*fast, "cpu"]


def order_to_try(profile: HardwareProfile) -> list[Provider]:
    """Providers for a profile's models, the profile's own first; the CPU is what is left when a GPU cannot be had."""
    return [profile.provider, "cpu"] if profile.provider != "cpu" else ["cpu"]


def choose_provider(
    model: str, built_for: Provider, profile: HardwareProfile, installed: Collection[str]
) -> tuple[Provider, str]:
    """The provider that ``model`` gets and why, in words; the words begin with "slower:" when it is not its own.

    A model runs where it was built for. Builds for a GPU also run on the CPU, slowly; builds for the CPU stay there,
    since their weights are laid out for it.

    Raises:
        DeviceLost: none of the profile's providers is installed.
    """
    if built_for == "cpu":
        return "cpu", "it was built for the CPU"
    order = [built_for, *(provider for provider in order_to_try(profile) if provider != built_for)]
    for provider in order:
        if provider == built_for and provider in installed:
            return provider, f"it was built for {provider}"
        if provider == "cpu" and "cpu" in installed:
            return "cpu", f"slower: {model} was built for {built_for}, which is not installed here, and runs on the CPU"
    raise DeviceLost(f"provider {built_for} is not installed for `{model}`", "See `coe doctor`.")


def configure(
    config: Any, provider: str, provider_options: Mapping[str, str], session_options: Mapping[str, str | int | bool]
) -> None:
    """Point an OGA ``Config`` at ``provider``; the model's own provider section is replaced.

    Raises:
        RuntimeError: OGA does not know the provider or an option.
    """
    if session_options:
        config.overlay(json.dumps({"model": {"decoder": {"session_options": dict(session_options)}}}))
    config.clear_providers()
    if provider == "cpu":
        return
    if provider == "cuda":
        _find_cuda()
    config.append_provider(provider)
    for key, value in provider_options.items():
        config.set_provider_option(provider, key, value)


def _find_cuda() -> None:
    """Load CUDA's libraries from NVIDIA's Python packages, where pip puts them; without those the system's are used."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import onnxruntime

        onnxruntime.preload_dlls()
