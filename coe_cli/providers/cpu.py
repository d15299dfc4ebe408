"""The CPU: session options, and the bandwidth of the system's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coe_cli.core.providers.cpu import PROVIDER
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.providers.bandwidth import COPY_BYTES, LEAST_BYTES, best_gb_per_s
from coe_cli.providers.base import DeviceSettings, MeasuresBandwidth, ProviderRuntime


class CpuRuntime(ProviderRuntime, MeasuresBandwidth):
    def offered_by(self, oga: Any) -> bool:
        return True

    def session_options(self, threads: int) -> dict[str, str | int | bool]:
        """Memory patterns are off: for each pair of lengths that it has seen before ONNX Runtime takes all buffers of a run
        as one block, which finds no room between the pieces that other lengths left, so a worker's arena grew to twice what
        its largest prompt needs (docs/memory.md).
        """
        return {"intra_op_num_threads": threads, "enable_mem_pattern": False}

    def configure(self, oga: Any, config: Any, options: Mapping[str, str]) -> None:
        """What has no provider runs on the CPU."""

    def copy_gb_per_s(self, settings: DeviceSettings) -> float:
        from coe_cli.probes.cpu import read_memory
        from coe_cli.providers.settings import usable_cores

        free_mb = read_memory().free_mb
        size = COPY_BYTES if free_mb is None else min(COPY_BYTES, int(free_mb * BYTES_PER_MB / 8))
        return copy_on_cpu(settings.threads or usable_cores(), max(size, LEAST_BYTES))


def copy_on_cpu(threads: int, size: int = COPY_BYTES) -> float:
    """10**9 bytes/s of the best copy by ``threads`` threads, each with a part of its own (the STREAM copy, McCalpin)."""
    import concurrent.futures

    import numpy as np

    part = size // threads
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pairs = list(pool.map(lambda _: (np.ones(part, np.uint8), np.zeros(part, np.uint8)), range(threads)))

        def copy() -> None:
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

        return best_gb_per_s(copy, 2 * part * threads)


RUNTIME = CpuRuntime(PROVIDER)
