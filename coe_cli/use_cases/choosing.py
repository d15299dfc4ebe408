"""Who answers a question of `coe ask`: whom the user names, who goes on with a conversation, or whom the router finds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from coe_cli.core.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.names import joined
from coe_cli.core.profile import ProfileSet
from coe_cli.core.synthesis import experts_to_ask, parse_experts
from coe_cli.errors import CoeError, UsageError
from coe_cli.output.answer_sink import AnswerFormat
from coe_cli.output.console import Output
from coe_cli.runtime.folders import folders
from coe_cli.runtime.progress import Step
from coe_cli.use_cases.ask_steps import AskOptions, serve_options

if TYPE_CHECKING:
    from coe_cli.core.conversations import Conversation
    from coe_cli.output.progress_view import ProgressView
    from coe_cli.runtime.routing.ask_routing import Routed


class Chosen(NamedTuple):
    """``experts`` in their order, or None where the user named a model and no expert; ``parts`` of the question by expert.

    ``routed`` is None where nothing had to be routed.
    """

    experts: list[str] | None
    parts: dict[str, str]
    routed: Routed | None


def check_options(options: AskOptions, catalog: Catalog) -> int | tuple[str, ...] | None:
    """What ``--experts`` asks for; see ``parse_experts``.

    Raises:
        UsageError: options that exclude each other, or an unknown expert.
    """
    wanted = parse_experts(options.experts, catalog.experts)
    if options.expert is not None and options.experts is not None:
        raise UsageError("-e names one expert and --experts several", "Give one of the two.")
    if options.refine and not options.synthesis:
        raise UsageError("--refine is a synthesis, which --no-synthesis forbids", "Give one of the two.")
    several = wanted > 1 if isinstance(wanted, int) else wanted is not None and len(wanted) > 1
    if options.refine and several:
        raise UsageError("--refine takes one expert's draft", "Name one expert, or leave --refine out.")
    return wanted


def choose_experts(
    options: AskOptions,
    catalog: Catalog,
    profiles: ProfileSet,
    output: Output,
    on_disk: Mapping[str, Path],
    conversation: Conversation | None,
    output_format: AnswerFormat,
) -> Chosen:
    """Settle who answers, and tell the user what is worth knowing of it.

    Raises:
        UsageError: options that exclude each other, or an unknown expert.
    """
    wanted = check_options(options, catalog)
    named = _named(options, wanted, catalog, conversation)
    if named is not None or (options.model is not None and options.experts is None and not options.refine):
        if options.explain:
            output.note(f"not routed: {', '.join(named) if named else options.model} was named")
        return Chosen(named, {}, None)
    if not (options.route and profiles.routing.enabled) and not (isinstance(wanted, int) and wanted > 1):
        if options.explain:
            output.note(f"not routed: routing is off, {GENERAL_EXPERT} answers")
        return Chosen([GENERAL_EXPERT], {}, None)
    routed = _route(options, catalog, profiles, output, on_disk, output_format)
    decision = routed.decision
    two = (profiles.routing.two_experts or options.experts is not None) and not options.refine
    experts = experts_to_ask(wanted, decision, two_experts=two)
    _tell(options, routed, experts, output, output_format)
    parts = decision.parts if decision is not None and set(decision.parts) == set(experts) else {}
    return Chosen(experts, parts, routed)


def _named(
    options: AskOptions, wanted: int | tuple[str, ...] | None, catalog: Catalog, conversation: Conversation | None
) -> list[str] | None:
    if options.expert is not None:
        return [options.expert]
    if isinstance(wanted, tuple):
        return list(wanted)
    goes_on = conversation is not None and conversation.expert in catalog.experts
    if goes_on and wanted is None and options.experts is None and options.model is None:
        assert conversation is not None
        return [conversation.expert or GENERAL_EXPERT]
    return None


def _route(
    options: AskOptions,
    catalog: Catalog,
    profiles: ProfileSet,
    output: Output,
    on_disk: Mapping[str, Path],
    output_format: AnswerFormat,
) -> Routed:
    from coe_cli.core.router import swap_aware
    from coe_cli.runtime.routing.ask_routing import route_question
    from coe_cli.runtime.server import college_client

    profile = profiles.select(options.profile)
    college = college_client.find() if options.serve else None
    if options.serve and college is None:
        _start_meanwhile(options)
    preparing = _Preparing(output, speaks=output_format is AnswerFormat.HUMAN or output.stderr.isatty())
    try:
        with contextlib.closing(preparing):
            routed = route_question(
                options.question,
                catalog,
                folders(),
                profile.provider,
                preparing,
                college=college,
                fetch=options.pull,
            )
        if routed.decision is not None and college is not None and profiles.routing.prefer_resident:
            with contextlib.suppress(CoeError):
                loaded = [line.name for line in college.snapshot().models if line.pid]
                routed = routed._replace(decision=swap_aware(routed.decision, catalog, on_disk, loaded))
        return routed
    finally:
        if college is not None:
            college.close()


def _start_meanwhile(options: AskOptions) -> None:
    """Start the college while the question is routed here; what goes wrong is said when the college is needed."""

    def start() -> None:
        from coe_cli.runtime.server import college_client

        with contextlib.suppress(Exception):
            client, _ = college_client.reach(serve_options(options))
            if client is not None:
                client.close()

    threading.Thread(target=start, daemon=True).start()


def _tell(options: AskOptions, routed: Routed, experts: list[str], output: Output, output_format: AnswerFormat) -> None:
    from coe_cli.output.routing import describe, parts_of
    from coe_cli.runtime.routing.ask_routing import unrouted_note

    decision = routed.decision
    if decision is None:
        if output_format is AnswerFormat.HUMAN or options.explain:
            output.note(unrouted_note(routed, experts[0]))
        return
    if options.explain:
        by = "the running college" if routed.by == "college" else "coe itself"
        output.note(f"{describe(decision)} · routed by {by} in {routed.latency_ms:.0f} ms")
        for line in parts_of(decision):
            output.note(line)
    elif output_format is AnswerFormat.HUMAN and decision.unsure and len(experts) == 1:
        output.note(f"{describe(decision)}; name an expert with -e if it should be another")
    if len(experts) > 1 and output_format is AnswerFormat.HUMAN:
        output.note(f"{joined(experts)} are asked (--experts 1 asks one)")


class _Preparing:
    """Shows what has to be prepared before the first question can be routed, with the time that it takes."""

    def __init__(self, output: Output, *, speaks: bool) -> None:
        self._output, self._speaks = output, speaks
        self._view: ProgressView | None = None

    def __call__(self, message: str) -> None:
        if not self._speaks:
            return
        if message.startswith("warning:"):
            (self._view or self._output).note(message)
            return
        if self._view is None:
            from coe_cli.output.progress_view import ProgressView

            title = "preparing to route questions, once: this takes a minute or two"
            if self._output.stderr.isatty():  # elsewhere the view says it
                self._output.note(title)
            self._view = ProgressView(self._output, title)
            self._view.__enter__()
        self._view(Step(message, 0, None))

    def close(self) -> None:
        if self._view is not None:
            self._view.__exit__(None, None, None)
