"""`coe doctor` and device settings: each thing that goes wrong is a finding with the command that fixes it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from operating_system import make_link

from coe_cli.core.findings import Finding, Level, worst
from coe_cli.core.hardware.machine import Adapter, Machine
from coe_cli.errors import DeviceLost, UsageError
from coe_cli.providers import runtime_of
from coe_cli.providers.base import DeviceSettings
from coe_cli.providers.installed import choose_provider
from coe_cli.providers.settings import settings_from
from coe_cli.runtime import doctor
from coe_cli.runtime.bundle import redact
from coe_cli.runtime.doctor import places
from coe_cli.runtime.doctor.devices import _linux_drivers, check_adapters, check_budget
from coe_cli.runtime.doctor.software import check_oga, check_packages
from coe_cli.runtime.folders import profile_paths
from coe_cli.runtime.settings import load_profiles
from coe_cli.runtime.worker.oga_report import OgaReport, read_oga
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model


def bad(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is not Level.OK]


def test_the_report_has_these_keys_and_a_fix_for_each_problem(coe: Coe) -> None:
    write_tiny_model(coe.models / "tiny")
    report = coe("doctor", "--format", "json", "-p", "embedded").json
    assert report.keys() == {"schema_version", "status", "findings"}
    assert all(finding.keys() == {"check", "level", "message", "fix"} for finding in report["findings"])
    checks = {finding["check"] for finding in report["findings"]}
    assert checks >= {
        *("system", "python", "packages", "runtime", "adapters", "memory", "models", "college", "folders", "disk"),
    }
    assert all(bool(finding["fix"]) == (finding["level"] != "ok") for finding in report["findings"])
    (runs,) = [f for f in report["findings"] if "tiny runs on cpu" in f["message"]]
    assert runs["level"] == "ok"


def test_its_exit_code_is_1_when_something_is_wrong(coe: Coe) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    assert coe("doctor", "-p", "embedded").code == 0
    (folder / "model.onnx.data").unlink()
    result = coe("doctor", "-p", "embedded")
    assert result.code == 1
    assert "model.onnx.data" in result.stdout and "coe models pull tiny --force" in result.stdout


def test_duplicates_unoptimized_models_and_an_empty_folder(coe: Coe) -> None:
    def messages() -> dict[str, str]:
        report = coe("doctor", "--format", "json", "-p", "embedded").json
        return {finding["message"]: finding["fix"] for finding in report["findings"] if finding["level"] == "warning"}

    assert "coe models pull smollm2-135m" in messages().values()
    folder = write_tiny_model(coe.models / "a")
    shutil.copytree(folder, coe.models / "b")
    found = messages()
    assert found["a and b hold the same weights"] == "coe models rm b"
    assert "coe models optimize a" in found.values()


def test_a_process_that_cannot_be_read_is_passed_over(coe: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and Wine have refusals about ending processes that psutil passes on as they are."""

    def refuse(process: psutil.Process) -> list[str]:
        raise OSError(0, "Invalid parameter (originated from NtQueryInformationProcess)")

    folder = write_tiny_model(coe.models / "tiny")
    monkeypatch.setattr(psutil.Process, "cmdline", refuse)
    assert coe("doctor", "-p", "embedded").code == 0
    assert coe("models", "rm", "tiny").code == 0
    assert not folder.exists()


CHECKS = [name for name in vars(doctor) if name.startswith("check_")]


