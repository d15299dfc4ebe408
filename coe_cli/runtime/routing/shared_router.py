"""The one router of a long-lived process: opened at the first question, asked from any thread, never a download."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from coe_cli.core.models.catalog import Catalog
from coe_cli.core.notes import Note
from coe_cli.core.routing.router import Decision
from coe_cli.core.routing.router_examples import examples_digest
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing.embedder import Embedder
from coe_cli.runtime.routing.router_cache import Allowed, QuestionRouter, open_router
from coe_cli.runtime.server.route_messages import RouteAnswer, RouteRequest


class SharedRouter:
    """Routes with what is prepared: it neither fetches an embedder nor trains, which `coe route` and `coe ask` do.

    Safe for several threads; the first question opens the router (some 0.3 s), and so does the first one after
    `coe route --rebuild`.
    """

    def __init__(self, catalog: Catalog, where: Folders, provider: str | None = None) -> None:
        self._catalog, self._where, self._provider = catalog, where, provider
        self._opening = threading.Lock()
        self._opened: tuple[QuestionRouter, str, tuple[int, int]] | None = None

    def route(self, text: str) -> Decision:
        """The decision for one question; its ``experts[0].name`` is the expert to ask.

        Raises:
            ModelMissing: no router is prepared for this catalog, or its embedder is damaged.
        """
        return self.route_many([text])[0]

    def decide(self, text: str) -> tuple[Decision, float]:
        """The decision for one question, and the milliseconds that it took without what had to be loaded first.

        Raises:
            ModelMissing: see ``route``.
        """
        router = self._router(examples_digest(self._catalog))
        begin = time.perf_counter()
        return router.route(text), (time.perf_counter() - begin) * 1000

    def route_many(self, texts: Sequence[str]) -> list[Decision]:
        """The decisions for ``texts``, in their order.

        Raises:
            ModelMissing: see ``route``.
        """
        return self._router(examples_digest(self._catalog)).route_many(texts)

    def embedder(self) -> Embedder:
        """The embedder that the router asks, loaded.

        Raises:
            ModelMissing: see ``route``.
        """
        return self._router(examples_digest(self._catalog)).embedder

    def answer(self, request: RouteRequest, loaded_models: list[str]) -> RouteAnswer | None:
        """What another process asks, or None where it has other examples or another embedder than this one.

        Raises:
            ModelMissing: see ``route``.
        """
        digest = examples_digest(self._catalog)
        if request.digest != digest:
            return None
        begin = time.perf_counter()
        router = self._router(digest)
        name = router.embedder.info.name
        if request.embedder not in (None, name):
            return None
        decisions = router.route_many(request.texts)
        return RouteAnswer(decisions, round((time.perf_counter() - begin) * 1000, 3), name, loaded_models)

    def _router(self, digest: str) -> QuestionRouter:
        with self._opening:
            opened = self._opened
            if opened is None or opened[1] != digest or opened[2] != opened[0].stamp():
                router = open_router(
                    self._catalog,
                    self._where,
                    _say_nothing,
                    provider=self._provider,
                    may=Allowed(fetch=False, train=False),
                )
                opened = self._opened = (router, digest, router.stamp())
            return opened[0]


def _say_nothing(note: Note) -> None:
    pass
