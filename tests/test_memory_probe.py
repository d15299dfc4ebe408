"""The probes against a card's recorded and made-up answers, and what of real runs is recorded for the next plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.probes import pdh
from coe_cli.providers.cuda import NvmlMemory
from coe_cli.runtime.college.calibration_recorder import CalibrationRecorder
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.memory_probe import (
    GpuProbe,
    MemoryProbe,
    RssProbe,
    memory_probe_for,
    usage_sampler,
)
from coe_cli.runtime.folders import folders, profile_paths
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.planning.calibration_store import CalibrationStore
from coe_cli.runtime.settings import load_profiles

FIXTURES = Path(__file__).parent / "fixtures" / "probes"
PROFILES = load_profiles(profile_paths()[:1])
MODEL = Path(__file__).parent.parent / "models" / "smollm2-135m"


class Card:
    """A card that says what the test sets."""

    name, total_mb = "card", 24_000.0

    def __init__(self, used_mb: float | None, processes: dict[int, float] | None) -> None:
        self.used, self.processes = used_mb, processes

    def used_mb(self) -> float | None:
        return self.used

    def process_mb(self) -> dict[int, float] | None:
        return self.processes


def test_other_programs_count_only_beyond_what_the_budget_leaves_them() -> None:
    card = Card(3_000.0, {1: 1_000.0})
    memory_probe = GpuProbe(card, slack_mb=2_000.0)
    assert memory_probe.used_mb([7]) == 1_000.0  # 3000 of others, 2000 of them free of charge
    card.used, card.processes = 9_000.0, {1: 1_000.0, 7: 6_000.0}
    assert memory_probe.used_mb([7]) == 6_000.0 + 1_000.0
    assert memory_probe.used_mb([]) == 7_000.0
    assert (memory_probe.process_mb(7), memory_probe.process_mb(8)) == (6_000.0, None)


def test_without_processes_what_was_there_at_the_start_is_the_others() -> None:
    card = Card(3_000.0, None)
    memory_probe = GpuProbe(card, slack_mb=4_000.0)
    card.used = 8_000.0
    assert memory_probe.used_mb([7]) == 5_000.0
    assert memory_probe.process_mb(7) is None
    card.used = None
    assert memory_probe.used_mb([7]) is None


@given(st.floats(0, 1e5), st.dictionaries(st.integers(1, 9), st.floats(0, 1e4)), st.floats(0, 1e5))
def test_usage_is_never_less_than_coes_own(used: float, processes: dict[int, float], slack: float) -> None:
    own = sum(mb for pid, mb in processes.items() if pid < 4)
    measured = GpuProbe(Card(used, processes), slack).used_mb([1, 2, 3])
    assert measured is not None and measured >= own * (1 - 1e-12)


class RecordedNvml:
    """NVML as a real card answered it (see the fixtures' README)."""

    NVMLError = RuntimeError
    nvmlMemory_v2 = 2

    def __init__(self) -> None:
        self.recorded = json.loads((FIXTURES / "nvml_h100.json").read_text())
        self.device = self.recorded["devices"][0]

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return str(self.device["name"])

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return str(self.device["uuid"])

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> SimpleNamespace:
        return SimpleNamespace(**self.device["memory_v2" if version == 2 else "memory"])

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:
        return []

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [
            SimpleNamespace(pid=p["pid"], usedGpuMemory=p["usedGpuMemory"]) for p in self.recorded["running_a_worker"]
        ]


def test_a_real_cards_answers() -> None:
    card = NvmlMemory(RecordedNvml(), 0)
    assert card.name == "NVIDIA H100 80GB HBM3"
    assert card.total_mb == (85_520_809_984 - 503_316_480) / BYTES_PER_MB
    assert card.used_mb() == 0  # the driver's own 480 MB are not a program's
    assert card.process_mb() == {13334: 8_847_884_288 / BYTES_PER_MB}


def test_a_driver_that_keeps_processes_to_itself_is_unknown() -> None:
    nvml = RecordedNvml()
    nvml.recorded["running_a_worker"].append({"pid": 4, "usedGpuMemory": None})
    assert NvmlMemory(nvml, 0).process_mb() is None


def test_processes_in_windows_counters() -> None:
    pairs = [
        ("pid_1234_luid_0x00000000_0x0000D1F2_phys_0", 100 * BYTES_PER_MB),
        ("pid_1234_luid_0x00000000_0x0000D1F2_phys_1", 50 * BYTES_PER_MB),
        ("pid_1234_luid_0x00000000_0x0000E0A1_phys_0", 70 * BYTES_PER_MB),
        ("pid_9_luid_0x00000000_0x0000D1F2_phys_0", -1),
        ("luid_0x00000000_0x0000D1F2_phys_0", 5),
        ("_Total", 5),
    ]
    assert pdh.process_usage_from(pairs, 0xD1F2) == {1234: 150.0}


def test_the_profile_decides_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COE_DEVICE", raising=False)
    assert isinstance(memory_probe_for(PROFILES.select("embedded")), RssProbe)
    if sys.platform != "win32":
        assert type(memory_probe_for(PROFILES.select("standard"))) is MemoryProbe


def test_the_resident_set_of_a_process_is_what_psutil_says() -> None:
    import psutil

    memory_probe = RssProbe()
    here = memory_probe.process_mb(os.getpid())
    assert here == pytest.approx(psutil.Process().memory_info().rss / BYTES_PER_MB, rel=0.1)
    assert memory_probe.used_mb([os.getpid(), 2**22 + 1]) == pytest.approx(here, rel=0.1)


def test_the_gauge_has_the_pools_pressure(tmp_path: Path) -> None:
    from msgspec import structs

    used_mb = RssProbe().process_mb(os.getpid())
    assert used_mb is not None
    profile = structs.replace(PROFILES.select("embedded"), vram_budget_mb=round(2_000 + used_mb / 0.85))
    seen = usage_sampler("cpu", profile)(os.getpid())
    assert seen is not None and seen[2] == "elevated"
    assert usage_sampler("cpu", profile)(2**22 + 1) is None


# --- recording


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COE_STATE_DIR", str(tmp_path))
    return tmp_path


def sleeper() -> subprocess.Popen[bytes]:
    """A process that holds some memory and takes 64 MB more for each line that it is sent."""
    code = "import sys\nheld=[]\nprint('up', flush=True)\nfor line in sys.stdin:\n held.append(bytearray(b'x')*(64<<20)); print('ok', flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def grow(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    process.stdout.readline()


def records(state: Path) -> list[dict[str, Any]]:
    path = state / "calibration.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_load_and_its_first_answer_are_recorded(own_state: Path) -> None:
    spec, process = spec_from_folder("m", MODEL), sleeper()
    recorder = CalibrationRecorder(CalibrationStore(own_state), clock=lambda: 5.0)
    try:
        recorder.loaded(spec, process.pid)
        recorder.begun(process.pid, beside=False)
        grow(process)
        recorder.answered(spec, process.pid, 4096, 100)
        grow(process)
        recorder.begun(process.pid, beside=False)
        recorder.answered(spec, process.pid, 4096, 100)
        recorder.wait()
    finally:
        process.kill()
        process.communicate()
    load, generation = sorted(records(own_state), key=lambda item: item["kind"], reverse=True)
    assert (load["kind"], generation["kind"]) == ("load", "generation")
    assert generation["measured_bytes"] == pytest.approx(64 * BYTES_PER_MB, rel=0.05)
    assert (generation["context_length"], generation["prompt_tokens"], generation["at_s"]) == (4096, 100, 5.0)
    assert generation["predicted_bytes"] > 180 * BYTES_PER_MB  # the cache of 4096 tokens
    assert load["provider"] == load["adapter"] == "cpu"


def test_answers_side_by_side_are_not_recorded(own_state: Path) -> None:
    spec, process = spec_from_folder("m", MODEL), sleeper()
    recorder = CalibrationRecorder(CalibrationStore(own_state))
    try:
        recorder.loaded(spec, process.pid)
        recorder.begun(process.pid, beside=False)
        recorder.begun(process.pid, beside=True)
        grow(process)
        recorder.answered(spec, process.pid, 4096, 100)
        recorder.answered(spec, process.pid, 4096, 100)
        recorder.answered(spec, process.pid + 1, 4096, 100)
        recorder.wait()
    finally:
        process.kill()
        process.communicate()
    assert [item["kind"] for item in records(own_state)] == ["load"]


def test_a_state_folder_that_cannot_be_written_disturbs_nobody(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in its place")
    spec, process = spec_from_folder("m", MODEL), sleeper()
    recorder = CalibrationRecorder(CalibrationStore(tmp_path / "state"))
    try:
        recorder.loaded(spec, process.pid)
        recorder.wait()
    finally:
        process.kill()
        process.communicate()


def test_the_college_charges_what_the_plan_says_and_learns_from_a_record(own_state: Path) -> None:
    from coe_cli.core.memory.footprint import ExactAccounting
    from coe_cli.runtime.planning.plan_inputs import memory_of

    spec, profile = spec_from_folder("smollm2-135m", MODEL), PROFILES.select("embedded")
    counting, memory = ExactAccounting(), memory_of(spec)
    cost, context = cost_in(profile)(spec)
    assert context == 4096
    planned = counting.weights_bytes(memory)
    for slots in range(1, 4):
        planned += counting.slot(memory, context, before=slots - 1).total_bytes
        charged_mb = cost.weights_mb + slots * (cost.kv_mb + cost.activation_mb)
        assert charged_mb == pytest.approx(planned / BYTES_PER_MB), f"{slots} slots"
    shared_mb = cost.weights_mb - counting.weights_bytes(memory) / BYTES_PER_MB
    process = sleeper()
    try:
        for _ in range(3):
            grow(process)
        recorder = CalibrationRecorder(CalibrationStore(folders().state))
        recorder.loaded(spec, process.pid)
        recorder.wait()
    finally:
        process.kill()
        process.communicate()
    (record,) = records(own_state)
    learnt_mb = cost_in(profile)(spec)[0].weights_mb
    learnt = msgspec.structs.replace(memory, measured_load_bytes=record["measured_bytes"])
    assert learnt_mb == pytest.approx(counting.weights_bytes(learnt) / BYTES_PER_MB + shared_mb)
    assert learnt_mb != pytest.approx(cost.weights_mb)
