"""The code stays small where it can be read: files, functions, and names that the project has given up."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator

import pytest
from conftest import REPOSITORY

MOST_LINES, MOST_FUNCTION_LINES, MOST_ARGUMENTS, MOST_CALLS = 400, 80, 6, 25
FILES = sorted((REPOSITORY / "coe_cli").rglob("*.py"))
OWN = {*FILES}
TESTS = sorted(path for folder in ("tests", "benchmarks", "docs") for path in (REPOSITORY / folder).rglob("*.py"))
GIVEN_UP = re.compile(
    r"\b(\w*(?<!s)wish\w*|desk|stand_in|claimant|\w*setbacks?|unasked|tally|\w*meter_for|rendezvous|run_canary|resident_worker"
    r"|spare_worker|written_whole|one_shot|answerer|consult|consultation|canary|residents?|resident_models|[Bb]oard|\w*Look"
    r"|overtak\w+|neighbour|next_piece|PIECE_TOKENS|LEAST_PIECE|Piece|Again|Beside|Elsewhere)\b"
)
"""Names of the code that have the field's word in their place."""
OLD_WORDS = {
    *("answerer", "board", "canary", "claimant", "consult", "consultation", "desk", "overtaking", "piece", "pieces"),
    *("rendezvous", "resident", "residents", "setback", "setbacks", "tally", "unasked", "wish", "wishes", "young"),
}
"""No word of any name in the package, however the name goes on."""
PROMISED = {"min_resident_seconds", "prefer_resident", "preferred_resident", "resident_mb", "with_pieces"}
"""Keys of profiles, JSON and APIs that have an old word and keep it."""
CORE_IMPORTS = {
    *("__future__", "abc", "array", "bisect", "codecs", "collections", "collections.abc", "contextlib", "dataclasses"),
    *("difflib", "enum", "fnmatch", "functools", "hashlib", "heapq", "importlib", "itertools", "json", "math"),
    *("pathlib", "pkgutil", "random", "re", "shlex", "statistics", "struct", "sys", "types", "typing", "urllib.parse"),
    *("zlib", "msgspec", "msgspec.structs", "numpy", "numpy.typing", "yaml", "coe_cli.core", "coe_cli.errors"),
}
"""``importlib`` and ``pkgutil`` find the modules of the providers, as ``import`` itself does."""
EFFECTS = {
    *("open", "print", "input", "exec", "eval", "__import__", "breakpoint", "stdin", "stdout", "stderr", "get_data"),
    *("absolute", "chmod", "cwd", "exists", "expanduser", "glob", "hardlink_to", "is_dir", "is_fifo", "is_file"),
    *("is_junction", "is_mount", "is_socket", "is_symlink", "iterdir", "lstat", "mkdir", "owner", "read_bytes"),
    *("read_text", "readlink", "rename", "resolve", "rglob", "rmdir", "samefile", "stat", "symlink_to", "touch"),
    *("unlink", "write_bytes", "write_text", "fromfile", "genfromtxt", "loadtxt", "memmap", "np.load", "np.save"),
}
"""Names by which the builtins, ``sys``, ``pkgutil``, ``Path`` and NumPy touch files and streams."""


def _parts(name: str) -> list[str]:
    """``AnswerDeltas`` and ``answer_deltas`` are two words."""
    return re.sub("([A-Z][a-z])", r"_\1", name).lower().split("_")


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


def test_only_a_commands_own_function_takes_many_arguments() -> None:
    """They are its options; ruff holds the limit everywhere else (PLR0913)."""
    many = [
        (path.name, function.name)
        for path in FILES
        if path.parent.name == "commands"
        for function in _functions(ast.parse(path.read_text(encoding="utf-8")))
        if len(function.args.args) + len(function.args.kwonlyargs) > MOST_ARGUMENTS
        and not (function.name == path.stem or function.decorator_list)
    ]
    assert many == []


def test_sizes_are_written_for_people_in_one_place() -> None:
    """``core.names`` knows where MB end and GB begin; a rate (MB/s) and a file's few KB are no such size."""
    found = [
        (path.name, line)
        for path in FILES
        if path.relative_to(REPOSITORY).as_posix() != "coe_cli/core/names.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"[}{] ?[MG]B\b(?!/s)", line)
    ]
    assert found == []


