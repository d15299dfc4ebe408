"""A provider is two files: nothing outside of them names one, and a toy one is planned, chosen, listed and configured."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY

import coe_cli
from coe_cli import package, providers
from coe_cli.core import providers as specs
from coe_cli.core.memory.footprint import ExactAccounting
from coe_cli.core.memory.planner import plan
from coe_cli.core.memory.scenario import Known, Role, Scenario
from coe_cli.core.models.model_spec import spec_from_catalog
from coe_cli.core.providers import all_specs, for_card, host, names, runs_on, spec_of
from coe_cli.errors import DeviceLost, OutOfMemory, UsageError
from coe_cli.providers.installed import choose_provider, install_command, installed_providers
from coe_cli.providers.settings import configure, default_session_options, settings_from
from coe_cli.runtime.doctor.software import check_packages
from coe_cli.runtime.folders import catalog_paths, profile_paths
from coe_cli.runtime.planning.plan_inputs import memory_of
from coe_cli.runtime.settings import load_catalog, load_profiles
from coe_cli.runtime.worker.oga_errors import from_oga

ROOT = Path(coe_cli.__file__).parent
NO_PROVIDER = {
    ("core/bench/bench_compare.py", "cpu"),
    ("runtime/routing/embedder_torch.py", "cpu"),
}
"""The processor's name in a report, and PyTorch's device."""
INSIDE = {ROOT / "core" / "providers", ROOT / "providers"}


def _named(path: Path) -> list[str]:
    """Strings of a file that are a provider's name, one of ONNX Runtime's names, packages or options for it, and imports of its modules."""
    wanted = {name for spec in all_specs() for name in (spec.name, spec.ort_name)}
    packages = {name for spec in all_specs() for name in (*spec.oga_packages, *spec.ort_packages, spec.plugin_package)}
    wanted |= {package for package in packages if package} - {*host().oga_packages, *host().ort_packages}
    where = path.relative_to(ROOT).as_posix()
    modules = re.compile(rf"coe_cli\.(core\.)?providers\._?({'|'.join(names())})(_\w+)?\b")
    parts = re.compile(rf"^(ep\.)?({'|'.join(names())})\.")
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(text := node.value, str):
            named = text in wanted or (" " not in text and parts.search(text))
            if named and (where, text) not in NO_PROVIDER:
                found.append(f"{where}:{node.lineno}: {text!r}")
        if isinstance(node, ast.ImportFrom) and node.module:
            imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found += [f"{where}:{node.lineno}: {name}" for name in imported if modules.match(name)]
    return found


def test_nothing_outside_names_a_provider() -> None:
    files = [path for path in ROOT.rglob("*.py") if not INSIDE & set(path.parents)]
    assert len(files) > 200
    assert [found for path in files for found in _named(path)] == []
    assert len([found for folder in INSIDE for path in folder.glob("*.py") for found in _named(path)]) > 10, "it finds"


def test_the_host_is_last_and_every_provider_has_both_files() -> None:
    assert host().name == names()[-1] and not host().on_card
    for name in names():
        assert (ROOT / "core" / "providers" / f"{name}.py").is_file()
        assert (ROOT / "providers" / f"{name}.py").is_file()
    with pytest.raises(ValueError, match="npu"):
        spec_of("npu")


def files_of_the_page() -> dict[str, str]:
    """Module → code of the two files of docs/adding-a-provider.md."""
    page = (REPOSITORY / "docs" / "adding-a-provider.md").read_text(encoding="utf-8")
    modules = ("coe_cli.core.providers.npu", "coe_cli.providers.npu")
    return dict(zip(modules, re.findall(r"```python\n(.*?)```", page, re.DOTALL), strict=True))


@pytest.fixture
def npu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The provider of docs/adding-a-provider.md, whose two files are found as those of the packages are."""
    for package_of_it, (name, code) in zip((specs, providers), files_of_the_page().items(), strict=True):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "npu.py").write_text(code, encoding="utf-8")
        monkeypatch.setattr(package_of_it, "__path__", [*package_of_it.__path__, str(folder)])
    all_specs.cache_clear()
    yield "npu"
    monkeypatch.undo()
    for name in files_of_the_page():
        sys.modules.pop(name, None)
    all_specs.cache_clear()
    providers.runtime_of.cache_clear()


