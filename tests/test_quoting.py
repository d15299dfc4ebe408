"""Commands that the user is told to type again mean the same when they are."""

from __future__ import annotations

import shlex

import pytest

from coe_cli.core.command_line import command_line


@pytest.mark.parametrize(
    ("argument", "windows"),
    [
        ("in.jsonl", "in.jsonl"),
        (r"C:\Users\me\in.jsonl", r"C:\Users\me\in.jsonl"),
        ("--max-tokens=3", "--max-tokens=3"),
        ("Jürgen's questions.jsonl", '"Jürgen\'s questions.jsonl"'),
        ("", '""'),
        ("a,b", '"a,b"'),
        ("a&b|c", '"a&b|c"'),
        ("C:\\My Models\\", '"C:\\My Models\\\\"'),
        ("costs $5", "'costs $5'"),
        ("100 %", "'100 %'"),
        ('say "it\'s"', "'say \\\"it''s\\\"'"),
    ],
)
def test_an_argument_is_quoted_for_the_shell(argument: str, windows: str) -> None:
    assert command_line(["coe", argument], windows=True) == f"coe {windows}"
    assert shlex.split(command_line(["coe", argument], windows=False)) == ["coe", argument]