def test_names_are_the_fields_words() -> None:
    found = []
    for path in FILES + TESTS:
        text = path.read_text(encoding="utf-8")
        words = {*re.findall(r"\w+", text)} - PROMISED
        old = {
            word
            for word in words
            if GIVEN_UP.fullmatch(word) or (path in OWN and not OLD_WORDS.isdisjoint(_parts(word)))
        }
        for node in ast.walk(ast.parse(text)) if old else ():
            names = {getattr(node, field, None) for field in ("id", "name", "attr", "arg")}
            found += [f"{path.name}: {name}" for name in names & old]
    assert found == []


def _impure(text: str) -> list[str]:
    """What in the text of a module imports or names something that has effects."""
    found = []
    for node in ast.walk(ast.parse(text)):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        named = [getattr(node, "id", ""), getattr(node, "attr", "")]
        if isinstance(node, ast.ImportFrom):
            imported, named = [f"{node.module}"], [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            named += [f"{node.value.id}.{node.attr}"]
        found += [name for name in imported if name not in CORE_IMPORTS and not name.startswith("coe_cli.core.")]
        found += [name for name in named if name in EFFECTS]
    return found


def test_what_psutil_passes_on_is_expected_of_every_process() -> None:
    """On Windows a process that ends while it is read gives an ``OSError`` of the system's, or one of psutil's."""
    handled = re.compile(r"(?:except |suppress\()[^\n]*psutil\.[^\n]*")
    lines = [line for path in OWN for line in handled.findall(path.read_text(encoding="utf-8"))]
    assert len(lines) > 3
    assert [line for line in lines if not ("psutil.Error" in line and "OSError" in line)] == []
    assert [path for path in OWN if re.search(r"process_iter\([^)]", path.read_text(encoding="utf-8"))] == [], (
        "it raises"
    )


def test_files_are_renamed_and_removed_in_one_place() -> None:
    """``coe_cli/replacing`` bears what Windows refuses while somebody else has a file; a worker's own links are no shared files."""
    direct = re.compile(
        r"shutil\.(?:rmtree|move)|\bos\.(?:replace|rename|remove|unlink|rmdir)\b|\.(?:unlink|rename|rmdir)\("
        r"|(?<!structs)(?<!re)\.replace\([^,()]*(?:\([^()]*\))?\)|TemporaryDirectory\((?!.*ignore_cleanup_errors=True)"
    )
    found = Counter(path.name for path in OWN for _ in direct.findall(path.read_text(encoding="utf-8")))
    assert found.pop("replacing.py") > 3 and found == {"private_folder.py": 2}


def test_core_opens_stats_and_lists_no_file() -> None:
    """Core is given bytes and texts; runtime reads them. No module is excepted."""
    core = [path for path in FILES if path.is_relative_to(REPOSITORY / "coe_cli" / "core")]
    assert [f"{path.name}: {found}" for path in core for found in _impure(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "line",
    [
        *("open(path)", "path.open()", "path.stat()", "path.is_file()", "list(path.iterdir())", "print('x')"),
        *("import os.path", "import mmap", "from io import open", "import subprocess as s", "from os import stat"),
        *("from coe_cli.runtime.regular_file import read_text", "import coe_cli.runtime", "from . import other"),
        *("np.load(path)", "pkgutil.get_data('a', 'b')", "import importlib.resources", "sys.stdin.read()"),
    ],
)
def test_an_effect_in_core_is_seen(line: str) -> None:
    assert _impure(f"def function(path):\n    {line}\n") and not _impure("import re\nfrom pathlib import Path\n")


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


def test_the_walk_of_a_question_names_what_is_there_and_is_short() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| (`[\w./]+` → .*?)(?:;.*)? \|$", text, re.M))
    assert list(rows) == ["command", "college", "worker"]
    walk = [name for row in rows.values() for name in re.findall(r"[\w.]+(?=`)", row)]
    defined = {function.name for path in FILES for function in _functions(ast.parse(path.read_text(encoding="utf-8")))}
    assert {name.rpartition(".")[2] for name in walk} - defined == set()
    assert len(walk) <= MOST_CALLS and f"these are {len(walk)} calls" in text


def test_licence_and_type_marker_are_packaged() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["license-files"] == ["LICENSE"] and (REPOSITORY / "LICENSE").is_file()
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["coe_cli"]
    assert (REPOSITORY / "coe_cli" / "py.typed").is_file()
