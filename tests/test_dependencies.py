"""What is installed is what is imported; the default paths need neither PyTorch nor anything that brings it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from routing_fixtures import EXAMPLES, build_sentence_transformer, write_catalog

from coe_cli.package import python_environment

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOR_TESTS = ("dev", "clients")
HEAVY = ("torch", "transformers", "sentence_transformers", "accelerate", "sklearn", "scipy")
DISTRIBUTIONS = {
    "markdown_it": "markdown-it-py",
    "pydantic_core": "pydantic",
    "yaml": "pyyaml",
    "ruamel": "ruamel.yaml",
    "pynvml": "nvidia-ml-py",
}
"""Modules that are called otherwise than the distribution which brings them."""


def imported() -> dict[str, set[str]]:
    """Foreign module → the files of coe_cli that import it, also within functions."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "coe_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                module = name.partition(".")[0]
                if module not in sys.stdlib_module_names and module != "coe_cli":
                    found.setdefault(module, set()).add(path.name)
    return found


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def test_what_is_declared_is_what_is_imported() -> None:
    extras = {name: declared(some) for name, some in PROJECT["optional-dependencies"].items() if name not in FOR_TESTS}
    always, optional = declared(PROJECT["dependencies"]), set().union(*extras.values())
    needed = {DISTRIBUTIONS.get(module, module).replace("_", "-") for module in imported()}
    assert needed - optional == always
    builds = {
        name
        for name in optional
        if name.startswith(("onnxruntime-directml", "onnxruntime-windowsml", "onnxruntime-gpu", "onnxruntime-genai-"))
    }
    assert optional - builds <= needed, "an extra brings what nothing imports"


def test_pytorch_is_imported_where_embedders_of_other_kinds_are_exported_and_nowhere_else() -> None:
    assert {name: files for name, files in imported().items() if name in HEAVY} == {
        "torch": {"embedder_torch.py"},
        "sentence_transformers": {"embedder_torch.py"},
    }


BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name + " is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
"""
ROUTED = """
from pathlib import Path
from coe_cli.runtime.settings import load_catalog
from coe_cli.errors import ModelMissing
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing.router_cache import open_router
plain, other, catalog, cache = map(Path, sys.argv[1:])
where = Folders(models=cache, config=cache, state=cache, cache=cache)
router = open_router(load_catalog([catalog]), where, lambda _: None, embedder=str(plain))
print(router.route("bake a cake in the oven").experts[0].name)
try:
    open_router(load_catalog([catalog]), where, lambda _: None, embedder=str(other))
except ModelMissing as error:
    print(error.hint)
"""


def test_an_embedder_is_prepared_and_a_router_trained_where_pytorch_is_not_installed(tmp_path: Path) -> None:
    """In a process that cannot import it; an embedder that does need it says which extra brings it."""
    plain = build_sentence_transformer(tmp_path / "plain")
    other = build_sentence_transformer(tmp_path / "other", dense=True)
    catalog = write_catalog(tmp_path / "experts.yaml", EXAMPLES)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + ROUTED, *map(str, (plain, other, catalog, tmp_path / "cache"))],
        capture_output=True,
        encoding="utf-8",
        env=python_environment(PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr
    expert, hint = done.stdout.splitlines()
    assert expert == "general_reasoner"
    assert "[embedders]" in hint
