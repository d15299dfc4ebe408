"""A provider is two files: nothing outside of them names one, and a toy one is planned, chosen, listed and configured."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import coe_cli
from coe_cli.core.providers import all_specs, host, names, spec_of

ROOT = Path(coe_cli.__file__).parent
NO_PROVIDER = {("core/bench_compare.py", "cpu"), ("runtime/routing/embedder_export.py", "cpu")}
"""The processor's name in a report, and PyTorch's device."""
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
