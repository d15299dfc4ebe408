"""How fast a device's memory is: a copy larger than its caches, in a process of its own that ends with its memory.

DirectML has no copy that could be timed from here: its bandwidth stays unknown.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from coe_cli.core.model_spec import BYTES_PER_MB
from coe_cli.core.profile import Provider
from coe_cli.errors import CoeError, DeviceLost
from coe_cli.runtime.child import Message, run_child, serve_as_child

_COPY_BYTES: Final = 256 * BYTES_PER_MB
_LEAST_BYTES: Final = 64 * BYTES_PER_MB
_MEASURE_S: Final = 0.3
_COPIES_AT_ONCE: Final = 8
_LIBRARIES: Final = {"win32": "nvcuda.dll", "linux": "libcuda.so.1"}


def measure_bandwidth(provider: Provider) -> tuple[float | None, str]:
    """Bandwidth of ``provider``'s memory in 10**9 bytes/s, reads and writes counted, or None and the reason."""
    if provider == "dml":
        return None, "memory bandwidth is not measured on DirectML: shares of it are unknown"
    found: list[float] = []
    try:
        run_child(
            "coe_cli.runtime.bench.bandwidth",
            [provider],
            lambda message: found.append(message["gb_per_s"]),
            task="bandwidth measurement",
        )
    except CoeError as error:
        return None, f"memory bandwidth of {provider} is unknown: {error.message}"
    return found[0], ""


def copy_on_cpu(threads: int, size: int = _COPY_BYTES) -> float:
    """10**9 bytes/s of the best copy by ``threads`` threads, each with a part of its own (the STREAM copy, McCalpin)."""
    import concurrent.futures

    import numpy as np

    part = size // threads
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pairs = list(pool.map(lambda _: (np.ones(part, np.uint8), np.zeros(part, np.uint8)), range(threads)))

        def copy() -> None:
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

        return _best(copy, 2 * part * threads)


def copy_on_cuda(driver: Any, device: int = 0, size: int = _COPY_BYTES) -> float:
    """10**9 bytes/s of copies inside the memory of CUDA device ``device``; ``driver`` is the loaded driver library.

    Raises:
        DeviceLost: the driver refuses.
    """

    def call(name: str, *arguments: Any) -> None:
        if code := getattr(driver, name)(*arguments):
            raise DeviceLost(f"{name} failed with {code}", "See `coe doctor`.")

    handle, context = ctypes.c_int(), ctypes.c_void_p()
    source, target = ctypes.c_uint64(), ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(handle), device)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    call("cuCtxSetCurrent", context)
    while True:
        try:
            call("cuMemAlloc_v2", ctypes.byref(source), ctypes.c_size_t(size))
            call("cuMemAlloc_v2", ctypes.byref(target), ctypes.c_size_t(size))
            break
        except DeviceLost:
            if source.value:
                call("cuMemFree_v2", source)
                source = ctypes.c_uint64()
            size //= 2
            if size < _LEAST_BYTES:
                raise

    def copy() -> None:
        for _ in range(_COPIES_AT_ONCE):
            call("cuMemcpyDtoD_v2", target, source, ctypes.c_size_t(size))
        call("cuCtxSynchronize")

    return _best(copy, 2 * size * _COPIES_AT_ONCE)


def _best(copy: Callable[[], None], moved_bytes: int) -> float:
    copy()
    best_s, end = float("inf"), time.perf_counter() + _MEASURE_S
    while time.perf_counter() < end or best_s == float("inf"):
        begin = time.perf_counter()
        copy()
        best_s = min(best_s, time.perf_counter() - begin)
    return moved_bytes / best_s / 1e9


def _work(send: Callable[[Message], None]) -> None:
    from coe_cli.runtime.providers import settings_from, usable_cores

    settings = settings_from()
    if sys.argv[1] == "cpu":
        from coe_cli.runtime.probes.cpu import read_memory

        free_mb = read_memory().free_mb
        size = _COPY_BYTES if free_mb is None else min(_COPY_BYTES, int(free_mb * BYTES_PER_MB / 8))
        send({"gb_per_s": copy_on_cpu(settings.threads or usable_cores(), max(size, _LEAST_BYTES))})
        return
    try:
        driver = ctypes.CDLL(_LIBRARIES.get(sys.platform, "libcuda.so.1"))
    except OSError as error:
        raise DeviceLost(f"the CUDA driver cannot be loaded: {error}", "See `coe doctor`.") from None
    send({"gb_per_s": copy_on_cuda(driver, settings.index or 0)})


if __name__ == "__main__":
    sys.exit(serve_as_child(_work, "bandwidth measurement"))
