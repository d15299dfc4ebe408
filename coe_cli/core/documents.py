"""YAML files that people edit, read into typed structs; every mistake is reported as file, line and key."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from coe_cli.errors import ProfileInvalid

T = TypeVar("T")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PATH = re.compile(r" - at `(?:key in )?\$?(?P<path>.*)`$")
_UNKNOWN_FIELD = re.compile(r"unknown field `(?P<field>.*?)`")
_MISSING_FIELD = re.compile(r"missing required field `(?P<field>.*?)`")
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")


class Document:
    """One YAML file with its node tree, so that any key can be traced back to its line.

    Raises:
        ProfileInvalid: the file cannot be read, is not YAML, or writes a key twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileInvalid(
                f"{path}: cannot be read: {_reason(error)}", "Check the path and its permissions."
            ) from None
        loader = _Loader(text)
        try:
            self._root = loader.get_single_node()
            self._refuse_duplicate_keys(self._root)
            self.data: Any = loader.construct_document(self._root) if self._root is not None else None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise ProfileInvalid(
                f"{where}: not valid YAML: {problem}", "Mend the line; YAML is indented by spaces."
            ) from None
        except (RecursionError, ValueError, OverflowError) as error:
            raise ProfileInvalid(f"{path}: cannot be read as YAML: {_reason(error)}", "Simplify the file.") from None
        finally:
            loader.dispose()

    def error(self, key_path: list[str | int], problem: str, hint: str = "") -> ProfileInvalid:
        """A one-line error that names the file, the line and the key of ``key_path``."""
        key = ".".join(str(step) for step in key_path) or "the file"
        return ProfileInvalid(f"{self.path}:{self.line_of(key_path)}: {key}: {problem}", hint or "Mend that line.")

    def convert(self, kind: type[T]) -> T:
        """The document as ``kind``, an ``msgspec.Struct``.

        Raises:
            ProfileInvalid: an unknown key, a missing key or a wrong type; the message names file, line and key.
        """
        if not isinstance(self.data, dict):
            raise self.error([], "expected keys and values at the top level", "See the shipped file for the layout.")
        try:
            return msgspec.convert(self.data, kind)
        except msgspec.ValidationError as error:
            raise self._explain(str(error), kind) from None

    def line_of(self, key_path: list[str | int]) -> int:
        """The 1-based line of the last key of ``key_path`` that exists."""
        node, line = self._root, 1
        for step in key_path:
            found = None
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    if key.value == str(step):
                        found, line = value, key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = node.value[step]
                line = found.start_mark.line + 1
            if found is None:
                break
            node = found
        return line

    def _explain(self, message: str, kind: type[Any]) -> ProfileInvalid:
        located = _PATH.search(message)
        path = self._resolve(located["path"] if located else "", message)
        problem = message[: located.start()] if located else message
        unknown, missing = _UNKNOWN_FIELD.search(message), _MISSING_FIELD.search(message)
        hint = ""
        if unknown:
            known = _known_fields(kind, path)
            path.append(unknown["field"])
            problem = "unknown key"
            hint = did_you_mean(unknown["field"], known) or f"Known keys here: {', '.join(known)}."
        elif missing:
            problem = f"the key `{missing['field']}` is missing"
            hint = f"Add `{missing['field']}`."
        return self.error(path, problem[0].lower() + problem[1:], hint)

    def _resolve(self, path: str, message: str) -> list[str | int]:
        """msgspec writes ``[...]`` for "some key or item": find the first one that has the fault."""
        steps: list[str | int] = []
        for match in _STEP.finditer(path):
            if match["name"] is not None:
                steps.append(match["name"])
            else:
                steps.append(match["index"] if match["index"] == "..." else int(match["index"]))
        return self._expand(steps, self.data, message)

    def _expand(self, steps: list[str | int], data: Any, message: str) -> list[str | int]:
        resolved: list[str | int] = []
        for position, step in enumerate(steps):
            if step == "...":
                rest = steps[position + 1 :]
                candidates = (
                    list(data) if isinstance(data, dict) else list(range(len(data))) if isinstance(data, list) else []
                )
                for candidate in candidates:
                    if _shows_fault(data[candidate], rest, message):
                        return [*resolved, candidate, *self._expand(rest, data[candidate], message)]
                return resolved
            resolved.append(step)
            try:
                data = data[step]
            except (KeyError, IndexError, TypeError):
                return resolved
        return resolved

    def _refuse_duplicate_keys(self, node: Any) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        raise ProfileInvalid(
                            f"{self.path}:{key.start_mark.line + 1}: {key.value}: the key is written twice",
                            "Keep one of them.",
                        )
                    seen.add(key.value)
                self._refuse_duplicate_keys(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._refuse_duplicate_keys(item)


def did_you_mean(name: str, known: list[str]) -> str:
    """``"Did you mean `x`?"`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else ""


def nearest(name: str, known: list[str]) -> str:
    """A hint that names the nearest known names, or all of them when none is near."""
    return did_you_mean(name, known) or (f"Known: {', '.join(sorted(known))}." if known else "None are known.")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0] if str(error) else type(error).__name__


_EXPECTED = re.compile(r"^Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`")
_TYPE_NAMES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "array": list,
    "object": dict,
    "null": type(None),
}


def _shows_fault(value: Any, rest: list[str | int], message: str) -> bool:
    """Whether following ``rest`` from ``value`` reaches something that ``message`` can be about."""
    for step in rest:
        if step == "...":
            children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
            remaining = rest[rest.index(step) + 1 :]
            return any(_shows_fault(child, remaining, message) for child in children)
        if not isinstance(value, dict | list):
            return False
        try:
            value = value[step]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            return False
    unknown, missing, expected = (
        _UNKNOWN_FIELD.search(message),
        _MISSING_FIELD.search(message),
        _EXPECTED.match(message),
    )
    if unknown:
        return isinstance(value, dict) and unknown["field"] in value
    if missing:
        return isinstance(value, dict) and missing["field"] not in value
    if expected:
        got = _TYPE_NAMES.get(expected["got"])
        is_bool = isinstance(value, bool)
        return got is None or (isinstance(value, got) and (got is bool or not is_bool))
    return True


def _known_fields(kind: Any, path: list[str | int]) -> list[str]:
    """Field names of the struct that ``path`` leads to inside ``kind``."""
    import typing

    for step in path:
        kind = _strip_optional(kind)
        origin = typing.get_origin(kind)
        if origin in (dict, list, tuple):
            kind = typing.get_args(kind)[1 if origin is dict else 0]
            continue
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
        if step not in fields:
            return []
        kind = fields[str(step)]
    kind = _strip_optional(kind)
    return [field.encode_name for field in msgspec.structs.fields(kind)] if _is_struct(kind) else []


def _strip_optional(kind: Any) -> Any:
    import types
    import typing

    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return kinds[0] if kinds else kind
    return kind


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
