"""A provider is two files: nothing outside of them names one, and a toy one is planned, chosen, listed and configured."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY

import coe_cli
from coe_cli import providers
from coe_cli.core import providers as specs
from coe_cli.core.hardware.profile import load_profiles
from coe_cli.core.memory.footprint import ExactAccounting
from coe_cli.core.memory.planner import plan
from coe_cli.core.memory.scenario import Known, Role, Scenario
from coe_cli.core.models.catalog import load_catalog
from coe_cli.core.models.model_spec import spec_from_catalog
from coe_cli.core.providers import all_specs, host, names, spec_of
from coe_cli.errors import DeviceLost, OutOfMemory
from coe_cli.providers.installed import choose_provider
from coe_cli.providers.settings import configure, default_session_options, settings_from
from coe_cli.runtime.doctor.software import check_packages
from coe_cli.runtime.folders import catalog_paths, profile_paths
from coe_cli.runtime.planning.plan_inputs import memory_of
from coe_cli.runtime.worker.oga_errors import from_oga

ROOT = Path(coe_cli.__file__).parent
NO_PROVIDER = {
    ("core/bench/bench_compare.py", "cpu"),
    ("runtime/routing/embedder_export.py", "cpu"),
    *(("core/models/genai_options.py", name) for name in ("dml", "cuda", "cpu")),
}
"""The processor's name in a report, PyTorch's device, and the allow-list of what configurations from elsewhere may set."""
INSIDE = {ROOT / "core" / "providers", ROOT / "providers"}


def _named(path: Path) -> list[str]:
    """Strings of a file that are a provider's name, or one of ONNX Runtime's names or packages for it, and imports of its modules."""
    wanted = {name for spec in all_specs() for name in (spec.name, spec.ort_name)}
    wanted |= {name for spec in all_specs() if spec.on_card for name in (*spec.oga_packages, *spec.ort_packages)}
    where = path.relative_to(ROOT).as_posix()
    modules = re.compile(rf"coe_cli\.(core\.)?providers\._?({'|'.join(names())})\b")
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and node.value in wanted and (where, node.value) not in NO_PROVIDER:
            found.append(f"{where}:{node.lineno}: {node.value!r}")
        if isinstance(node, ast.ImportFrom) and node.module and modules.match(node.module):
            found.append(f"{where}:{node.lineno}: {node.module}")
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


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The provider of docs/adding-a-provider.md, from its two files."""
    page = (REPOSITORY / "docs" / "adding-a-provider.md").read_text(encoding="utf-8")
    made = []
    for name, code in zip(
        ("coe_cli.core.providers.npu", "coe_cli.providers.npu"),
        re.findall(r"```python\n(.*?)```", page, re.DOTALL),
        strict=True,
    ):
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(code, name, "exec"), module.__dict__)
        made.append(module)
    specs.add(made[0].PROVIDER)
    providers.add(made[1].RUNTIME)
    yield "npu"
    specs.remove("npu")
    providers.remove("npu")


class FakeConfig:
    """OGA's Config, which writes down what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


def test_a_toy_provider_of_two_files_is_planned_chosen_and_driven(npu: str) -> None:
    assert names() == ["dml", "cuda", npu, "cpu"]
    catalog, profile = load_catalog(catalog_paths()[:1]), load_profiles(profile_paths()[:1]).select("standard")
    spec = spec_from_catalog("BioMistral-7B-DML", catalog.models["BioMistral-7B-DML"])
    memory = memory_of(spec, npu)
    slot = ExactAccounting().slot(memory, 4096)
    assert (slot.kv_bytes, slot.activation_bytes % 2**21, memory.chunk_size) == (2**29, 0, 512)
    scenario = Scenario((Role("medical", spec.name),), slots=1, context_length=4096, budget_mb=20_000, provider=npu)
    planned = plan(profile, scenario, Known({spec.name: memory}))
    assert planned.provider == npu and planned.fits and planned.slots[0].kv_mb == 512.0
    assert choose_provider("m", npu, profile, [npu, host().name])[0] == npu
    assert choose_provider("m", npu, profile, [host().name])[0] == host().name
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
        ("cuda", "CUDA failure 35: old ; file=/a/b.cc ; line=48 ; expr=cudaFree(0)", DeviceLost, "too old for these"),
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
