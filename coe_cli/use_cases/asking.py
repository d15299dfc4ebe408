"""`coe ask`: one request to a college, what it says of who answers, the answer, the record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from coe_cli.core.hardware.profile import ProfileSet
from coe_cli.core.models.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.names import joined
from coe_cli.core.routing.router import Routing
from coe_cli.core.routing.synthesis import parse_experts
from coe_cli.errors import PromptTooLong, UsageError
from coe_cli.output.answer_sink import AnswerFormat
from coe_cli.output.console import Output
from coe_cli.runtime.client.client import Events
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import AUTO, ChatRequest, ExpertCount, Resolved
from coe_cli.runtime.college.collecting import about, collect
from coe_cli.runtime.worker.protocol import FLUSH_S
from coe_cli.use_cases.ask_steps import Asking, AskOptions, View, keep, messages_for, sink_for
from coe_cli.use_cases.clients import CollegePlace, client_for
from coe_cli.use_cases.providing import Providing


def run_ask(options: AskOptions, catalog: Catalog, profiles: ProfileSet, output: Output, view: View) -> None:
    """Answer one question, by one expert or by several.

    Raises:
        CoeError: whatever keeps the answer from being given, as one of its kinds.
    """
    if options.pull and not options.model and view.output_format is AnswerFormat.HUMAN:
        from coe_cli.runtime.settings import read_catalog, read_profiles
        from coe_cli.use_cases.setting_up import offer_setup

        def catalog_of() -> Catalog:
            return read_catalog(options.catalog_file)

        if offer_setup(catalog_of, lambda: read_profiles(options.profiles_file), output):
            catalog, profiles = catalog_of(), read_profiles(options.profiles_file)
    profiles.select(options.profile)
    if options.experts is None:
        options = replace(options, expert=options.expert_of(catalog))
    wanted = check_options(options, catalog)
    conversation = None
    if options.resume:
        from coe_cli.runtime.conversation import history

        conversation = history.last_conversation(profiles.history)
    routes = options.route and options.model is None and options.expert is None and conversation is None
    place = CollegePlace(options.profile, options.profiles_file, options.catalog_file, options.serve, routes)
    client = client_for(place, catalog, profiles, output.note, options.timeout_s)
    try:
        _Ask(Asking(options, catalog, profiles, output, view, conversation, client)).answer(wanted)
    except PromptTooLong as error:
        if conversation is None:
            raise
        hint = "Begin a new conversation (without -c), or choose a profile (-p) or a model (-m) with a longer context."
        raise PromptTooLong(error.message, hint) from None
    finally:
        client.close()


def check_options(options: AskOptions, catalog: Catalog) -> int | tuple[str, ...] | None:
    """What ``--experts`` asks for; see ``parse_experts``.

    Raises:
        UsageError: options that exclude each other, or an unknown expert.
    """
    wanted = parse_experts(options.experts, catalog.experts)
    if options.expert is not None:
        catalog.expert(options.expert)
        if options.experts is not None:
            raise UsageError("-e names one expert and --experts several", "Give one of the two.")
    if not options.synthesis and options.experts is None and (options.model or options.expert):
        raise UsageError(
            "--no-synthesis is for drafts of several experts, and one was named", "Add --experts, or leave it out."
        )
    if options.refine and not options.synthesis:
        raise UsageError("--refine is a synthesis, which --no-synthesis forbids", "Give one of the two.")
    several = wanted > 1 if isinstance(wanted, int) else wanted is not None and len(wanted) > 1
    if options.refine and several:
        raise UsageError("--refine takes one expert's draft", "Name one expert, or leave --refine out.")
    return wanted


class _Ask:
    """One question on its way."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._options, self._catalog, self._profiles, self._output, self._view, *_ = asking
        self._conversation, self._client = asking.conversation, asking.client
        self._told_why = False
        self._ended: list[str] = []
        self._human = self._view.output_format is AnswerFormat.HUMAN
        self._providing = Providing(
            self._catalog,
            self._profiles,
            self._output,
            profile=self._options.profile,
            pull=self._options.pull,
            speaks=self._human or self._output.stderr.isatty(),
        )
        self._providing.unrouted = self._unrouted

    def answer(self, wanted: int | tuple[str, ...] | None) -> None:
        options = self._options
        named = self._named(wanted)
        if len(named) > 1 or (named and options.refine):
            self._explain_named(named)
            self._together(named, {}, None)
            return
        told, events = self._providing.ask(self._client, self._request(named, wanted))
        with contextlib.closing(events):
            self._tell(told, named)
            if len(told.experts) > 1 or options.refine:
                self._together(told.experts, told.parts, told.routing)
                return
            sink = sink_for(self._output, told, self._profiles, self._view, explain=options.explain)
            try:
                answer = collect(self._noting(events), about(told), sink)
                sink.finish(answer)
                self._output.notes(self._ended)
            finally:
                sink.close()
        keep(answer, told.system, self._asking)

    def _request(self, named: list[str], wanted: int | tuple[str, ...] | None) -> ChatRequest:
        options, view = self._options, self._view
        experts: ExpertCount = wanted if isinstance(wanted, int) else AUTO if options.experts is not None else None
        routed_anyway = options.model is not None and (options.experts is not None or options.refine)
        return ChatRequest(
            messages_for(options, self._conversation),
            expert=named[0] if named else AUTO if routed_anyway else None,
            model=options.model,
            experts=1 if named or options.refine else experts,
            route=options.route,
            max_tokens=options.max_tokens,
            sampling=options.sampling,
            buffered=view.buffered,
            flush_s=0.0 if view.output_format is AnswerFormat.JSONL else FLUSH_S,  # a line for each token
            allow_special_tokens=options.allow_special_tokens,
            resolve_only=options.refine,
            fallback=options.fallback or None,
        )

    def _named(self, wanted: int | tuple[str, ...] | None) -> list[str]:
        """Whom the user names, or who goes on with the conversation."""
        options, conversation = self._options, self._conversation
        if options.expert is not None:
            return [options.expert]
        if isinstance(wanted, tuple):
            return list(wanted)
        if conversation is not None and options.experts is None and options.model is None:
            return [conversation.expert] if conversation.expert in self._catalog.experts else []
        return []

    def _together(self, experts: list[str], parts: dict[str, str], routing: Routing | None) -> None:
        from coe_cli.use_cases.asking_several import Together

        Together(self._asking, experts, parts, routing, self._providing).answer()

    # --- what the user is told

    def _explain_named(self, named: list[str]) -> None:
        if self._options.explain:
            self._output.note(f"not routed: {', '.join(named)} was named")

    def _tell(self, told: Resolved, named: list[str]) -> None:
        if told.routing is not None:
            self._tell_routing(told.routing, told.experts)
        elif named or self._options.model is not None:
            self._explain_named(named or [self._options.model or ""])
        elif self._options.explain and not self._told_why:
            self._output.note(f"not routed: routing is off, {GENERAL_EXPERT} answers")
        if self._human and len(told.experts) <= 1 and not self._options.refine:
            self._output.notes(told.warnings)

    def _noting(self, events: Events) -> Iterator[ce.CollegeEvent]:
        """The same events; what is to be said of the prompt is said when it comes, what of the end is kept for the end."""
        for event in events:
            if self._human and isinstance(event, ce.PrefillStarted):
                self._output.notes(event.notes)
            elif self._human and isinstance(event, ce.Finished):
                self._ended = event.notes
            yield event

    def _tell_routing(self, routing: Routing, experts: list[str]) -> None:
        from coe_cli.output.routing import describe, parts_of

        decision = routing.decision
        if decision is None:
            self._unrouted(routing)
            return
        if self._options.explain:
            by = "the running college" if self._client.kind == "college" else "coe itself"
            self._output.note(f"{describe(decision)} · routed by {by} in {routing.latency_ms:.0f} ms")
            self._output.notes(parts_of(decision))
        elif self._human and decision.unsure and len(experts) == 1:
            self._output.note(f"{describe(decision)}; name an expert with -e if it should be another")
        if len(experts) > 1 and self._human:
            self._output.note(f"{joined(experts)} are asked (--experts 1 asks one)")

    def _unrouted(self, routing: Routing) -> None:
        self._told_why = True
        if self._human or self._options.explain:
            self._output.note(routing.unrouted)
