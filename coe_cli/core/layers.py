"""Several YAML files as one: later files are merged over earlier ones by key, and a broken entry of one file can be left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from coe_cli.core.documents import Document
from coe_cli.core.problem import Problem
from coe_cli.errors import ProfileInvalid

T = TypeVar("T")
KeyPath = tuple[Any, ...]
"""Keys as YAML reads them: a number or a date where somebody has left out the quotes."""


class Layers(Document):
    """Documents merged by key; an error names the file whose key it concerns.

    A mapping is merged into the mapping before it, anything else takes its place. ``null`` inside a section removes a key
    of an earlier file.

    Raises:
        ProfileInvalid: a document has no keys at its top level.
    """

    def __init__(self, documents: list[Document], data: Any = None) -> None:
        self._documents = documents
        self.data = data if data is not None else _merged(documents)

    def error(self, key_path: list[str | int], problem: str, hint: str = "") -> ProfileInvalid:
        """A one-line error of the last document that has the key of ``key_path``.

        A key of the first document, which is the shipped one, is at odds with what a later document has beside it.
        """
        for depth in range(len(key_path), 0, -1):
            having = [document for document in self._documents if document.depth_of(key_path) >= depth]
            if having and having[-1] is not self._documents[0]:
                return having[-1].error(key_path, problem, hint)
        return self._documents[-1].error(key_path, problem, hint)


def build_layers(
    documents: list[Document], own: Path | None, build: Callable[[Layers], T]
) -> tuple[T, dict[str, Problem]]:
    """Build a value from YAML documents, each later one over those before it.

    What is wrong in the file ``own`` (the one in the user's configuration folder) does not stop commands that need nothing of
    it: its entries are then taken one by one, and those that do not fit are left out and returned by their key
    (``experts.haiku``; "" for the whole file).

    Raises:
        ProfileInvalid: another file is wrong.
    """
    try:
        return build(Layers(documents)), {}
    except ProfileInvalid as error:
        mine = next((document for document in documents if document.path == own), None)
        if mine is None:
            raise
        if not isinstance(mine.data, dict):
            documents.remove(mine)
            return build(Layers(documents)), {"": Problem(error.message, error.hint)}
    return _without_broken(documents, mine, build)


def _without_broken(
    documents: list[Document], mine: Document, build: Callable[[Layers], T]
) -> tuple[T, dict[str, Problem]]:
    taken: dict[str, Any] = {}
    problems: dict[str, Problem] = {}

    def attempt(data: dict[str, Any]) -> T:
        return build(Layers(documents, _merged(documents, {mine.path: data})))

    value = attempt(taken)
    for key_path in _entries(mine.data):
        trial = _with(taken, mine.data, key_path)
        try:
            value = attempt(trial)
            taken = trial
        except ProfileInvalid as error:
            problems[".".join(map(str, key_path))] = Problem(error.message, error.hint)
    return value, problems


def _entries(data: dict[Any, Any]) -> Iterator[KeyPath]:
    """Entries of sections first, models before the experts that use them; then single settings."""
    sections = sorted((key for key in data if isinstance(data[key], dict)), key=lambda key: (key != "models", str(key)))
    for section in sections:
        for name in data[section]:
            yield (section, name)
    for key in data:
        if not isinstance(data[key], dict):
            yield (key,)


def _with(taken: dict[str, Any], data: dict[str, Any], key_path: KeyPath) -> dict[str, Any]:
    """``taken`` with what ``data`` has at ``key_path``."""
    first, *rest = key_path
    if not rest:
        return taken | {first: data[first]}
    return taken | {first: taken.get(first, {}) | {rest[0]: data[first][rest[0]]}}


def _merged(documents: list[Document], instead: dict[Path, Any] | None = None) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for document in documents:
        if not isinstance(document.data, dict):
            raise document.error(
                [], "expected keys and values at the top level", "See the shipped file for the layout."
            )
        data = document.data if instead is None else instead.get(document.path, document.data)
        for key, value in data.items():
            before = merged.get(key)
            if value is None and before is not None:
                continue  # an empty section says nothing
            merged[key] = _over(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _over(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    result = dict(before)
    for key, value in after.items():
        old = result.get(key)
        if value is None and key in result:
            del result[key]
        elif isinstance(old, dict) and isinstance(value, dict):
            result[key] = _over(old, value)
        else:
            result[key] = value
    return result
