"""YAML files that people edit, read into typed structs; every mistake is reported as file, line and key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from coe_cli.core.names import did_you_mean
from coe_cli.errors import ProfileInvalid, first_line

_MAX_DEPTH = 64
_MAX_VALUES = 1_000_000
"""With each alias counted as what it stands for."""
T = TypeVar("T")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PATH = re.compile(r"(?s) - at `\$?(?P<path>.*)`$")
_UNKNOWN_FIELD = re.compile(r"(?s)unknown field `(?P<field>.*?)`")
_MISSING_FIELD = re.compile(r"(?s)missing required field `(?P<field>.*?)`")
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")


class Document:
    """The ``text`` of one YAML file with its node tree, so that any key can be traced back to its line.

    Raises:
        ProfileInvalid: it is not YAML, or writes a key twice.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        loader = _Loader(text)
        try:
            self._refuse_deep_nesting(text)
            self._root = loader.get_single_node()
            self._count(self._root, {})
            self.data: Any = loader.construct_document(self._root) if self._root is not None else None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise ProfileInvalid(
                f"{where}: not valid YAML: {_printable(problem)}", "Correct the line; YAML is indented by spaces."
            ) from None
        except (RecursionError, ValueError, OverflowError) as error:
            raise ProfileInvalid(f"{path}: cannot be read as YAML: {first_line(error)}", "Simplify the file.") from None
        finally:
            loader.dispose()

    def error(self, key_path: list[str | int], problem: str, hint: str = "") -> ProfileInvalid:
        """A one-line error that names the file, the line and the key of ``key_path``."""
        key = ".".join(str(step) for step in key_path) or "the file"
        where = f"{self.path}:{self.line_of(key_path)}"
        return ProfileInvalid(
            f"{where}: {_printable(key)}: {_printable(problem)}", _printable(hint or "Correct that line.")
        )

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
        return self._walk(key_path)[1]

    def depth_of(self, key_path: list[str | int]) -> int:
        """How many steps of ``key_path`` exist."""
        return self._walk(key_path)[0]

    def _walk(self, key_path: list[str | int]) -> tuple[int, int]:
        node, line, depth = self._root, 1, 0
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
            node, depth = found, depth + 1
        return depth, line

    def _explain(self, message: str, kind: type[Any]) -> ProfileInvalid:
        located = _PATH.search(message)
        path = self._resolve(located["path"] if located else "", message, kind)
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
        elif path and not isinstance(path[-1], str) and isinstance(_at(self.data, path[:-1]), dict):
            hint = "Put it in quotes."
        return self.error(path, problem[0].lower() + problem[1:], hint)

    def _resolve(self, path: str, message: str, kind: type[Any]) -> list[str | int]:
        """msgspec writes ``[...]`` for some value of a mapping: the one that alone brings the same message."""
        steps: list[str | int] = [
            m["name"] or (int(m["index"]) if m["index"] != "..." else "...") for m in _STEP.finditer(path)
        ]
        data, resolved = self.data, list[str | int]()
        for step in [*steps, "..."] if path.startswith("key` in") else steps:
            found = step
            if step == "...":
                container = _at(data, resolved)
                found = next(
                    (key for key in container if _message(_with_only(data, resolved, key), kind) == message), step
                )
                if found == step:
                    break
                data = _with_only(data, resolved, found)
            resolved.append(found)
        return resolved

    def _refuse_deep_nesting(self, text: str) -> None:
        """The C composer recurses without a limit and would overrun the stack."""
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else 1
                    raise ProfileInvalid(
                        f"{self.path}:{line}: nested more than {_MAX_DEPTH} levels deep", "Simplify the file."
                    )
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1

    def _count(self, node: Any, counts: dict[int, int]) -> int:
        """How many values ``node`` holds with its aliases filled in; refuses keys that are written twice."""
        if id(node) in counts:  # an alias
            if not counts[id(node)]:
                raise ProfileInvalid(f"{self._line(node)}: a value holds itself", "Simplify the file.")
            return counts[id(node)]
        counts[id(node)] = 0
        total = 1
        if isinstance(node, yaml.MappingNode):
            self._refuse_duplicate_keys(node)
            total += sum(self._count(value, counts) for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(self._count(item, counts) for item in node.value)
        if total > _MAX_VALUES:
            raise ProfileInvalid(f"{self._line(node)}: holds more than {_MAX_VALUES} values", "Simplify the file.")
        counts[id(node)] = total
        return total

    def _refuse_duplicate_keys(self, node: Any) -> None:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise ProfileInvalid(
                    f"{self._line(key)}: {_printable(key.value)}: the key is written twice", "Keep one of them."
                )
            seen.add(key.value)

    def _line(self, node: Any) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"


def _printable(text: str) -> str:
    """Text of the file as one line that cannot drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _at(data: Any, path: list[str | int]) -> Any:
    for step in path:
        data = data[step]
    return data


def _with_only(data: Any, path: list[str | int], key: str | int) -> Any:
    """A copy of ``data`` whose mapping at ``path`` has no other key than ``key``."""
    if not path:
        return {key: data[key]}
    copy = data.copy()
    copy[path[0]] = _with_only(data[path[0]], path[1:], key)
    return copy


def _message(data: Any, kind: type[Any]) -> str:
    try:
        msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


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
