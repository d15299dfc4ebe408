"""The questions that the router learns from: the shipped file, and what the catalog says of each role."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from msgspec import Struct

from coe_cli.core.models.catalog import Catalog
from coe_cli.core.regular_file import read_regular

FILE_NAME = "routing_examples.yaml"
_MAX_BYTES = 8 * 2**20

_OWN_COUNT = 6
"""An example in the catalog, of which a role has a few, counts as so many of the shipped ones, of which it has a hundred."""

_TERM_QUESTIONS = (
    "{}",
    "What is {}?",
    "How do I use {}?",
    "{} in practice",
    "Explain {}",
    "Help with {}, please",
)


class _ExamplesFile(Struct, frozen=True, forbid_unknown_fields=True):
    origin: str
    licence: str
    single: dict[str, list[str]]
    terms: dict[str, list[str]]
    double: dict[str, list[str]]


class TrainingSet(Struct, frozen=True):
    """Questions with their roles; a role is its position in ``roles``.

    ``single`` are questions of one role, ``double`` of two, ``terms`` short phrases of a role that count for less.
    """

    roles: tuple[str, ...]
    single: list[tuple[str, int]]
    terms: list[tuple[str, int]]
    double: list[tuple[str, tuple[int, int]]]


def training_set(catalog: Catalog, shipped: Path | None = None) -> TrainingSet:
    """The training set for the roles of ``catalog``: their examples there, the shipped ones, and their descriptions.

    ``shipped`` is the examples file; without, the one beside the first catalog file, where there is one.

    Raises:
        ProfileInvalid: the examples file is not valid.
    """
    from coe_cli.core.documents import Document

    roles = tuple(catalog.experts)
    position = {role: index for index, role in enumerate(roles)}
    path = shipped or catalog.paths[0].with_name(FILE_NAME)
    file = Document(path).convert(_ExamplesFile) if path.is_file() else _ExamplesFile("", "", {}, {}, {})
    single: list[tuple[str, int]] = []
    for role, expert in catalog.experts.items():
        own = [*expert.examples * _OWN_COUNT, *file.single.get(role, [])]
        single += [(text, position[role]) for text in own or [expert.description or role, role.replace("_", " ")]]
    terms = [
        (_TERM_QUESTIONS[count % len(_TERM_QUESTIONS)].format(term), position[role])
        for count, (role, term) in enumerate((r, t) for r, listed in file.terms.items() for t in listed)
        if role in position
    ]
    terms += [(expert.description, position[role]) for role, expert in catalog.experts.items() if expert.description]
    double = []
    for pair, texts in file.double.items():
        first, _, second = pair.partition("+")
        if first in position and second in position:
            double += [(text, (position[first], position[second])) for text in texts]
    return TrainingSet(roles=roles, single=single, terms=terms, double=double)


def examples_digest(catalog: Catalog, shipped: Path | None = None) -> str:
    """SHA-256 of everything that ``training_set`` would read, without parsing the examples file."""
    path = shipped or catalog.paths[0].with_name(FILE_NAME)
    digest = hashlib.sha256(read_regular(path, _MAX_BYTES) if path.is_file() else b"")
    described = [[role, expert.description, expert.examples] for role, expert in catalog.experts.items()]
    digest.update(json.dumps(described, ensure_ascii=True).encode())
    return digest.hexdigest()
