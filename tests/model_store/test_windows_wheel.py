"""Every name and option that coe uses with DirectML exists in the packages that Windows installs."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "coe_cli" / "runtime"
DRIVES_OGA = (
    *(RUNTIME / "worker" / f"{name}.py" for name in ("generation", "slots", "worker", "oga_report")),
    *sorted((RUNTIME.parent / "providers").glob("*.py")),
)
OGA_OBJECTS = {"oga", "_oga", "config", "model", "_model", "tokenizer", "params", "generator", "_generator", "_stream"}
"""Names under which the code holds the module and its objects."""


def called_names() -> set[str]:
    """What the code asks of ONNX Runtime GenAI's module and objects, as far as the installed version has it too."""
    import onnxruntime_genai as oga

    known = {name for name in dir(oga) if not name.startswith("_")}
    for item in [getattr(oga, name) for name in known]:
        if inspect.isclass(item):
            known |= {name for name in vars(item) if not name.startswith("_")}
    found = set()
    for file in DRIVES_OGA:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in known:
                holder = node.value
                name = getattr(holder, "attr", None) or getattr(holder, "id", None)
                if name in OGA_OBJECTS or isinstance(holder, ast.Call):
                    found.add(node.attr)
    return found


WINDOWS_PAIR = ("onnxruntime-genai-directml==0.13.1", "onnxruntime-directml==1.24.4")
"""The newest pair that installs together: what the extra `directml` gives on Windows."""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the two wheels."""
    folder = tmp_path_factory.mktemp("wheels")
    environment = {name: value for name, value in os.environ.items() if name != "PIP_NO_INDEX"}
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--disable-pip-version-check",
        "-d",
        str(folder),
    ]
    command += ["--retries", "1", "--timeout", "10", "--platform", "win_amd64", "--python-version", "3.11"]
    command += ["--only-binary=:all:", *WINDOWS_PAIR]
    if subprocess.run(command, capture_output=True, env=environment, timeout=250).returncode:
        pytest.skip("no package index with the Windows wheels")
    content: dict[str, bytes] = {}
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith((".dll", ".pyd", ".py", "METADATA"))]
            content |= {Path(name).name if "METADATA" not in name else name: archive.read(name) for name in names}
    return content


@pytest.mark.long
def test_every_call_is_in_the_python_module(wheels: dict[str, bytes]) -> None:
    module = next(data for name, data in wheels.items() if name.endswith(".pyd") and "genai" in name)
    called = called_names()
    assert {
        "Config",
        "Generator",
        "append_provider",
        "set_provider_option",
        "generate_next_token",
        "rewind_to",
    } <= called
    assert [name for name in sorted(called) if name.encode() not in module] == []


def test_the_import_loads_the_package_s_own_directml(wheels: dict[str, bytes]) -> None:
    """`coe doctor` looks at what is loaded after the import, and the import loads it out of onnxruntime's folder."""
    loader = wheels["_dll_directory.py"].decode()
    assert '"capi", "DirectML.dll"' in loader and "CDLL(dml_path)" in loader


def test_every_option_is_in_the_library(wheels: dict[str, bytes]) -> None:
    library = wheels["onnxruntime-genai.dll"]
    for option in ("dml", "intra_op_num_threads", "max_length", "chunk_size", "random_seed", "do_sample", "luid"):
        assert option.encode() in library, option
    # The compiler compares device_index in pieces of eight and four bytes.
    assert b"device_index" in library or (b"device_i" in library and b"ndex" in library)
    assert b"ep.dml.enable_graph_capture" in library
    assert b"DirectML.dll" in library


def test_directml_comes_with_the_package(wheels: dict[str, bytes]) -> None:
    assert wheels["DirectML.dll"][:2] == b"MZ"
    assert b"ep.dml.enable_graph_capture" in wheels["onnxruntime.dll"]


def test_the_pair_goes_together(wheels: dict[str, bytes]) -> None:
    metadata = next(data.decode() for name, data in wheels.items() if name.endswith("METADATA") and "genai" in name)
    asked = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: onnxruntime-directml")]
    from packaging.requirements import Requirement

    (requirement,) = [Requirement(line.removeprefix("Requires-Dist: ")) for line in asked]
    assert requirement.specifier.contains(WINDOWS_PAIR[1].rsplit("==", 1)[1])
