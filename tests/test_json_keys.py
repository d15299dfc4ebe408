"""docs/json.md against what the commands print: the same keys, in the same order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import MODEL, REPOSITORY, Coe

DOCUMENTED = dict(
    re.split(r"  +", line, maxsplit=1)
    for line in (REPOSITORY / "docs" / "json.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("coe ")
)

Shape = dict[str, Any] | list[Any] | None


def parse(text: str) -> Shape:
    """The notation of the page: a dict of keys, a list with one shape or none, or None for a plain value."""
    tokens = iter(re.findall(r"[{}\[\],]|\w+", text))
    return _value(tokens, next(tokens))[0]


def _value(tokens: Iterator[str], token: str) -> tuple[Shape, str]:
    """A value that begins with ``token``, and the token after it."""
    if token == "{":
        keys: dict[str, Any] = {}
        while token != "}":
            name = next(tokens)
            keys[name], token = _value(tokens, next(tokens))
        return keys, next(tokens, "")
    if token == "[":
        inner, token = _value(tokens, next(tokens))
        assert token == "]"
        return [] if inner is None else [inner], next(tokens, "")
    return None, token


def differences(shape: Shape, value: Any, place: str) -> list[str]:
    """Where ``value`` has other keys than ``shape``; null and empty lists stand for anything."""
    if value is None or shape is None:
        return []
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{place} is no list"]
        return [found for item in value for found in differences(shape[0] if shape else None, item, f"{place}[]")]
    if not isinstance(value, dict):
        return [f"{place} is no object"]
    if list(value) != list(shape):
        return [f"{place}: {list(value)}"]
    return [found for key, inner in shape.items() for found in differences(inner, value[key], f"{place}.{key}")]


def test_the_notation() -> None:
    assert parse("{a, b{c}, d[], e[{f, g[]}]}") == {"a": None, "b": {"c": None}, "d": [], "e": [{"f": None, "g": []}]}
    assert differences(parse("[{a, b{c}}]"), [{"a": 1, "b": {"c": 2}}, {"a": 1, "b": None}], "") == []
    assert differences(parse("{a, b{c}}"), {"a": 1, "b": {"d": 2}}, "x") == ["x.b: ['d']"]
    assert differences(parse("{a, b}"), {"a": 1}, "x") == ["x: ['a']"]


@pytest.mark.parametrize(
    "command", [name for name in DOCUMENTED if name not in ("coe route", "coe experts test", "coe logs search")]
)
def test_a_command_prints_the_documented_keys(shared_coe: Coe, command: str) -> None:
    more = {
        "coe ask": ["-m", MODEL, "--max-tokens", "2", "Hi"],
        "coe setup": ["--dry-run"],
        "coe config get": ["profile"],
        "coe experts show": ["sql_query"],
        "coe models show": [MODEL],
        "coe models verify": [MODEL, "--no-run"],
        "coe node": ["-p", "embedded"],
    }
    if command == "coe node":
        pytest.importorskip("ray")
    if command == "coe logs show":
        shared_coe.run("ask", "-m", MODEL, "--max-tokens", "2", "Hi").check()
    result = shared_coe.run(*command.split()[1:], *more.get(command, []), "--format", "json")
    assert differences(parse(DOCUMENTED[command]), json.loads(result.stdout), command) == []


def test_every_command_with_json_is_documented() -> None:
    """The reference lists the formats of each command."""
    text = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    with_json = {part.splitlines()[0] for part in sections if re.search(r"`--format`.*\bjson\b", part)}
    assert with_json == {*DOCUMENTED, "coe bench"}
