"""`coe route`: which expert would answer, and how sure that is."""

from __future__ import annotations

import contextlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ProfileOption,
    ProfilesFileOption,
    read_catalog,
    read_profiles,
    utf8_words,
)

if TYPE_CHECKING:
    from coe_cli.core.models.catalog import Catalog
    from coe_cli.core.routing.router import RouteAnswer


_HOW = "Give one: coe route How do I join two tables, or one a line on stdin: coe route -"


class RouteFormat(StrEnum):
    HUMAN = "human"
    JSONL = "jsonl"
    JSON = "json"


def route(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUESTION]...",
            help="The question, quoted or not; `-` or nothing reads one question a line from stdin.",
            callback=utf8_words,
        ),
    ] = None,
    output_format: Annotated[
        RouteFormat, typer.Option("--format", help="human, jsonl (one object a question) or json (one list).")
    ] = RouteFormat.HUMAN,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Train the router again from its examples.")] = False,
    embedder: Annotated[
        str | None,
        typer.Option("--embedder", help="all-MiniLM-L6-v2, bge-m3, a sentence-transformers folder or a hub id."),
    ] = None,
    profile: ProfileOption = None,
    profiles: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
    experts_file: Annotated[Path | None, typer.Option("--experts-file", hidden=True)] = None,
    no_pull: Annotated[bool, typer.Option("--no-pull", help="Never download an embedder.")] = False,
) -> None:
    """Say which expert would answer a question: one, several, or an honest "unsure".

    Examples:

      coe route "How do I join two tables?"

      coe route --format jsonl - < questions.txt

      coe route --rebuild
    """
    from coe_cli.core.answers.answer import some_question
    from coe_cli.core.models.catalog import GENERAL_EXPERT
    from coe_cli.output.console import Output
    from coe_cli.output.routing import write_decided, write_decisions
    from coe_cli.runtime.folders import folders
    from coe_cli.runtime.routing.router_cache import Allowed, open_router
    from coe_cli.use_cases.providing import Preparing

    output = Output()
    question = " ".join(words) if words else None
    if question == "-" or (question is None and not _stdin_is_terminal() and not rebuild):
        question, lines = None, _lines()
        some_question("".join(lines), _HOW)
    else:
        lines = [] if question is None and rebuild else [some_question(question or "", _HOW)]
    known = read_profiles(profiles)
    selected = known.select(profile)
    if not known.routing.enabled:
        output.note(f"routing is off in the profile file: {GENERAL_EXPERT} answers whatever is shown here")
    catalog = read_catalog(catalog_file or experts_file)
    if question is not None and not rebuild:
        with output.waiting("asking the college"):
            answer = _by_the_college(question, catalog, embedder)
        if answer is not None:
            write_decided(output, question, answer.decisions[0], answer.latency_ms, output_format.value)
            return
    with contextlib.closing(Preparing(output, waiting="loading the router")) as view:
        router = open_router(
            catalog,
            folders(),
            view,
            embedder=embedder,
            provider=selected.provider,
            may=Allowed(fetch=not no_pull, rebuild=rebuild),
        )
    if not lines:
        output.note(f"the router is ready ({router.embedder.info.name})")
        return
    write_decisions(output, router, lines, output_format.value)


def _by_the_college(question: str, catalog: Catalog, embedder: str | None) -> RouteAnswer | None:
    """The running college's decision, or None where none runs or it cannot tell; it need not load anything for that."""
    from coe_cli.core.routing.router import RouteRequest
    from coe_cli.errors import CoeError
    from coe_cli.runtime.routing.router_cache import examples_digest
    from coe_cli.runtime.server import college_client

    college = college_client.find()
    if college is None:
        return None
    wanted = embedder or os.environ.get("COE_EMBEDDER") or None
    try:
        return college.route(RouteRequest([question], examples_digest(catalog), wanted))
    except CoeError:
        return None
    finally:
        college.close()


def _lines() -> list[str]:
    """Questions on stdin, one a line; bytes that are no text are replaced, an empty line is a question too."""
    from coe_cli.core.text_encoding import decode_text

    return decode_text(sys.stdin.buffer.read(), "replace").splitlines()


def _stdin_is_terminal() -> bool:
    return sys.stdin.isatty()