@pytest.mark.parametrize("broken", CHECKS)
def test_a_check_that_the_system_refuses_is_one_finding(coe: Coe, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def refuse(*arguments: object, **options: object) -> list[Finding]:
        raise OSError(5, "planted")

    write_tiny_model(coe.models / "tiny")
    monkeypatch.setattr(doctor, broken, refuse)
    result = coe("doctor", "--format", "json", "-p", "embedded")
    refused = [finding for finding in result.json["findings"] if "planted" in finding["message"]]
    assert [(finding["level"], bool(finding["fix"])) for finding in refused] == [("warning", True)]
    assert len(result.json["findings"]) > len(CHECKS) - 2


def test_a_model_for_another_device_says_where_it_will_run(coe: Coe) -> None:
    path = write_tiny_model(coe.models / "gpu") / "genai_config.json"
    path.write_text(path.read_text().replace('"provider_options": []', '"provider_options": [{"dml": {}}]'))
    if sys.platform == "win32":
        pytest.skip("DirectML is there")
    assert "slower: gpu was built for dml" in re.sub(r"\s+", " ", coe("doctor").stdout)


def test_falling_back_to_the_cpu_is_said_on_stderr_and_answers(coe: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    path = write_tiny_model(coe.models / "gpu") / "genai_config.json"
    path.write_text(path.read_text().replace('"provider_options": []', '"provider_options": [{"cuda": {}}]'))
    for _ in range(2):
        result = coe("ask", "--no-live", "-m", "gpu", "--max-tokens", "3", "hello")
        assert result.code == 0, result.stderr
        assert "slower: gpu was built for cuda, which is not installed here, and runs on the CPU" in result.stderr


def test_folders_that_are_files_or_full(coe: Coe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coe_cli.runtime.folders import folders

    (tmp_path / "state").write_text("")
    wrong = bad(places.check_folders(folders()))
    assert any("is a file" in finding.message and "COE_STATE_DIR" in finding.fix for finding in wrong)
    monkeypatch.setattr(places, "_LOW_DISK_MB", 10**12)
    assert any(finding.check == "disk" for finding in bad(places.check_folders(folders())))
    monkeypatch.setattr(places, "free_mb", lambda folder: 0.5)
    full = [finding.message for finding in bad(places.check_folders(folders())) if finding.check == "folders"]
    assert [message for message in full if message.startswith("cache: ") and "full" in message]


def test_a_models_folder_whose_disk_is_not_there(coe: Coe, tmp_path: Path) -> None:
    from coe_cli.runtime.folders import folders

    coe.models.rmdir()
    make_link(coe.models, tmp_path / "unplugged")
    wrong = bad(places.check_folders(folders()))
    assert any("link to" in finding.message and "COE_MODELS_DIR" in finding.fix for finding in wrong)
    result = coe("models", "pull", "--yes", "smollm2-135m")
    assert result.code == 4
    assert f"is a link to {tmp_path / 'unplugged'}, which is not there" in result.stderr
    assert not (tmp_path / "unplugged").exists()


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (build@host)",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Mon Sep  1 00:00:00 UTC 2025",
    ],
)
def test_nvidias_open_and_closed_kernel_modules_tell_their_version(tmp_path: Path, line: str) -> None:
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text(line + "\nGCC version:  gcc version 15.3.0 (GCC)\n", encoding="utf-8")
    assert _linux_drivers(tmp_path) == ["nvidia 580.159.04"]


def test_slow_reading_is_a_warning(coe: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    assert places.check_reading(coe.models) == [], "too small to tell"
    (folder / "model.onnx.data").write_bytes(bytes(2 * 2**20))
    for limit, level in ((0.0, Level.OK), (1e12, Level.WARNING)):
        monkeypatch.setattr(places, "_SLOW_MB_S", limit)
        (finding,) = places.check_reading(coe.models)
        assert finding.level is level
    assert "SSD" in finding.fix


@pytest.mark.parametrize(
    ("packages", "platform", "says"),
    [
        ({"onnxruntime": "1.24.4"}, "linux", "ONNX Runtime GenAI is not installed"),
        ({"onnxruntime-genai": "0.18.0"}, "linux", "ONNX Runtime is not installed"),
        (
            {"onnxruntime-genai": "0.18.0", "onnxruntime": "1.32.0", "onnxruntime-directml": "1.24.4"},
            "win32",
            "overwrite each other",
        ),
        ({"onnxruntime-genai": "0.18.0", "onnxruntime": "1.32.0"}, "win32", "DirectML is not available"),
        ({"onnxruntime-genai-directml": "0.13.1", "onnxruntime-directml": "1.24.4"}, "linux", "Windows only"),
    ],
)
def test_package_sets_that_do_not_work(packages: dict[str, str], platform: str, says: str) -> None:
    wrong = bad(check_packages(packages, platform=platform))
    assert any(says in finding.message and "pip" in finding.fix for finding in wrong)


def test_what_oga_says_of_itself() -> None:
    report = read_oga()
    assert report.problem is None and report.version
    assert bad(check_oga(report, platform="linux")) == []
    broken = check_oga(OgaReport(problem="DLL load failed"), platform="win32")
    assert worst(broken) is Level.ERROR and "Visual C++" in broken[0].fix


@pytest.mark.parametrize(
    ("report", "level"),
    [
        (OgaReport("0.13.1"), Level.ERROR),
        (OgaReport("0.13.1", ["dml"]), Level.WARNING),
        (OgaReport("0.13.1", ["dml"], {"dml": {"path": "C:\\Windows\\System32\\DirectML.dll"}}), Level.WARNING),
        (
            OgaReport(
                "0.13.1",
                ["dml", "cpu"],
                {"dml": {"path": "C:\\venv\\onnxruntime\\capi\\DirectML.dll", "version": "1.15.4.0"}},
            ),
            Level.OK,
        ),
    ],
)
def test_directml_on_windows(report: OgaReport, level: Level) -> None:
    assert worst(check_oga(report, platform="win32")) is level


@pytest.mark.parametrize(
    ("package", "extra"), [("onnxruntime-genai-directml", "directml"), ("onnxruntime-genai-winml", "winml")]
)
def test_directml_comes_two_ways_and_each_is_mended_as_itself(package: str, extra: str) -> None:
    details = {"dml": {"package": package, "path": "C:\\venv\\DirectML.dll", "version": "1.15.4.0"}}
    said = check_oga(OgaReport("0.18.0", ["dml", "cpu"], details), platform="win32")
    assert any(package in finding.message and "docs/windows.md" in finding.message for finding in said)
    (broken,) = bad(check_oga(OgaReport("0.18.0", ["dml"], {"dml": {"package": package}}), platform="win32"))
    assert f"[{extra}]" in broken.fix and "--force-reinstall" in broken.fix
    both = {
        "onnxruntime-genai-directml": "0.13.1",
        "onnxruntime-genai-winml": "0.18.0",
        "onnxruntime-directml": "1.24.4",
    }
    (twice,) = bad(check_packages(both, platform="win32"))
    assert twice.fix.startswith(
        "pip uninstall -y onnxruntime-genai-directml onnxruntime-genai-winml onnxruntime-directml"
    )
    assert bad(check_packages({package: "0.18.0", "onnxruntime-windowsml": "1.30.0"}, platform="win32")) == []


def test_another_provider_of_the_card_is_enough_on_windows() -> None:
    packages = {"onnxruntime-genai": "0.18.0", "onnxruntime": "1.32.0", "onnxruntime-ep-webgpu": "0.4.0"}
    assert bad(check_packages(packages, platform="win32")) == []
    report = OgaReport("0.18.0", ["webgpu", "cpu"], {"webgpu": {"usable": "True"}})
    assert bad(check_oga(report, platform="win32")) == []


def test_a_profile_that_is_too_large_names_one_that_fits(coe: Coe) -> None:
    profiles = load_profiles(profile_paths())
    standard, embedded = profiles.select("standard"), profiles.select("embedded")

    def machine(*adapters: Adapter) -> Machine:
        return Machine(adapters, gpu_known=True, memory_mb=64_000.0)

    card = Adapter("A card", "dxgi", dedicated_mb=20_000.0, luid=(3 << 32) | 5)
    (finding,) = check_budget(standard, profiles, machine(card))
    assert finding.level is Level.WARNING and "-p compact" in finding.fix
    assert check_budget(profiles.select("compact"), profiles, machine(card))[0].level is Level.OK
    assert check_budget(standard, profiles, machine(Adapter("?", "pci")))[0].level is Level.WARNING
    assert check_budget(embedded, profiles, machine())[0].level is Level.OK
    integrated = Adapter("On the chip", "dxgi", dedicated_mb=512.0, shared_mb=40_000.0)
    assert check_budget(standard, profiles, machine(integrated))[0].level is Level.OK
    (seen, *_) = check_adapters([card], [], [])
    assert "COE_DEVICE=luid:3:5" in seen.message and "19.5 GB" in seen.message
    assert "unknown" in check_adapters([Adapter("?", "pci")], [], [])[0].message


def test_the_bundle_has_no_prompts_secrets_or_names(coe: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:pass@mirror.example/")
    coe.catalog()
    catalog = coe.folder / "config" / "experts.yaml"
    expert = "experts:\n  mine:\n    model: smollm2-135m\n    system_prompt: My private prompt\n"
    catalog.write_text(expert, encoding="utf-8")
    write_tiny_model(coe.models / "tiny")
    state = coe.folder / "state"
    state.mkdir(exist_ok=True)
    (state / "history.json").write_text("a private question")
    file = coe.folder / "report.zip"
    result = coe("doctor", "-p", "embedded", "--bundle", str(file))
    assert "look into it before you send it" in re.sub(r"\s+", " ", result.stderr)
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {"doctor.json", "environment.json", "models/tiny/genai_config.json"} <= content.keys()
    everything = "\n".join(content.values())
    for secret in ("hf_abcdefgh", "me:pass", "private", str(Path.home()) + "/"):
        assert secret not in everything
    assert json.loads(content["doctor.json"])["findings"]
    assert coe("doctor", "-p", "embedded", "--bundle", str(coe.folder / "no" / "such" / "x.zip")).code == 1


def test_redaction() -> None:
    text = f"{Path.home()}/models hf_Abc123 https://user:pw@host/x sk-12345"
    assert redact(text) == "~/models [removed] https://[removed]@host/x [removed]"


# Device settings


@pytest.mark.parametrize(
    ("environment", "provider", "options"),
    [
        ({}, "dml", {}),
        ({"COE_DEVICE": "1"}, "dml", {"device_index": "1"}),
        ({"COE_DEVICE": "luid:0:61166"}, "dml", {"luid": "0:61166"}),
        ({"COE_DEVICE": "1", "COE_GRAPH_CAPTURE": "0"}, "dml", {"device_index": "1", "enable_graph_capture": "0"}),
        (
            {"COE_DEVICE": "2", "COE_CUDA_ARENA": "as_requested"},
            "cuda",
            {"device_id": "2", "arena_extend_strategy": "1"},
        ),
        ({"COE_DEVICE": "1"}, "cpu", {}),
    ],
)
def test_device_settings(environment: dict[str, str], provider: str, options: dict[str, Any]) -> None:
    assert runtime_of(provider).provider_options(settings_from(environment)) == options


@pytest.mark.parametrize(
    "environment",
    [{"COE_DEVICE": "first"}, {"COE_DEVICE": "luid:1"}, {"COE_CUDA_ARENA": "x"}, {"COE_THREADS": "0"}],
)
def test_settings_that_cannot_be_read(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        settings_from(environment)


def test_threads_reach_the_cpu_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    from coe_cli.providers.settings import default_session_options

    monkeypatch.setenv("COE_THREADS", "3")
    assert default_session_options("cpu") == {"intra_op_num_threads": 3, "enable_mem_pattern": False}
    assert default_session_options("dml") == {}
    assert settings_from({}) == DeviceSettings()


def test_the_choice_of_a_provider() -> None:
    assert choose_provider("m", "dml", ["dml", "cpu"]) == ("dml", "it was built for dml")
    provider, why = choose_provider("m", "dml", ["cpu"])
    assert (provider, why.startswith("slower:")) == ("cpu", True)
    assert choose_provider("m", "cpu", ["dml", "cpu"])[0] == "cpu"
    with pytest.raises(DeviceLost):
        choose_provider("m", "dml", [])
