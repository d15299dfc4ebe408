"""coe from Python: ask, stream and plan, as the commands do. docs/python.md is its page."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import msgspec

from coe_cli.core.answers.answer import Answer, some_question
from coe_cli.core.answers.sampling import Sampling
from coe_cli.core.batch.batch_rows import in_words
from coe_cli.core.plain_text import check_text
from coe_cli.errors import UsageError
from coe_cli.runtime import settings
from coe_cli.runtime.client.client import resolve
from coe_cli.runtime.college.chat_request import ChatRequest, Resolved, json_guidance
from coe_cli.runtime.college.collecting import Collector, broken_off
from coe_cli.use_cases.clients import CollegePlace, client_for

if TYPE_CHECKING:
    from coe_cli.core.memory.planner import Plan

Question = str | Sequence[Mapping[str, str]]
"""A question, or a conversation as OpenAI writes it: ``{"role": …, "content": …}``."""


class Options(TypedDict, total=False):
    """What may be said of an answer; what is left out is for the router, the expert or the model to say."""

    expert: str
    model: str
    system: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: list[str]
    json_schema: dict[str, Any]
    """The answer is JSON by this schema."""
    fallback: bool
    """The embedded model may answer for an expert whose own is not installed."""


class Client:
    """Asks the running college, started if need be; with ``serve`` false, one in this process that ends with it.

    A context manager. Calls from several threads are answered side by side. ``timeout_s``: seconds without a sign of life
    after which an answer is given up. ``note`` is told what the commands say on stderr.
    """

    def __init__(
        self,
        profile: str | None = None,
        *,
        serve: bool = True,
        timeout_s: float | None = 600.0,
        profiles_file: Path | None = None,
        catalog_file: Path | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Without ``profile`` the one of ``COE_PROFILE`` counts, as for the commands.

        Raises:
            ProfileInvalid: a file of profiles or experts is wrong, or there is no such profile.
        """
        profile = profile or os.environ.get("COE_PROFILE") or None
        self._profiles, self._catalog = settings.read_profiles(profiles_file), settings.read_catalog(catalog_file)
        self._profile = self._profiles.select(profile)
        place = CollegePlace(profile, profiles_file, catalog_file, serve, routes=True)
        self._client = client_for(place, self._catalog, self._profiles, note, timeout_s)

    def ask(self, question: Question, **options: Unpack[Options]) -> Answer:
        """The whole answer, with who gave it and what it cost.

        Raises:
            UsageError: an option is wrong.
            CoeError: why there is no answer; ``hint`` says what to do.
        """
        stream = self._stream(_request(question, options, streamed=False))
        while True:
            try:
                next(stream)
            except StopIteration as end:
                answer: Answer = end.value
                return answer

    def stream(self, question: Question, **options: Unpack[Options]) -> Generator[str, None, Answer]:
        """The answer's text as it comes, without thoughts; the generator's value is the whole answer.

        Closing the generator cancels the answer.

        Raises:
            CoeError: as ``ask``.
        """
        return self._stream(_request(question, options, streamed=True))

    def route(self, question: str) -> Resolved:
        """Who would answer a question, with which model, and why; nothing is loaded.

        Raises:
            CoeError: nobody could answer.
        """
        return resolve(self._client, _request(question, {}, streamed=False))

    def plan(
        self,
        experts: Sequence[str] | None = None,
        *,
        context_length: int | None = None,
        slots: int | None = None,
        vram_mb: int | None = None,
        solve: Literal["context", "slots", "vram"] | None = None,
    ) -> Plan:
        """Whether experts fit the profile's memory, in MB, as `coe vram plan` counts; nothing is loaded.

        Raises:
            CoeError: an unknown expert, or a model that cannot be read.
        """
        from coe_cli.runtime.folders import folders
        from coe_cli.runtime.planning.plan_inputs import PlanRequest
        from coe_cli.runtime.planning.plan_report import report

        chosen = tuple(experts) if experts is not None else None
        request = PlanRequest(experts=chosen, slots=slots, context_length=context_length, vram_mb=vram_mb, solve=solve)
        return report(request, self._profile, self._catalog, folders()).plan

    def close(self) -> None:
        """Cancel what is running; a college in this process ends. Safe to call more than once."""
        self._client.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _stream(self, request: ChatRequest) -> Generator[str, None, Answer]:
        heard = _Text()
        collector = Collector(renderer=heard)
        with contextlib.closing(self._client.ask(request)) as events:
            for event in events:
                answer = collector.feed(event)
                yield from heard.take()
                if answer is not None:
                    return answer
        raise broken_off()


class _Text:
    """Keeps the deltas of the answer, without thoughts, until they are taken."""

    def __init__(self) -> None:
        self._deltas: list[str] = []

    def phase(self, name: str, worker_pid: int) -> None: ...

    def wrote(self, tokens: int) -> None: ...

    def delta(self, text: str, *, is_thinking: bool) -> None:
        if not is_thinking:
            self._deltas.append(text)

    def take(self) -> list[str]:
        taken, self._deltas = self._deltas, []
        return taken


def _request(question: Question, options: Options, *, streamed: bool) -> ChatRequest:
    """
    Raises:
        UsageError: an unknown option, a value that is out of its range, or a text that no model can be given.
    """
    check_text(question=question, **options)
    if isinstance(question, str):
        some_question(question, "See docs/python.md.")
    turns = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    given: dict[str, Any] = dict(options)
    system, schema = given.pop("system", None), given.pop("json_schema", None)
    given |= {"messages": [{"role": "system", "content": system}, *turns] if system is not None else turns}
    given |= {"sampling": {name: given.pop(name) for name in Sampling.__struct_fields__ if name in given}}
    given |= {"buffered": not streamed}
    if unknown := given.keys() - set(ChatRequest.__struct_fields__):
        raise UsageError(f"unknown options: {', '.join(sorted(unknown))}", "See docs/python.md.")
    if schema is not None and not isinstance(schema, Mapping):
        raise UsageError("`json_schema` is not a dict", "See docs/python.md.")
    if schema is not None:
        given["guidance"] = json_guidance(dict(schema))
    try:
        return msgspec.convert(msgspec.to_builtins(given), ChatRequest)
    except (msgspec.ValidationError, TypeError) as error:
        raise UsageError(f"the question or an option is wrong: {in_words(error)}", "See docs/python.md.") from None
