"""What coe writes into a pipe is UTF-8 with plain line ends in every locale, and what it reads may be PowerShell's."""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Coe

from coe_cli.core.text_encoding import decode_text
from coe_cli.streams import as_broken_pipe

LOCALES = [
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]
SAYS = """
import sys
from coe_cli.streams import prepare_streams
prepare_streams()
print(sys.stdin.readline().strip(), "→ 😀 \\ud800")
print("grün", file=sys.stderr)
"""


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_pipes_are_utf_8(bare_coe: Coe, locale: dict[str, str]) -> None:
    script = bare_coe.folder / "says.py"
    script.write_text(SAYS, encoding="utf-8")
    process = subprocess.run(
        [sys.executable, str(script)],
        input=codecs.BOM_UTF8 + "Zürich ž\r\n".encode(),
        capture_output=True,
        env=bare_coe.environment | locale,
        check=True,
    )
    assert process.stdout == "Zürich ž → 😀 ?\n".encode()
    assert process.stderr == "grün\n".encode()


@pytest.mark.long
@pytest.mark.parametrize("locale", LOCALES, ids=str)
@pytest.mark.parametrize(
    "command",
    [
        ["vram", "plan", "-p", "compact"],
        ["vram", "plan", "-p", "compact", "--format", "json"],
        ["profile", "check", "compact"],
        ["--version"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_a_command_writes_all_of_it(bare_coe: Coe, command: list[str], locale: dict[str, Any]) -> None:
    result, plain = bare_coe.run(*command, **locale), bare_coe.run(*command, PYTHONIOENCODING="utf-8")
    assert result.code == plain.code
    for written, wanted in ((result.stdout, plain.stdout), (result.stderr, plain.stderr)):
        assert re.sub(r"\d+", "0", written) == re.sub(r"\d+", "0", wanted)  # free memory changes
    assert "\r" not in result.stdout + result.stderr


def test_an_error_is_json_in_any_locale(bare_coe: Coe) -> None:
    result = bare_coe.run("ask", "--format", "json", "-m", "Modell→", "x", PYTHONIOENCODING="ascii")
    assert "Modell→" in json.loads(result.stderr)["error"]["message"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_text_says_how_it_is_encoded(encoding: str) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    assert decode_text(mark + "Größe 😀\r\n".encode(encoding)) == "Größe 😀\r\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_profiles_and_batches_of_powershell_are_read(bare_coe: Coe, encoding: str) -> None:
    own = bare_coe.folder / "own.yaml"
    own.write_text("profiles:\r\n  mine: {description: größer, extends: minimal}\r\n", encoding=encoding)
    shown = bare_coe.run("profile", "list", "--profiles", str(own), "--format", "json")
    rows = bare_coe.folder / "Fragen für alle.jsonl"
    rows.write_text('{"prompt": ""}\r\n{"prompt": "Größe"\r\n', encoding=encoding)
    batch = bare_coe.run("batch", str(rows), "--no-pull", "-m", "none")
    assert "not UTF-8" not in shown.stderr + batch.stderr and "cannot be read" not in shown.stderr, shown.stderr


def test_a_reader_that_left_is_a_broken_pipe_everywhere() -> None:
    assert isinstance(as_broken_pipe(OSError(errno.EINVAL, "Invalid argument")), BrokenPipeError)
    full = OSError(errno.ENOSPC, "full")
    assert as_broken_pipe(full) is full


@pytest.mark.parametrize(
    "command", [["models", "list"], ["vram", "plan", "--format", "json"], ["--help"]], ids=" ".join
)
def test_a_reader_that_left_is_no_error(bare_coe: Coe, command: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with (tmp_path / "stderr").open("wb") as errors:
        code = subprocess.run(
            bare_coe.command(*command),
            stdout=writing,
            stderr=errors,
            env=bare_coe.environment,
            stdin=subprocess.DEVNULL,
        ).returncode
    os.close(writing)
    assert (code, (tmp_path / "stderr").read_text()) == (0, "")
