"""The one router of a long-lived process: opened at the first question, asked from any thread, never a download.

A college learns changed examples behind its answers: until that is done a router of earlier examples decides.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from coe_cli.core.models.catalog import Catalog
from coe_cli.core.notes import Note
from coe_cli.core.routing.router import Decision, RouteAnswer, RouteRequest
from coe_cli.errors import CoeError
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing.embedder import Embedder
from coe_cli.runtime.routing.router_cache import Allowed, QuestionRouter, RouterUntrained, examples_digest, open_router


class SharedRouter:
    """Routes with what is prepared: it neither fetches an embedder nor trains, which `coe route` and `coe ask` do.

    Safe for several threads; the first question opens the router (some 0.3 s), and so does the first one after
    `coe route --rebuild`. ``learn`` trains a router on the examples as they are, elsewhere, and ends when it is written.
    """

    def __init__(
        self, catalog: Catalog, where: Folders, provider: str | None = None, *, learn: Callable[[], None] | None = None
    ) -> None:
        self._catalog, self._where, self._provider, self._learn = catalog, where, provider, learn
        self._learning: dict[str, threading.Thread] = {}
        self._opening = threading.Lock()
        self._opened: tuple[QuestionRouter, str, tuple[int, ...]] | None = None

    def decide(self, text: str) -> tuple[Decision, float, str]:
        """The decision for one question, the milliseconds that it took without what had to be loaded first, and a note.

        Where ``learn`` is given and the examples have changed, it is started, and a router of earlier ones decides.

        Raises:
            ModelMissing: the embedder is not prepared, or nothing is trained and there is no ``learn``.
            CoeError: there is no earlier router for these roles, and the new one is being trained.
        """
        digest = examples_digest(self._catalog)
        try:
            router = self._router(digest, earlier=self._learn is not None)
        except RouterUntrained:
            if self._learn is None:
                raise
            self._begin_learning(digest, self._learn)
            raise CoeError("the router is still being trained on these examples", "ask again in a moment") from None
        note = ""
        if not router.current and self._learn is not None:
            self._begin_learning(digest, self._learn)
            note = "the examples have changed and are being learned; until that is done an earlier router decides"
        begin = time.perf_counter()
        return router.route(text), (time.perf_counter() - begin) * 1000, note

    def _begin_learning(self, digest: str, learn: Callable[[], None]) -> None:
        """In the background, and once: what failed is for `coe route --rebuild` to say."""

        def work() -> None:
            with contextlib.suppress(CoeError, OSError):
                learn()

        with self._opening:
            if digest not in self._learning:
                self._learning = {digest: threading.Thread(target=work, daemon=True)}
                self._learning[digest].start()

    def route_many(self, texts: Sequence[str]) -> list[Decision]:
        """The decisions for ``texts``, in their order.

        Raises:
            ModelMissing: no router is prepared for this catalog, or its embedder is damaged.
        """
        return self._router(examples_digest(self._catalog)).route_many(texts)

    def embedder(self) -> Embedder:
        """The embedder that the router asks, loaded.

        Raises:
            ModelMissing: see ``route_many``.
        """
        return self._router(examples_digest(self._catalog), earlier=True).embedder

    def answer(self, request: RouteRequest, loaded_models: list[str]) -> RouteAnswer | None:
        """What another process asks, or None where it has other examples or another embedder than this one.

        Raises:
            ModelMissing: see ``route_many``.
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

    def _router(self, digest: str, *, earlier: bool = False) -> QuestionRouter:
        with self._opening:
            opened = self._opened
            stale = opened is None or opened[1] != digest or opened[2] != opened[0].stamp()
            if opened is None or stale or not (earlier or opened[0].current):
                router = open_router(
                    self._catalog,
                    self._where,
                    _say_nothing,
                    provider=self._provider,
                    may=Allowed(fetch=False, train=False, earlier=earlier),
                )
                opened = self._opened = (router, digest, router.stamp())
            return opened[0]


def _say_nothing(note: Note) -> None:
    pass
