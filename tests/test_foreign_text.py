"""What others wrote does not drive the terminal; files of coe's own are its user's alone; full outputs are said in a line."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path

import pytest
from conftest import MODEL, Coe, one_line
from rich.table import Table
from rich.text import Text

from coe_cli.errors import CoeError
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.errors import write_error
from coe_cli.runtime.bundle import redact

FOREIGN = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\u202ee\u2066f\rg\x00h\x7f"
DRIVING = set("\x1b\x07\x9b\u202e\u2066\x00\x7f")


@pytest.fixture
def coe(quick_coe: Coe) -> Coe:
    return quick_coe


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO) -> str:
    out, errors = Output(stream, stream), CoeError(FOREIGN, FOREIGN)
    out.note(FOREIGN)
    out.stdout.write(FOREIGN)
    out.stdout.writelines([FOREIGN, "\n"])
    out.json({FOREIGN: FOREIGN})
    out.json_line({"x": FOREIGN})
    for form in (TableFormat.CSV, TableFormat.MD):
        out.emit(form, None, ["x"], [[FOREIGN]], human=lambda: None)
    write_error(stream, errors, as_json=False)
    write_error(stream, errors, as_json=True)
    return stream.getvalue()


def test_a_terminal_sees_text_and_a_pipe_all_of_it() -> None:
    seen = written(Screen())
    assert not DRIVING & set(seen) and "\r" not in seen
    assert "title" in seen, "it is text, not lost"
    assert written(io.StringIO()).count(FOREIGN) >= 6


def test_what_rich_draws_keeps_its_own_controls_and_no_foreign_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    table = Table(FOREIGN)
    table.add_row(Text(FOREIGN, style="bold"))
    screen = Screen()
    Output(screen).rich(table)
    assert "\x1b[1m" in screen.getvalue(), "bold"
    assert not (DRIVING - {"\x1b"}) & set(screen.getvalue())
    assert "\x1b]0;" not in screen.getvalue() and "\x1b[2J" not in screen.getvalue()


def test_the_bundle_has_no_queries() -> None:
    text = '{"origin": "https://host/model.gguf?X-Amz-Signature=abc&t=1#frag", "other": "http://h/a"}'
    assert redact(text) == '{"origin": "https://host/model.gguf", "other": "http://h/a"}'


posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions, limits and devices")


@pytest.mark.long
@posix
def test_files_of_its_state_are_the_users_alone_under_any_umask(coe: Coe) -> None:
    open_to_all = ["sh", "-c", 'umask 0; exec "$@"', "sh"]
    coe.run("profile", "check", prefix=open_to_all)
    coe.run("ask", "-m", MODEL, "--max-tokens", "2", "Hi", prefix=open_to_all).check()
    coe.run("serve", prefix=open_to_all).check()
    coe.run("stop").check()
    state = coe.folder / "state"
    found = [state, *state.rglob("*")]
    assert {"machine.json", "calibration.jsonl", "serve.log"} <= {path.name for path in found}
    assert {path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077} == set()


FULL = {
    "models list": "the output",
    f"ask -m {MODEL} --max-tokens 2 Hi": "the output",
    f"ask -m {MODEL} --max-tokens 2 -o /dev/full Hi": "/dev/full",
    "--version": "the output",
    "config": "the output",
    "": "the output",
}
"""Command line → what has no room, where stdout has none."""


@posix
@pytest.mark.parametrize("line", FULL)
def test_an_output_that_is_full_is_said_in_a_line(coe: Coe, line: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        process = coe.start(*line.split(), stdout=full)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert f"coe: {FULL[line]} cannot be used: {os.strerror(28)}. Make room there" in one_line(said.decode())
    assert b"Errno" not in said and said.count(b"No space") == 1
