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


def test_the_sample_of_a_benchmark_is_of_the_published_run() -> None:
    published = (DOCS / "performance.md").read_text(encoding="utf-8")
    table = [re.findall(r"[\d.]+", row) for row in re.findall(r"^\| \d+ \| \d+ \| .*%.*$", published, re.M)]
    rates = re.compile(
        r"^ *(\d+) +(\d+) +([\d.]+) s +([\d.]+) ±\d+% +([\d.]+) ±\d+% +(\d+)% +(\d+) +(\d+) [█·]+$", re.M
    )
    sample = rates.findall((DOCS / "bench.md").read_text(encoding="utf-8"))
    kept = {(row[0], row[1], row[2], f"{float(row[5]):.4g}", row[8], *row[11:]) for row in table}
    assert len(sample) == 6
    assert [row for row in sample if (*row[:3], f"{float(row[3]):.4g}", *row[4:]) not in kept] == []


@pytest.mark.parametrize("page", ["../README.md", *sorted(path.name for path in DOCS.glob("*.md"))])
def test_every_command_and_option_that_a_page_shows_exists(page: str) -> None:
    root = typer.main.get_command(build_app())
    text = (DOCS / page).read_text(encoding="utf-8")
    for line in re.findall(
        r"\bcoe ((?:[a-z]+ ?)+[^`\n|#]*)", "\n".join(re.findall(r"`coe [^`]+`|^.*\bcoe [a-z].*$", text, re.M))
    ):
        command, words = root, line.split()
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if command is root:
            continue
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        used = {word.split("=")[0] for word in words if re.fullmatch(r"--[a-z][a-z-]+(=.*)?", word)}
        assert used <= known | {"--help", "--format"}, (page, line)


@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_builds(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "troubleshooting.html").exists()
