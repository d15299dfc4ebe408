"""Probes: structures against their documented layout, documented outputs through the parsers, and profile choice."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from coe_cli.core.hardware.machine import Adapter, Machine, card_mb, free_mb, pick_profile
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.probes import ProbeFailed, dxgi, nvidia, pdh
from coe_cli.probes.amd_sysfs import AmdSysfsProbe, open_amd
from coe_cli.probes.cpu import read_memory
from coe_cli.probes.pci import PciProbe
from coe_cli.runtime.doctor.devices import check_adapters
from coe_cli.runtime.folders import profile_paths
from coe_cli.runtime.probe import merge_adapters, probe_machine, remember, remembered
from coe_cli.runtime.settings import load_profiles

FIXTURES = Path(__file__).parent / "fixtures" / "probes"
PROFILES = load_profiles(profile_paths()[:1])

pytestmark = pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="the layouts are those of 64-bit systems")


def test_dxgi_structures_have_their_documented_layout() -> None:
    desc = dxgi.AdapterDesc1
    assert ctypes.sizeof(dxgi.Guid) == 16
    assert ctypes.sizeof(dxgi.Luid) == 8
    assert ctypes.sizeof(desc) == 312
    offsets = {name: getattr(desc, name).offset for name, *_ in desc._fields_}
    assert offsets == {
        "description": 0,
        "vendor_id": 256,
        "device_id": 260,
        "sub_sys_id": 264,
        "revision": 268,
        "dedicated_video_memory": 272,
        "dedicated_system_memory": 280,
        "shared_system_memory": 288,
        "adapter_luid": 296,
        "flags": 304,
    }


def test_factory_id_is_the_documented_one() -> None:
    import uuid

    assert uuid.UUID(bytes_le=bytes(dxgi.IID_FACTORY1)) == uuid.UUID("770aae78-f26f-4dba-a829-253c83d1b387")


def test_pdh_structures_have_their_documented_layout() -> None:
    assert pdh.CounterValue.status.offset == pdh.CounterItem.name.offset == 0
    assert (ctypes.sizeof(pdh.CounterValue), pdh.CounterValue.large_value.offset) == (16, 8)
    assert (ctypes.sizeof(pdh.CounterItem), pdh.CounterItem.value.offset) == (24, 8)


def description(name: str, dedicated: int, shared: int, flags: int = 0) -> dxgi.AdapterDesc1:
    desc = dxgi.AdapterDesc1()
    encoded = name.encode("utf-16-le")
    ctypes.memmove(desc.description, encoded, len(encoded))
    desc.vendor_id, desc.device_id = 0x1002, 0x744C
    desc.dedicated_video_memory, desc.shared_system_memory, desc.flags = dedicated, shared, flags
    desc.adapter_luid.low_part, desc.adapter_luid.high_part = 0xD1F2, 0
    return desc


def test_dxgi_descriptions_become_adapters_with_their_usage() -> None:
    adapter = dxgi.adapter_from(description("AMD Radeon RX 7900 XTX", 24 * 2**30, 32 * 2**30))
    assert adapter is not None
    assert (adapter.name, adapter.luid, adapter.dedicated_mb, adapter.used_mb) == (
        "AMD Radeon RX 7900 XTX",
        0xD1F2,
        24576,
        None,
    )
    recorded = json.loads((FIXTURES / "pdh_gpu_adapter_memory.json").read_text())
    usage = pdh.usage_from(recorded["dedicated"], recorded["shared"])
    (seen,) = dxgi.with_usage([adapter], usage)
    assert (seen.used_mb, seen.shared_used_mb) == (2048, 100)
    assert usage[0xE0A1] == pdh.AdapterUsage(dedicated_bytes=0, shared_bytes=None)
    assert dxgi.with_usage([adapter], {}) == [adapter]


def test_a_software_renderer_is_no_adapter() -> None:
    assert dxgi.adapter_from(description("Microsoft Basic Render Driver", 0, 2**34, dxgi.FLAG_SOFTWARE)) is None


@pytest.mark.parametrize(
    ("instance", "luid"),
    [
        ("luid_0x00000000_0x0000D1F2_phys_0", 0xD1F2),
        ("luid_0x00000001_0x0000d1f2_phys_1", 0x1_0000_D1F2),
        ("pid_12_luid_0x00000000_0x0000D1F2_phys_0", None),
        ("_Total", None),
        ("", None),
    ],
)
def test_luids_in_counter_instances(instance: str, luid: int | None) -> None:
    assert pdh.luid_of(instance) == luid


@pytest.mark.skipif(sys.platform == "win32", reason="they answer there")
def test_windows_sources_refuse_elsewhere() -> None:
    assert not dxgi.DxgiProbe().available()
    with pytest.raises(ProbeFailed):
        dxgi.DxgiProbe().adapters()
    with pytest.raises(ProbeFailed):
        pdh.read_usage()


def test_amd_cards_in_sysfs() -> None:
    (card,) = AmdSysfsProbe(FIXTURES / "amd").adapters()
    assert (card.dedicated_mb, card.shared_mb) == (25753026560 / BYTES_PER_MB, 33556467712 / BYTES_PER_MB)
    assert card.used_mb == 1717223424 / BYTES_PER_MB
    assert card.integrated is False
    memory = open_amd(FIXTURES / "amd")
    assert memory is not None
    assert (memory.name, memory.total_mb, memory.used_mb()) == (card.name, card.dedicated_mb, card.used_mb)


def test_real_amd_cards_in_sysfs() -> None:
    (newer,) = AmdSysfsProbe(FIXTURES / "amd_rx7900xt").adapters()
    assert newer.dedicated_mb == 21_458_059_264 / BYTES_PER_MB
    assert newer.used_mb == 27_856_896 / BYTES_PER_MB
    assert (newer.shared_mb, newer.identity, newer.integrated) == (None, "pci:1002:744c", False)
    (older,) = AmdSysfsProbe(FIXTURES / "amd_rx570").adapters()
    assert (older.dedicated_mb, older.used_mb, older.integrated) == (4096, None, False)
    assert card_mb(Machine((older,), True, 16_000.0), "dml") == 4096  # the driver's odd GTT size does not count


def test_a_real_radeon_in_windows_counters() -> None:
    recorded = json.loads((FIXTURES / "pdh_radeon_8060s.json").read_text())
    usage = pdh.usage_from(recorded["dedicated"], recorded["shared"])
    assert set(usage) == {86826, 94361, 94260}  # one adapter and two that no adapter has
    adapter = Adapter("AMD Radeon(TM) 8060S Graphics", "dxgi", 512.0, 64_000.0, luid=86826)
    (seen,) = dxgi.with_usage([adapter], usage)
    assert seen.used_mb == pytest.approx(0.947 * 1024, abs=0.01)
    assert seen.shared_used_mb == pytest.approx(0.141 * 1024, abs=0.01)


def test_a_real_nvidia_card() -> None:
    recorded = json.loads((FIXTURES / "nvml_h100.json").read_text())["devices"][0]
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: recorded["name"],
        nvmlDeviceGetUUID=lambda handle: recorded["uuid"],
        nvmlMemory_v2=2,
        nvmlDeviceGetMemoryInfo=lambda handle, version=1: SimpleNamespace(
            **recorded["memory_v2" if version == 2 else "memory"]
        ),
    )
    adapter = nvidia.read_adapter(nvml, 0)
    assert (adapter.name, round(adapter.dedicated_mb or 0), adapter.used_mb, adapter.reserved_mb) == (
        "NVIDIA H100 80GB HBM3",
        81559,  # as nvidia-smi says of the same card
        480,
        480,
    )
    (told,) = check_adapters([adapter], [], [])
    assert told.message == "0: NVIDIA H100 80GB HBM3: 79.6 GB of its own, 0 MB in use, 480 MB kept by the driver"
    assert round(free_mb(Machine((adapter,), True), "cuda") or 0) == 81079


def test_an_amd_card_whose_driver_says_nothing_stays_unknown(tmp_path: Path) -> None:
    device = tmp_path / "card0" / "device"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x1002\n")
    (device / "mem_info_vram_total").write_text("garbage\n")
    (card,) = AmdSysfsProbe(tmp_path).adapters()
    assert (card.dedicated_mb, card.used_mb, card.integrated) == (None, None, None)


class Nvml:
    """The part of NVML's interface that the probe calls; ``silent`` names calls that the driver refuses."""

    NVMLError = RuntimeError

    def __init__(self, *silent: str) -> None:
        self._silent = silent

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return self._answer("name", b"NVIDIA GeForce RTX 4090")

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return self._answer("memory", SimpleNamespace(total=24564 * BYTES_PER_MB, used=1024 * BYTES_PER_MB, free=0))

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self._answer("uuid", "GPU-1")

    def _answer(self, call: str, value):  # type: ignore[no-untyped-def]
        if call in self._silent:
            raise self.NVMLError("Not Supported")
        return value


