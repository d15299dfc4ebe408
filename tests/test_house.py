"""The code stays small where it can be read: files, functions, and names that the project has given up."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator

from conftest import REPOSITORY

MOST_LINES, MOST_FUNCTION_LINES = 400, 80
FILES = sorted((REPOSITORY / "coe_cli").rglob("*.py"))
TESTS = sorted(path for folder in ("tests", "benchmarks", "docs") for path in (REPOSITORY / folder).rglob("*.py"))
GIVEN_UP = re.compile(
    r"\b(\w*(?<!s)wish\w*|desk|stand_in|claimant|\w*setbacks?|unasked|tally|\w*meter_for|rendezvous|run_canary|resident_worker"
    r"|spare_worker|written_whole|one_shot|answerer|consult|consultation|canary|residents?|resident_models|[Bb]oard|\w*Look"
    r"|overtak\w+|neighbour|next_piece|PIECE_TOKENS|LEAST_PIECE|Piece|Again|Beside|Elsewhere)\b"
)
"""Names of the code that have the field's word in their place."""


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_files_and_functions_can_be_read_at_a_sitting() -> None:
    too_long: list[object] = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        too_long += [path] if text.count("\n") > MOST_LINES else []
        for function in _functions(ast.parse(text)):  # a command's signature is the table of its options: not counted
            if (function.end_lineno or 0) - function.body[0].lineno >= MOST_FUNCTION_LINES:
                too_long += [(path, function.name)]
    assert too_long == []


def test_names_are_the_fields_words() -> None:
    found = []
    for path in FILES + TESTS:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if GIVEN_UP.search(text) else ():
            names = [getattr(node, field, None) for field in ("id", "name", "attr", "arg")]
            found += [f"{path.name}: {name}" for name in names if isinstance(name, str) and GIVEN_UP.fullmatch(name)]
    assert found == []


def test_what_tests_and_scripts_import_is_there() -> None:
    """Slow tests and benchmarks run seldom: what was renamed or taken out would be missed there for long."""
    missing = []
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("coe_cli"):
                place = REPOSITORY.joinpath(*node.module.split("."))
                file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                defined = set(re.findall(r"\w+", file.read_text(encoding="utf-8"))) if file.is_file() else set()
                missing += [
                    f"{path.name}:{node.lineno} {node.module}.{alias.name}"
                    for alias in node.names
                    if alias.name not in defined
                    and not (place / alias.name).with_suffix(".py").is_file()
                    and not (place / alias.name).is_dir()
                ]
    assert missing == []


def test_the_module_map_names_what_is_there() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = text.partition("## Module map")[2].partition("\n## ")[0]
    there = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    named = {name.rstrip("/").rpartition("/")[2] for name in re.findall(r"`([a-z0-9_/]+)`", rows)}
    commands = {word for row in rows.splitlines() for word in re.findall(r"[a-z]+", row.rpartition(" | ")[2])}
    assert named - there - commands == set()


def test_licence_and_type_marker_are_packaged() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["license-files"] == ["LICENSE"] and (REPOSITORY / "LICENSE").is_file()
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["coe_cli"]
    assert (REPOSITORY / "coe_cli" / "py.typed").is_file()