class FakeConfig:
    """OGA's Config, which writes down what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


def test_a_toy_provider_of_two_files_is_planned_chosen_and_driven(npu: str) -> None:
    assert names() == ["dml", "cuda", "webgpu", npu, "cpu"]
    catalog, profile = load_catalog(catalog_paths()[:1]), load_profiles(profile_paths()[:1]).select("standard")
    spec = spec_from_catalog("BioMistral-7B-DML", catalog.models["BioMistral-7B-DML"])
    memory = memory_of(spec, npu)
    slot = ExactAccounting().slot(memory, 4096)
    assert (slot.kv_bytes, slot.activation_bytes % 2**21, memory.chunk_size) == (2**29, 0, 512)
    scenario = Scenario((Role("medical", spec.name),), slots=1, context_length=4096, budget_mb=20_000, provider=npu)
    planned = plan(profile, scenario, Known({spec.name: memory}))
    assert planned.provider == npu and planned.fits and planned.slots[0].kv_mb == 512.0
    assert choose_provider("m", npu, [npu, host().name])[0] == npu
    assert choose_provider("m", npu, [host().name])[0] == host().name
    found = check_packages({"onnxruntime-genai-npu": "1.0", "onnxruntime-npu": "1.0"}, platform="win32")
    assert any("NPU exists on Linux only" in finding.message for finding in found)
    config = FakeConfig()
    options = providers.runtime_of(npu).provider_options(settings_from({"COE_DEVICE": "1"}))
    configure(None, config, npu, options, default_session_options(npu))
    assert config.calls[1:] == [
        ("clear_providers",),
        ("append_provider", npu),
        ("set_provider_option", npu, "device", "1"),
    ]
    assert "disable_cpu_ep_fallback" in config.calls[0][1]
    error = from_oga(RuntimeError("a.cc:12 NPU_ERR_17"), model="m", provider=npu, loading=True)
    assert isinstance(error, DeviceLost) and "firmware is too old" in error.message
    assert error.hint == "Update the firmware."


def test_a_plugin_is_there_with_its_own_package_and_runs_what_other_cards_providers_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    webgpu = spec_of("webgpu")
    for packages, there in (
        ({"onnxruntime-genai"}, False),
        ({"onnxruntime-genai", "onnxruntime-ep-webgpu"}, True),
        ({"onnxruntime-genai-directml", "onnxruntime-ep-webgpu"}, False),
    ):
        assert webgpu.installed_with(packages) == there
        monkeypatch.setattr("importlib.metadata.version", _version_in(packages))
        assert ("webgpu" in installed_providers()) == there
    for built_for, expected in (("webgpu", "webgpu"), ("dml", "webgpu"), ("cuda", "webgpu"), ("cpu", "cpu")):
        assert choose_provider("m", built_for, ["webgpu", "cpu"])[0] == expected
    assert choose_provider("m", "cuda", ["cuda", "webgpu", "cpu"])[0] == "cuda"
    assert [runs_on(name) for name in ("dml", "webgpu", "cpu")] == [
        ["dml", "webgpu", "cpu"],
        ["webgpu", "cpu"],
        ["cpu"],
    ]
    assert install_command(webgpu, ["onnxruntime-genai", "onnxruntime"]) == package.install_command("webgpu")
    assert [
        for_card(maker, system).name for maker, system in (("amd", "linux"), ("nvidia", "linux"), ("amd", "win32"))
    ] == [
        "webgpu",
        "cuda",
        "dml",
    ]


def _version_in(packages: set[str]) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return "1.0"

    return version


def test_webgpu_records_runs_where_that_is_wanted_and_is_pointed_at_an_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", SimpleNamespace(get_library_path=lambda: "plugin.so"))
    monkeypatch.setattr("coe_cli.providers.webgpu._registered", [])
    monkeypatch.setenv("VK_LOADER_DEVICE_SELECT", "")
    registered: list[tuple[str, str]] = []
    oga = SimpleNamespace(register_execution_provider_library=lambda *arguments: registered.append(arguments))
    model = {"enableGraphCapture": "1", "enableInt64": "1", "validationMode": "full"}
    runtime = providers.runtime_of("webgpu")
    for environment, expected in (
        ({"COE_DEVICE": "pci:1002:744C"}, {"enableGraphCapture": "0", "enableInt64": "1"}),
        ({"COE_GRAPH_CAPTURE": "1"}, {"enableGraphCapture": "1", "enableInt64": "1"}),
    ):
        config = FakeConfig()
        configure(oga, config, "webgpu", runtime.provider_options(settings_from(environment)), {}, model)
        assert config.calls[:2] == [("clear_providers",), ("append_provider", "webgpu")]
        assert dict(call[2:] for call in config.calls[2:]) == expected
    assert os.environ["VK_LOADER_DEVICE_SELECT"] == "0x1002:0x744c"
    assert registered == [("WebGpuExecutionProvider", "plugin.so")]
    with pytest.raises(UsageError, match="COE_DEVICE"):
        settings_from({"COE_DEVICE": "pci:1002"})


@pytest.mark.parametrize(
    ("provider", "text", "kind", "message"),
    [
        (
            "dml",
            r"D:\a\_work\1\s\src\dml\dml_helpers.cpp(84)\onnxruntime-genai.dll!00007FFB2C1E4A7B: (caller: 00007FFB2C1E41F0)"
            " Exception(1) tid(1f4c) 887A0005 The GPU device instance has been suspended.",
            DeviceLost,
            "the device was lost while running `m` on dml: 887A0005 The GPU device instance has been suspended.",
        ),
        (
            "cuda",
            "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal"
            "(size_t, bool) Failed to allocate memory for requested buffer of size 134217728",
            OutOfMemory,
            "out of memory running `m` on cuda: Failed to allocate memory for requested buffer of size 134217728",
        ),
        (
            "dml",
            "DML provider requested, but the installed GenAI has not been built with DML support.",
            DeviceLost,
            "provider dml is not available for `m`: DML provider requested",
        ),
        ("cuda", "CUDA failure 35: old ; file=/a/b.cc ; line=48 ; expr=cudaFree(0)", DeviceLost, "too old for these"),
        (
            "webgpu",
            "WebGPU validation failed. [Invalid Buffer (unlabeled)] is invalid due to a previous error.\n - While validating"
            " entries[5] against { binding: 5, visibility: ShaderStage::Compute, buffer: {type: BufferBindingType::Storage } }.",
            OutOfMemory,
            "the graphics adapter has no memory left for a buffer",
        ),
        (
            "webgpu",
            "WebGPU device lost (1): vkQueueSubmit failed with VK_ERROR_DEVICE_LOST",
            DeviceLost,
            "the device was lost while running `m` on webgpu",
        ),
        (
            "webgpu",
            "WebGPU execution provider is not supported in this build. ",
            DeviceLost,
            "no graphics adapter that",
        ),
        (
            "webgpu",
            "/onnxruntime_src/onnxruntime/core/providers/webgpu/webgpu_context.cc:136 onnxruntime::webgpu::WebGpuContext::"
            "Initialize(const onnxruntime::webgpu::WebGpuContextConfig&)::<lambda()> adapter_result.status =="
            " wgpu::RequestAdapterStatus::Success was false. Failed to get a WebGPU adapter: No supported adapters",
            DeviceLost,
            "no graphics adapter that WebGPU can use was found",
        ),
        (
            "cpu",
            "Load model from /home/me/models/m.onnx failed: 0x7f30aa11 bad",
            None,
            "from /home/me/models/m.onnx failed: bad",
        ),
    ],
)
def test_native_errors_are_said_without_where_in_native_code(
    provider: str, text: str, kind: type[Exception] | None, message: str
) -> None:
    error = from_oga(RuntimeError(text), model="m", provider=provider, loading=False)
    assert message in error.message
    if kind is not None:
        assert type(error) is kind