def test_nvidia_adapters_and_what_a_driver_keeps_to_itself() -> None:
    told = nvidia.read_adapter(Nvml(), 0)
    assert (told.name, told.dedicated_mb, told.used_mb, told.reserved_mb, told.identity) == (
        "NVIDIA GeForce RTX 4090",
        24564,
        1024,
        None,  # older than the call that tells it apart
        "GPU-1",
    )
    untold = nvidia.read_adapter(Nvml("memory", "uuid", "name"), 1)
    assert (untold.name, untold.dedicated_mb, untold.used_mb, untold.identity) == ("NVIDIA adapter 1", None, None, None)


def pci_bus(folder: Path, *devices: tuple[str, str]) -> Path:
    for index, (kind, vendor) in enumerate(devices):
        device = folder / f"0000:0{index}:00.0"
        device.mkdir(parents=True)
        for name, value in (("class", kind), ("vendor", vendor), ("device", "0x1234")):
            (device / name).write_text(value + "\n")
    folder.mkdir(exist_ok=True)
    return folder


def test_the_pci_bus_shows_makers_of_gpus_only(tmp_path: Path) -> None:
    bus = pci_bus(tmp_path / "bus", ("0x030000", "0x10de"), ("0x030000", "0x1af4"), ("0x020000", "0x8086"))
    (adapter,) = PciProbe(bus).adapters()
    assert (adapter.name, adapter.dedicated_mb) == ("NVIDIA 0x1234", None)


