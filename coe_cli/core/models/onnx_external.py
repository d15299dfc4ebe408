"""Every other file that an ONNX file reads, wherever in it that stands, and the operator sets that it needs.

Weights are the graph's own initializers as a rule; constants of nodes, branches of ``If`` and ``Loop`` and functions may
name data files as well. Field numbers are those of ``onnx.proto3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from msgspec import Struct

from coe_cli.core.models.onnx_records import Span, _fields, _text

KNOWN_DOMAINS: Final = frozenset(
    (
        "",
        "ai.onnx",
        "ai.onnx.ml",
        "ai.onnx.preview.training",
        "com.microsoft",
        "com.microsoft.nchwc",
        "com.microsoft.dml",
        "com.ms.internal.nhwc",
    )
)
"""Operators that ONNX Runtime has itself; others come with a library or are functions in the file."""

_LOCATION: Final = re.compile(rb"location")
_TENSORS, _GRAPHS, _SPARSE = (5, 10), (6, 11), (22, 23)
_MAX_DEPTH: Final = 32
_MAX_FOREIGN: Final = 10_000


class Operator(NamedTuple):
    """An operator by its set and name."""

    domain: str
    name: str


class GraphNeeds(Struct, frozen=True):
    """``files``: locations of external data as they are written.

    ``unknown``: operators that neither ONNX Runtime nor a function of the file is, each with the name of a node that it is
    used in.
    """

    files: frozenset[str]
    unknown: dict[Operator, str]


def graph_needs(data: Any, *, all_nodes: bool) -> GraphNeeds:
    """All that an ONNX file needs beside itself; ``data`` are its bytes, or a memory map of them.

    Without ``all_nodes`` only its files: nodes are looked through only where one of them has any.

    Raises:
        ValueError, IndexError, TypeError, OverflowError: it is not an ONNX file, or has two graphs.
    """
    top = list(_fields(data, (0, len(data))))
    graphs = [span for number, span in top if number == 7 and span[1] >= 0]
    if len(graphs) != 1:
        raise ValueError("there is not one graph in it")
    found = _Found(data)
    found.tensors_of(graphs[0])
    if all_nodes or found.mentions < sum(1 for _ in _LOCATION.finditer(data)):
        found.graph(graphs[0], 0)
        for number, span in top:
            if number == 25:
                found.function(span)
    unknown = {operator: node for operator, node in found.foreign.items() if operator not in found.defined}
    return GraphNeeds(frozenset(found.files), unknown)


class _Found:
    """What has been found so far. ``mentions`` counts the entries named ``location``."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.files: set[str] = set()
        self.foreign: dict[Operator, str] = {}
        self.defined: set[Operator] = set()
        self.mentions = 0

    def tensors_of(self, graph: Span) -> None:
        """The initializers (5) of a graph, sparse ones (15) too."""
        for number, span in self._records(graph):
            if number == 5:
                self._tensor(span)
            elif number == 15:
                self._sparse(span)

    def graph(self, graph: Span, depth: int) -> None:
        """A graph with its nodes (1)."""
        if depth > _MAX_DEPTH:
            raise ValueError("its graphs are nested too deeply")
        self.tensors_of(graph)
        for number, span in self._records(graph):
            if number == 1:
                self._node(span, depth)

    def function(self, function: Span) -> None:
        """A FunctionProto: name (1), nodes (7) and domain (10)."""
        texts = {1: "", 10: ""}
        for number, span in self._records(function):
            if number == 7:
                self._node(span, 0)
            elif number in texts:
                texts[number] = _text(self._data, span)
        self.defined.add(Operator(texts[10], texts[1]))

    def _node(self, node: Span, depth: int) -> None:
        """A NodeProto: name (3), operator (4), attributes (5) and domain (7)."""
        texts = {3: "", 4: "", 7: ""}
        for number, span in self._records(node):
            if number == 5:
                for inner, value in self._records(span):
                    if inner in _TENSORS:
                        self._tensor(value)
                    elif inner in _GRAPHS:
                        self.graph(value, depth + 1)
                    elif inner in _SPARSE:
                        self._sparse(value)
            elif number in texts:
                texts[number] = _text(self._data, span)
        if texts[7] not in KNOWN_DOMAINS and len(self.foreign) < _MAX_FOREIGN:
            self.foreign.setdefault(Operator(texts[7], texts[4]), texts[3])

    def _sparse(self, sparse: Span) -> None:
        """A SparseTensorProto: values (1) and indices (2)."""
        for number, span in self._records(sparse):
            if number in (1, 2):
                self._tensor(span)

    def _tensor(self, tensor: Span) -> None:
        """The entries (13: key 1, value 2) of a TensorProto that are named ``location``."""
        for number, span in self._records(tensor):
            if number != 13:
                continue
            entry = {key: _text(self._data, value) for key, value in self._records(span)}
            if entry.get(1) == "location":
                self.mentions += 1
                self.files.add(entry.get(2, ""))

    def _records(self, span: Span) -> Iterator[tuple[int, Span]]:
        return ((number, inner) for number, inner in _fields(self._data, span) if inner[1] >= 0)
