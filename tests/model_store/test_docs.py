"""The documentation agrees with the application, and the site builds."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import typer

from coe_cli.app import build_app
from coe_cli.runtime.folders import profile_paths
from coe_cli.runtime.settings import load_profiles

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def script(name: str) -> Any:
    """A script of docs/ as a module."""
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_up_to_date() -> None:
    module = script("make_commands")
    written = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert written == module.reference(), "run: python docs/make_commands.py"


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_the_picture_is_made_of_a_real_screen() -> None:
    module = script("make_screen")
    text = module.terminal_output(module.COMMAND, module.COLUMNS)
    assert "\x1b[" in text, "in colour"
    svg = module.picture(text, "title", module.COLUMNS)
    assert "headroom" in svg and "pressure" in svg
    assert "@font-face" not in svg, "nothing is fetched by who looks at it"
    found = re.findall(
        r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', module.TARGET.read_text(encoding="utf-8")
    )
    drawn = "".join(html.unescape(part) for _, _, part in sorted(found, key=lambda at: (float(at[1]), float(at[0]))))
    shown = re.sub(r"\x1b\[[0-9;]*m|\s", "", text)
    assert "".join(drawn.split()).endswith(shown), "run: python docs/make_screen.py"


@pytest.mark.skipif(sys.platform == "win32", reason="Rich draws other frames there")
def test_what_pages_show_of_the_published_benchmark_is_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "NO_COLOR", "TERM"):
        monkeypatch.setenv(name, "")
    module = script("make_bench")
    for page, text in module.pages().items():
        assert page.read_text(encoding="utf-8") == text, "run: python docs/make_bench.py"


@pytest.mark.long
@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_picture_of_the_published_benchmark_is_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words, and where the points and bars are; releases of matplotlib differ in the rest."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    module = script("make_bench")
    module.draw(tmp_path / "bench.svg")
    kept, drawn = (path.read_text(encoding="utf-8") for path in (module.PICTURE, tmp_path / "bench.svg"))
    words = [re.findall(r"<text[^>]*>([^<]*)</text>", svg) for svg in (kept, drawn)]
    assert words[0] == words[1] and "tokens in the cache" in words[0], "run: python docs/make_bench.py"
    places = [re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)"', svg) for svg in (kept, drawn)]
    assert len(places[0]) == len(places[1]) > 18
    for one, other in zip(*places, strict=True):
        assert [float(part) for part in one] == pytest.approx([float(part) for part in other], abs=4)


def test_what_pages_name_of_tests_and_benchmarks_is_there() -> None:
    files = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = {path.name for path in files} | {path.relative_to(ROOT).as_posix() for path in files}
    functions = {
        name
        for path in files
        if path.suffix == ".py"
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    }
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w/])((?:tests|benchmarks)/[\w/.-]+\.\w+|test_\w+\.py)", text):
            assert name in names, (page.name, name)
        for name in re.findall(r"`(test_\w+)…?`", text):
            assert any(function.startswith(name) for function in functions), (page.name, name)


def test_the_profiles_of_the_page_are_those_that_ship() -> None:
    shipped = load_profiles(profile_paths()[:1]).profiles
    page = (DOCS / "profiles.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| [^|]* \| (\d+) \| (\d+) \| (\d+) \| (\w+) \|$", page, re.M)
    assert {name: (int(a), int(b), int(c), on) for name, a, b, c, on in rows} == {
        name: (each.vram_budget_mb, each.max_concurrent_slots, each.context_length, each.provider)
        for name, each in shipped.items()
    }


@pytest.mark.parametrize("page", ["../README.md", *sorted(path.name for path in DOCS.glob("*.md"))])
def test_every_command_and_option_that_a_page_shows_exists(page: str) -> None:
    root = typer.main.get_command(build_app())
    text = (DOCS / page).read_text(encoding="utf-8")
    for line in re.findall(
        r"\bcoe ((?:[a-z]+ ?)+[^`\n|#]*)", "\n".join(re.findall(r"`coe [^`]+`|^.*\bcoe [a-z].*$", text, re.M))
    ):
        command: Any = root
        words = line.split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if command is root:
            continue
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        used = {word.split("=")[0] for word in words if re.fullmatch(r"--[a-z][a-z-]+(=.*)?", word)}
        assert used <= known | {"--help", "--format"}, (page, line)


@pytest.mark.long
@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_builds(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "troubleshooting.html").exists()
