"""What a client provides before a college can answer: the embedded model at first use, and the router's files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import structs

from coe_cli.core.hardware.profile import ProfileSet, Provider
from coe_cli.core.models.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.notes import Note, Progress
from coe_cli.core.routing.router import Routing
from coe_cli.errors import DeviceLost, ModelMissing
from coe_cli.output.console import Output, Wait
from coe_cli.output.question import answer_to, is_interactive
from coe_cli.output.terminal import draws_on
from coe_cli.runtime.client.client import Client, Events
from coe_cli.runtime.college.chat_request import ChatRequest, Needed, Resolved
from coe_cli.runtime.folders import folders
from coe_cli.runtime.progress import Step

if TYPE_CHECKING:
    from coe_cli.output.progress_view import ProgressView


class Providing:
    """Installs and prepares with progress, where that is allowed; tells whom ``unrouted`` names why nothing was routed."""

    def __init__(
        self,
        catalog: Catalog,
        profiles: ProfileSet,
        output: Output,
        *,
        profile: str | None = None,
        pull: bool = True,
        speaks: bool = True,
    ) -> None:
        self._catalog, self._profiles, self._output = catalog, profiles, output
        self._profile, self._pull, self._speaks = profile, pull, speaks
        self.unrouted: Callable[[Routing], None] = lambda routing: None
        self._consented: set[str] = set()

    def ask(self, client: Client, request: ChatRequest) -> tuple[Resolved, Events]:
        """Who answers, and the events that follow; what the college needs first is provided.

        Raises:
            CoeError: as ``Client.ask``, or it cannot be provided.
        """
        request, given = structs.replace(request, provides=True), 0
        while True:
            request = self.with_consent(request)
            events = client.ask(request)
            starts = "the college is starting, or choosing who answers"
            with self._output.waiting("waiting for the college" if given else starts):
                first = next(events, None)
            if isinstance(first, Resolved):
                return first, events
            events.close()
            if not isinstance(first, Needed):
                raise DeviceLost("the college did not say who answers", "Ask again.")
            given += 1
            request = structs.replace(self._provide(first, request), provides=given < 3)

    def with_consent(self, request: ChatRequest) -> ChatRequest:
        """The request, with the fallback model allowed where the user has said so for its expert."""
        return structs.replace(request, fallback=True) if request.expert in self._consented else request

    def resolve(self, client: Client, request: ChatRequest) -> Resolved:
        """Who would answer, without asking.

        Raises:
            CoeError: as ``ask``.
        """
        told, events = self.ask(client, structs.replace(request, resolve_only=True))
        events.close()
        return told

    def _provide(self, needed: Needed, request: ChatRequest) -> ChatRequest:
        """The request to ask instead of ``request``, now that what it needs is there or known not to be had."""
        if needed.what == "consent":
            return self._ask_user(needed, request)
        if needed.what == "model":
            install_model(needed.name, self._builds(), self._output, pull=self._pull)
            return request
        from coe_cli.runtime.routing.router_preparation import prepare_router

        where, provider = folders(), self._provider()
        with contextlib.closing(Preparing(self._output, speaks=self._speaks)) as view:
            problem = prepare_router(self._catalog, where, provider, view, fetch=self._pull)
        if problem is None:
            return request
        self.unrouted(problem)
        return structs.replace(request, expert=GENERAL_EXPERT, experts=1)

    def _provider(self) -> Provider:
        from coe_cli.runtime.college.college_profile import college_profile

        return college_profile(self._profiles, self._profile, self._catalog, folders()).provider

    def _builds(self) -> Catalog:
        """The catalog with the builds that suit the college's profile."""
        return self._catalog.on(self._provider())

    def _ask_user(self, needed: Needed, request: ChatRequest) -> ChatRequest:
        """Install the expert's model or let the fallback model answer, as the user says.

        Raises:
            ModelMissing: neither, or there is nobody to ask.
        """
        builds = self._builds()
        missing = f"{needed.expert}'s model {needed.name} is not installed{builds.size_words(needed.name)}"
        installs = self._pull and not needed.reason
        if needed.reason:
            missing, hint = f"{missing}, and {needed.reason}", "What suits this machine: coe setup --dry-run."
        else:
            hint = f"Install it: coe models pull {needed.name}."
        hint += f" Or let {needed.fallback} answer: --fallback."
        said = ""
        if is_interactive(self._output):
            choices = f"[i]nstall, [a]nswer with {needed.fallback}, [q]uit" if installs else "[a]nswer, [q]uit"
            install = "Install it, or answer" if installs else "Answer"
            question = f"{missing}. {install} with {needed.fallback}? {choices}:"
            said = answer_to(self._output, question).strip().lower()[:1]
        if said == "i" and installs:
            install_model(needed.name, builds, self._output, pull=True)
            return request
        if said != "a":
            raise ModelMissing(missing, hint)
        self._consented.add(needed.expert)
        return structs.replace(request, fallback=True)


def install_model(name: str, catalog: Catalog, output: Output, *, pull: bool) -> None:
    """Fetch a model with progress, its licence and size said.

    Raises:
        ModelMissing: ``pull`` forbids it, or no source gives it.
    """
    if not pull:
        raise ModelMissing(
            f"no model is on disk and --no-pull forbids to fetch `{name}`{catalog.size_words(name)}",
            f"Fetch it: coe models pull {name}",
        )
    from coe_cli.runtime.store.install import request_for
    from coe_cli.use_cases.fetching import fetch_requests

    fetch_requests([request_for(name, catalog, folders().models)], output)


class Preparing:
    """Shows what has to be prepared before the first question can be routed, with the time that it takes.

    ``waiting`` is said instead where nothing has to be prepared and it takes long all the same.
    """

    def __init__(self, output: Output, *, speaks: bool = True, waiting: str | None = None) -> None:
        self._output, self._speaks, self._wait = output, speaks, Wait(output)
        if waiting is not None:
            self._wait.begin(waiting)
        self._view: ProgressView | None = None

    def __call__(self, note: Note) -> None:
        if not self._speaks:
            return
        if note.kind != "progress":
            (self._view or self._output).note(note.line)
            return
        self._wait.end()  # its line would be written into the bar's
        if self._view is None:
            from coe_cli.output.progress_view import ProgressView

            title = "preparing to route questions, once"
            if draws_on(self._output.stderr):  # elsewhere the view says it
                self._output.note(title)
            self._view = ProgressView(self._output, title)
            self._view.__enter__()
        done, total = (note.done, note.total) if isinstance(note, Progress) else (0, None)
        self._view(Step(note.text, done, total, is_bytes=isinstance(note, Progress)))

    def close(self) -> None:
        self._wait.end()
        if self._view is not None:
            self._view.__exit__(None, None, None)
