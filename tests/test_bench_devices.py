"""What a benchmark reads from devices: memory of one row beside other programs', and bandwidth; drivers stand in."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import eventually

from coe_cli.core.bench.bench_rows import Range
from coe_cli.errors import DeviceLost
from coe_cli.providers import bandwidth as card_bandwidth
from coe_cli.providers.cpu import copy_on_cpu
from coe_cli.providers.cuda import _nvml_handle, copy_on_cuda
from coe_cli.runtime.bench import bench_machine
from coe_cli.runtime.bench.bench_machine import measure_bandwidth
from coe_cli.runtime.bench.bench_memory import RowMemory, settled_mb
from coe_cli.runtime.college.memory_probe import GpuProbe, MemoryProbe, RssProbe

MB = 2**20


class Device(MemoryProbe):
    """A card whose memory in use is ``others`` and, while the row's process is there, ``own``."""

    settle_s = 1.0

    def __init__(self, *, tells_processes: bool = False) -> None:
        self.others, self.own = 1000.0, 0.0
        self.tells_processes = tells_processes

        self.looks = 0

    def in_use_mb(self) -> float | None:
        return self.others + self.own

    def process_mb(self, pid: int) -> float | None:
        self.looks += 1
        return self.own if self.tells_processes else None

    def process_peak_mb(self, pid: int) -> float | None:
        return None


def _row(device: Device, *, others_later: float | None = None) -> RowMemory:
    """A row whose process takes 500 MB, then 300; another program may come or go meanwhile."""
    memory = RowMemory(device)
    device.own = 500.0
    memory.follow(1)
    eventually(lambda: device.looks > 1)  # the first of them is over
    device.own = 300.0
    if others_later is not None:
        device.others = others_later
    memory.finish(1)
    device.own = 0.0
    memory.close()
    return memory


def test_the_peak_is_what_the_device_had_above_the_settled_baseline() -> None:
    memory = _row(Device())
    assert memory.peak_mb == 500.0
    assert memory.others == Range(1000.0, 1000.0)


def test_memory_that_another_program_takes_meanwhile_is_recorded_and_not_blamed_on_the_model() -> None:
    memory = _row(Device(), others_later=3000.0)
    assert memory.peak_mb is None
    assert memory.others == Range(1000.0, 3000.0)


def test_where_processes_are_told_apart_other_programs_do_not_matter() -> None:
    memory = _row(Device(tells_processes=True), others_later=3000.0)
    assert memory.peak_mb == 500.0


def test_a_baseline_is_waited_for_until_it_stops_changing() -> None:
    falling = iter([5000.0, 3000.0, 1500.0, 1000.0])
    last = 1000.0
    assert settled_mb(lambda: next(falling, last), 10.0) == 1000.0
    never = iter(range(0, 10**6, 100))
    assert settled_mb(lambda: float(next(never)), 0.3) is not None
    assert settled_mb(lambda: None, 10.0) is None


def test_the_systems_memory_of_a_process_that_is_gone_is_unknown() -> None:
    look = RssProbe()
    assert look.process_peak_mb(2**22 + 1) is None and look.process_mb(2**22 + 1) is None
    assert (look.in_use_mb() or 0) > 0


class FakeGpu:
    """An adapter whose driver tells ``processes``, or None."""

    name, total_mb = "a card", 8000.0

    def __init__(self, processes: dict[int, float] | None) -> None:
        self._processes = processes

    def used_mb(self) -> float | None:
        return 2000.0

    def process_mb(self) -> dict[int, float] | None:
        return self._processes


@pytest.mark.parametrize(
    ("processes", "expected"), [({7: 700.0, 8: 1.0}, 700.0), ({9: 1.0}, None), ({}, None), (None, None)]
)
def test_a_driver_tells_the_rows_process_or_nothing(processes: dict[int, float] | None, expected: float | None) -> None:
    look = GpuProbe(FakeGpu(processes))
    assert look.process_mb(7) == expected
    assert look.in_use_mb() == 2000.0


@pytest.mark.parametrize(
    ("index", "visible", "handle"),
    [
        (0, None, "device 0"),
        (1, "", "device 1"),
        (0, "3,1", "device 3"),
        (1, "3, 1", "device 1"),
        (0, "GPU-ab", "GPU-ab"),
    ],
)
def test_the_device_is_the_one_that_cuda_counts(index: int, visible: str | None, handle: str) -> None:
    nvml = SimpleNamespace(
        nvmlDeviceGetHandleByIndex=lambda number: f"device {number}", nvmlDeviceGetHandleByUUID=lambda uuid: uuid
    )
    assert _nvml_handle(nvml, index, visible) == handle


class FakeDriver:
    """A CUDA driver whose copies inside the card take ``copy_s``, with room for buffers of ``largest`` bytes."""

    def __init__(self, *, copy_s: float = 0.01, largest: int = 2**40, fails: str = "") -> None:
        self._copy_s, self._largest, self._fails = copy_s, largest, fails
        self.sizes: list[int] = []
        self.freed = 0
        self.now_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 999 if name == self._fails else 0

    def cuMemAlloc_v2(self, pointer: Any, size: ctypes.c_size_t) -> int:
        if size.value > self._largest:
            return 2  # CUDA_ERROR_OUT_OF_MEMORY
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint64))[0] = 1
        return 0

    def cuMemFree_v2(self, pointer: Any) -> int:
        self.freed += 1
        return 0

    def cuMemcpyDtoD_v2(self, target: Any, source: Any, size: ctypes.c_size_t) -> int:
        self.sizes.append(size.value)
        time.sleep(self._copy_s)
        self.now_s += self._copy_s
        return 0


def test_bandwidth_of_a_card_counts_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB copied in 20 ms are 200 MB moved: 10 GB/s."""
    driver = FakeDriver(copy_s=0.02)
    monkeypatch.setattr(card_bandwidth, "time", SimpleNamespace(perf_counter=lambda: driver.now_s))
    assert copy_on_cuda(driver, size=100_000_000) == pytest.approx(10)


def test_a_full_card_is_measured_with_smaller_copies() -> None:
    driver = FakeDriver(largest=100 * MB)
    copy_on_cuda(driver, size=256 * MB)
    assert set(driver.sizes) == {64 * MB}
    with pytest.raises(DeviceLost, match="cuMemAlloc_v2 failed with 2"):
        copy_on_cuda(FakeDriver(largest=0), size=256 * MB)


def test_a_driver_that_refuses_is_no_bandwidth() -> None:
    with pytest.raises(DeviceLost, match="cuInit failed with 999"):
        copy_on_cuda(FakeDriver(fails="cuInit"))


def test_bandwidth_of_this_machine() -> None:
    assert 0.1 < copy_on_cpu(1, 64 * MB) < 10_000


@pytest.fixture
def _no_child(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise DeviceLost("no driver")

    monkeypatch.setattr(bench_machine, "run_child", refuse)
    yield


@pytest.mark.usefixtures("_no_child")
def test_unknown_bandwidth_is_said_with_its_reason() -> None:
    assert measure_bandwidth("dml") == (
        None,
        "memory bandwidth is not measured on DirectML: shares of it are unknown",
    )
    assert measure_bandwidth("cuda") == (None, "memory bandwidth of cuda is unknown: no driver")
