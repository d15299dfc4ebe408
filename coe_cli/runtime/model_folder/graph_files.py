"""Reads the ONNX graphs of a model's folder, through memory maps: what the core makes of their bytes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from coe_cli.core.models import onnx_external, onnx_graph, onnx_records
from coe_cli.core.models.onnx_external import GraphNeeds
from coe_cli.core.models.onnx_graph import GraphFacts, graph_facts
from coe_cli.core.models.onnx_records import Records
from coe_cli.errors import damaged
from coe_cli.runtime.regular_file import open_regular

if TYPE_CHECKING:  # workers read graphs too, and need none of it
    from coe_cli.core.models.graph_check import GraphProblem
    from coe_cli.core.models.model_spec import ModelSpec


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of ``path``, for as long as the context lasts.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not an ONNX graph; also out of the context, while it is read.
    """
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is not an ONNX graph: {error}") from None


@contextmanager
def graph_records(path: Path) -> Iterator[Records]:
    """The records of the graph in ``path``, for as long as the context lasts; raises as ``_mapped``."""
    with _mapped(path) as data:
        yield onnx_records.graph_records(data)


def graph_needs(path: Path, *, all_nodes: bool = True) -> GraphNeeds:
    """All that ``path`` needs beside itself; see ``onnx_external.graph_needs``.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is not an ONNX file, or has two graphs.
    """
    with _mapped(path) as data:
        return onnx_external.graph_needs(data, all_nodes=all_nodes)


def external_data_sizes(path: Path) -> dict[str, int]:
    """File name → bytes that the graph reads up to, for each external data file; raises as ``_mapped``."""
    with graph_records(path) as records:
        return onnx_graph.external_data_sizes(records.initializers())


def read_graph(path: Path, *, past_key: str = "past_key_values.%d.key", logits: str = "logits") -> GraphFacts:
    """The facts of the graph in ``path``, as ``onnx_graph.graph_facts``; raises as ``_mapped``."""
    with graph_records(path) as records:
        return graph_facts(records, past_key, logits)


@contextmanager
def _records_of(spec: ModelSpec) -> Iterator[Records]:
    """The records of the graph of a model on disk.

    Raises:
        ModelDamaged: the graph is missing or cannot be read.
    """
    assert spec.folder is not None
    try:
        with graph_records(spec.folder / spec.graph) as records:
            yield records
    except (OSError, ValueError) as error:
        raise damaged(spec.name, str(error)) from None


def graph_of(spec: ModelSpec) -> GraphFacts:
    """The facts of the graph of a model on disk; raises as ``_records_of``."""
    with _records_of(spec) as records:
        return graph_facts(records, spec.past_key, spec.logits)


def check_model(spec: ModelSpec) -> list[GraphProblem]:
    """The problems that the provider of a model on disk has with its graph; raises as ``_records_of``."""
    from coe_cli.core.models.graph_check import graph_problems
    from coe_cli.core.providers import spec_of

    with _records_of(spec) as records:
        return graph_problems(records, spec_of(spec.provider).graph)
