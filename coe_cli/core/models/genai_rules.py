"""What a value of ``genai_config.json`` may be: rules that check one value and give what is handed on in its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from coe_cli.core.models.source_uri import check_member
from coe_cli.errors import UsageError

INT32: Final = 2**31 - 1
_MAX_TEXT: Final = 256
_MAX_NOTES: Final = 20


class Refused(Exception):
    """Something in the file is not allowed; the text says what and where."""


class Walk:
    """What is gathered on the way: files that are named, and notes on what was dropped."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.notes: list[str] = []

    def dropped(self, where: str) -> None:
        """Note a key that is not handed on."""
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(f"{where} is not used")


Rule = Callable[[Any, str, Walk], Any]
"""Takes a value, where it stands and the walk; gives the value to hand on, or raises ``Refused``."""


def printable(key: str) -> str:
    """A foreign name as it may be shown: short, and without control characters."""
    shown = key if key.isprintable() else ascii(key)[1:-1]
    return shown if len(shown) <= 80 else shown[:77] + "..."


def join(where: str, key: str) -> str:
    """Where a key stands, fit for a message."""
    shown = printable(key)
    return f"{where}.{shown}" if where else shown


def wrong(where: str, value: Any, wanted: str) -> Refused:
    """The error for a value that is not what it must be."""
    shown = ascii(value)
    return Refused(f"has `{where}` as {shown if len(shown) <= 60 else shown[:57] + '...'} and not as {wanted}")


def integer(low: int, high: int = INT32) -> Rule:
    def rule(value: Any, where: str, walk: Walk) -> int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole or not low <= value <= high:
            wanted = f"{low}" if low == high else f"a whole number from {low} to {high}"
            raise wrong(where, value, wanted)
        return int(value)

    return rule


def number(low: float, high: float) -> Rule:
    def rule(value: Any, where: str, walk: Walk) -> float:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not low <= value <= high:
            raise wrong(where, value, f"a number from {low:g} to {high:g}")
        return float(value)

    return rule


def boolean(value: Any, where: str, walk: Walk) -> bool:
    if not isinstance(value, bool):
        raise wrong(where, value, "true or false")
    return value


def text(value: Any, where: str, walk: Walk) -> str:
    """A name without control characters and without a ``%``, which OGA's ``snprintf`` would read, except one ``%d``."""
    plain = isinstance(value, str) and value.isprintable() and len(value) <= _MAX_TEXT
    if not plain or value.count("%") != value.count("%d") or value.count("%d") > 1:
        raise wrong(where, value, f"a name of at most {_MAX_TEXT} characters, with `%d` once at most")
    return str(value)


def matching(pattern: str) -> Rule:
    compiled = re.compile(pattern, re.ASCII)

    def rule(value: Any, where: str, walk: Walk) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise wrong(where, value, f"a text of the form {pattern}")
        return value

    return rule


def list_of(item: Rule, at_most: int = 4096) -> Rule:
    def rule(value: Any, where: str, walk: Walk) -> list[Any]:
        if not isinstance(value, list) or len(value) > at_most:
            raise wrong(where, value, f"a list of at most {at_most}")
        return [item(one, f"{where}[{number}]", walk) for number, one in enumerate(value)]

    return rule


def either(first: type, one: Rule, other: Rule) -> Rule:
    def rule(value: Any, where: str, walk: Walk) -> Any:
        return (one if isinstance(value, first) else other)(value, where, walk)

    return rule


def file_in_folder(ending: str) -> Rule:
    """A plain relative name that stays in the folder."""

    def rule(value: Any, where: str, walk: Walk) -> str:
        try:
            inside = isinstance(value, str) and value.isprintable() and check_member(value) == value
        except UsageError:
            inside = False
        if not inside or not value.lower().endswith(ending):
            raise wrong(where, value, f"a {ending} file; none may lie outside of its folder")
        walk.files.append(value)
        return str(value)

    return rule


def section(known: dict[str, Rule], *, handed_on: bool = False) -> Rule:
    """An object with the keys of ``known``; ``handed_on`` says that others would reach ONNX Runtime."""

    def rule(value: Any, where: str, walk: Walk) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong(where, value, "a section")
        found: dict[str, Any] = {}
        for key, item in value.items():
            at = join(where, key)
            if key not in known and handed_on:
                raise Refused(f"has `{at}`, which is not on the list of allowed options")
            if key not in known or item is None:
                walk.dropped(at)
            else:
                found[key] = known[key](item, at, walk)
        return found

    return rule


def named(item: Rule, at_most: int = 64, name: Rule = text) -> Rule:
    """An object whose keys are names of the model's own choice."""

    def rule(value: Any, where: str, walk: Walk) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > at_most:
            raise wrong(where, value, f"a section of at most {at_most}")
        return {name(key, where, walk): item(one, join(where, key), walk) for key, one in value.items()}

    return rule
