"""The questions that the router learns from: the shipped file, and what the catalog says of each role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from coe_cli.core.models.catalog import Catalog

if TYPE_CHECKING:
    from coe_cli.core.documents import Document

FILE_NAME = "routing_examples.yaml"

_OWN_COUNT = 6
"""An example in the catalog, of which a role has a few, counts as so many of the shipped ones, of which it has a hundred."""

_TERM_QUESTIONS = ("{}", "What is {}?", "How do I use {}?", "{} in practice", "Explain {}", "Help with {}, please")


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


def training_set_of(catalog: Catalog, shipped: Document | None) -> TrainingSet:
    """The training set for the roles of ``catalog``: their examples there, those of ``shipped``, and their descriptions.

    Raises:
        ProfileInvalid: ``shipped``, the examples file, is not valid.
    """
    roles = tuple(catalog.experts)
    position = {role: index for index, role in enumerate(roles)}
    file = shipped.convert(_ExamplesFile) if shipped is not None else _ExamplesFile("", "", {}, {}, {})
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
