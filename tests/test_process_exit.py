"""How a process ended and what it said last, on POSIX and on Windows."""

from __future__ import annotations

import pytest

from coe_cli.core.native_log import cause_of_death, decode_log
from coe_cli.core.process_exit import ExitKind, explain_exit


@pytest.mark.parametrize(
    ("code", "windows", "silent", "kind", "text"),
    [
        (-9, False, True, ExitKind.KILLED, "was killed by signal 9 (SIGKILL)"),
        (137, False, True, ExitKind.KILLED, "was killed by signal 9 (SIGKILL)"),
        (-15, False, False, ExitKind.KILLED, "was killed by signal 15 (SIGTERM)"),
        (-11, False, True, ExitKind.CRASHED, "was killed by signal 11 (SIGSEGV)"),
        (-64, False, True, ExitKind.CRASHED, "was killed by signal 64"),
        (3, False, True, ExitKind.EXITED, "ended with code 3"),
        (1, False, True, ExitKind.EXITED, "ended with code 1"),
        (1, True, True, ExitKind.KILLED, "was ended from outside (code 1)"),
        (1, True, False, ExitKind.EXITED, "ended with code 1"),
        (0xC000013A, True, False, ExitKind.KILLED, "was ended from outside (code 0xC000013A: Ctrl-C)"),
        (0xC0000017, True, False, ExitKind.OUT_OF_MEMORY, "ran out of memory (0xC0000017: no memory)"),
        (0xC000012D, True, True, ExitKind.OUT_OF_MEMORY, "ran out of memory (0xC000012D: the page file is full)"),
        (0xC0000005, True, True, ExitKind.CRASHED, "crashed (0xC0000005: access violation)"),
        (0xC0000005 - 2**32, True, True, ExitKind.CRASHED, "crashed (0xC0000005: access violation)"),
        (0xC0000409, True, True, ExitKind.CRASHED, "crashed (0xC0000409: aborted)"),
        (0xC0001234, True, True, ExitKind.CRASHED, "crashed (0xC0001234)"),
        (3, True, True, ExitKind.EXITED, "ended with code 3"),
        (0, True, True, ExitKind.EXITED, "ended with code 0"),
    ],
)
def test_an_exit_code_is_named(code: int, windows: bool, silent: bool, kind: ExitKind, text: str) -> None:
    ended = explain_exit(code, windows=windows, silent=silent)
    assert (ended.kind, ended.text) == (kind, text)


WARNING = "\x1b[0;93m2026-11-26 14:50:01.1234567 [W:onnxruntime:, graph.cc:108 Load] a löcal warning\x1b[m\n"
ERROR = "\x1b[1;31m2026-11-26 14:50:02.1234567 [E:onnxruntime:, dml.cc:7 Run] 887A0005 Гerät weg\x1b[m\r\n"


@pytest.mark.parametrize(
    ("data", "lines", "cause"),
    [
        (b"", [], ""),
        (b"first\r\n\r\n  last  \n", ["first", "  last"], "last"),
        ("Übung\n".encode(), ["Übung"], "Übung"),
        (b"\xfcbung\n", ["\ufffdbung"], "\ufffdbung"),
        (
            b"thread '<unnamed>' panicked at src/a.rs:1:2:\nno such state\nnote: run with `RUST_BACKTRACE=1` environment variable\n",
            [
                "thread '<unnamed>' panicked at src/a.rs:1:2:",
                "no such state",
                "note: run with `RUST_BACKTRACE=1` environment variable",
            ],
            "no such state",
        ),
        (
            b"python's\n" + WARNING.encode("utf-16-le") + b"Ende\n",
            ["python's", "2026-11-26 14:50:01.1234567 [W:onnxruntime:, graph.cc:108 Load] a löcal warning", "Ende"],
            "Ende",
        ),
        (
            ERROR.encode("utf-16-le") + WARNING.encode("utf-16-le") + b"Failed to create DXGI factory.\n",
            [
                "2026-11-26 14:50:02.1234567 [E:onnxruntime:, dml.cc:7 Run] 887A0005 Гerät weg",
                "2026-11-26 14:50:01.1234567 [W:onnxruntime:, graph.cc:108 Load] a löcal warning",
                "Failed to create DXGI factory.",
            ],
            "2026-11-26 14:50:02.1234567 [E:onnxruntime:, dml.cc:7 Run] 887A0005 Гerät weg",
        ),
        (
            WARNING.encode("utf-16-le")[1:],  # the end of a file, cut in the middle of a character
            ["[0;93m2026-11-26 14:50:01.1234567 [W:onnxruntime:, graph.cc:108 Load] a löcal warning"],
            "",
        ),
        (b"x.py:3: UserWarning: old\n  warnings.warn(\n", ["x.py:3: UserWarning: old", "  warnings.warn("], ""),
    ],
)
def test_a_log_is_decoded_and_its_noise_is_no_cause(data: bytes, lines: list[str], cause: str) -> None:
    assert decode_log(data) == lines
    assert cause_of_death(lines) == cause