class Source:
    def __init__(self, name: str, *adapters: Adapter, failure: str = "") -> None:
        self.name, self._adapters, self._failure = name, adapters, failure

    def available(self) -> bool:
        return True

    def adapters(self) -> list[Adapter]:
        if self._failure:
            raise ProbeFailed(self._failure)
        return list(self._adapters)


def test_one_card_seen_twice_is_one_card() -> None:
    windows = Adapter("NVIDIA GeForce RTX 4090", "dxgi", 24000.0, 16000.0, luid=1)
    driver = Adapter("NVIDIA GeForce RTX 4090", "nvml", 24564.0, used_mb=900.0)
    assert merge_adapters([windows], [driver]) == [
        Adapter("NVIDIA GeForce RTX 4090", "dxgi", 24000.0, 16000.0, used_mb=900.0, luid=1)
    ]
    assert len(merge_adapters([windows, windows], [driver, driver])) == 2
    assert merge_adapters([driver], [Adapter("NVIDIA 0x2684", "pci", identity="pci:10de:2684")]) == [driver]


def test_a_probe_that_fails_is_named_and_the_others_still_answer() -> None:
    machine = probe_machine([Source("nvml", failure="driver mismatch"), Source("pci", Adapter("AMD 0x1", "pci"))])
    assert machine.problems == ("nvml: driver mismatch",)
    assert machine.gpu_known
    assert [adapter.name for adapter in machine.adapters] == ["AMD 0x1"]
    assert not probe_machine([Source("nvml")]).gpu_known
    assert machine.memory_mb is not None and machine.memory_mb > 0


def test_system_memory_is_told() -> None:
    memory = read_memory()
    assert memory.total_mb is not None and memory.free_mb is not None
    assert 0 < memory.free_mb <= memory.total_mb


def test_what_was_found_is_remembered(tmp_path: Path) -> None:
    machine = Machine((Adapter("card", "nvml", 1.0),), True, 2.0, 1.0, ("p",))
    assert remembered(tmp_path) is None
    remember(machine, tmp_path / "state")
    assert remembered(tmp_path / "state") == machine
    (tmp_path / "state" / "machine.json").write_text("{")
    assert remembered(tmp_path / "state") is None


def test_integrated_graphics_are_bounded_by_the_systems_memory() -> None:
    shared = Adapter("Radeon 780M", "dxgi", 512.0, 16_000.0, used_mb=300.0, shared_used_mb=1_000.0)
    assert card_mb(Machine((shared,), True, 32_000.0, 20_000.0), "dml") == 16_512
    assert card_mb(Machine((shared,), True, 12_000.0, 9_000.0), "dml") == 12_512
    assert free_mb(Machine((shared,), True, 32_000.0, 20_000.0), "dml") == 15_212
    assert free_mb(Machine((shared,), True, 32_000.0, 4_000.0), "dml") == 4_000
    assert free_mb(Machine((Adapter("x", "nvml", 24_000.0),), True), "cuda") is None
    assert card_mb(Machine((Adapter("AMD", "amd_sysfs", 24_000.0),), True), "cuda") is None


@pytest.mark.parametrize(
    ("size_mb", "profile"),
    [
        (8_192, "embedded"),
        (8_889, "minimal"),
        (12_288, "minimal"),
        (16_384, "minimal"),
        (24_576, "compact"),
        (49_152, "standard"),
        (65_536, "performance"),
        (81_559, "unlimited"),
    ],
)
def test_the_guides_choice_of_a_profile(size_mb: float, profile: str) -> None:
    chosen, reason = pick_profile(Machine((Adapter("a", "nvml", float(size_mb)),), True), PROFILES)
    assert chosen.name == profile
    assert reason


def test_no_gpu_is_embedded_and_unknown_is_the_fallback() -> None:
    assert pick_profile(Machine(gpu_known=True), PROFILES)[0].name == "embedded"
    assert pick_profile(Machine(gpu_known=False), PROFILES)[0].name == "standard"
    assert pick_profile(Machine((Adapter("NVIDIA", "pci"),), True), PROFILES)[0].name == "standard"
