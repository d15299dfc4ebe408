"""A question to another process's router, and its answer: the bodies of POST /coe/route."""

from __future__ import annotations

from msgspec import Struct

from coe_cli.core.routing.router import Decision


class RouteRequest(Struct, frozen=True):
    """Questions for another process's router, and what it must have been trained on.

    ``digest`` is ``examples_digest`` of the asker's catalog, ``embedder`` the embedder that it insists on, if any.
    """

    texts: list[str]
    digest: str
    embedder: str | None = None


class RouteAnswer(Struct, frozen=True):
    """Decisions in the order of the questions, the milliseconds of all, and the models that are loaded."""

    decisions: list[Decision]
    latency_ms: float
    embedder: str
    loaded_models: list[str] = []
