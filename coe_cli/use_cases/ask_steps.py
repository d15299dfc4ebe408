"""What `coe ask` does whether one expert answers or several: options, client, messages, where it is shown, the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from coe_cli.core.answers.answer import Answer
from coe_cli.core.hardware.profile import ProfileSet
from coe_cli.core.models.catalog import Catalog
from coe_cli.output.answer_sink import AnswerFormat, AnswerSink, CodeBlockSink, JsonLinesSink, JsonSink
from coe_cli.output.console import Output
from coe_cli.output.terminal import draws_on
from coe_cli.runtime.client.client import Client
from coe_cli.runtime.college.chat_request import Resolved
from coe_cli.runtime.worker.protocol import ChatMessage
from coe_cli.use_cases.answer_options import AnswerOptions

if TYPE_CHECKING:
    from coe_cli.core.answers.conversations import Conversation


@dataclass(frozen=True, kw_only=True)
class AskOptions(AnswerOptions):
    """One question."""

    question: str
    timeout_s: float = 600.0
    route: bool = True
    explain: bool = False
    experts: str | None = None
    synthesis: bool = True
    refine: bool = False
    allow_special_tokens: bool = False


class View(NamedTuple):
    """How the answer is shown. ``live`` allows the live view, which is drawn on a terminal only."""

    output_format: AnswerFormat = AnswerFormat.HUMAN
    extract: bool = False
    show_thinking: bool = False
    live: bool = True

    @property
    def buffered(self) -> bool:
        """Whether nothing of an answer is shown before its end, so that it may start again unseen."""
        if self.output_format in (AnswerFormat.JSON, AnswerFormat.JSONL):
            return self.output_format is AnswerFormat.JSON
        return self.extract and not self.show_thinking


class Asking(NamedTuple):
    """One question on its way: what the user asked for, and what it is answered and shown with."""

    options: AskOptions
    catalog: Catalog
    profiles: ProfileSet
    output: Output
    view: View
    conversation: Conversation | None
    client: Client


def keep(answer: Answer, system: str, asking: Asking) -> None:
    """Keep question and answer, if that is wanted; a history that cannot be written costs a note and no more."""
    from coe_cli.runtime.conversation import history

    options, profiles, conversation = asking.options, asking.profiles, asking.conversation
    if not history.logging_wanted(profiles.history, no_log=options.no_log):
        return
    from coe_cli.core.answers.conversations import Exchange

    exchange = Exchange(
        question=options.question,
        answer=answer.answer,
        model=answer.model,
        expert=answer.expert,
        provider=answer.provider,
        profile=answer.profile,
        system=system,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        load_s=answer.timing.load_s,
        first_token_s=answer.timing.first_token_s,
        decode_s=answer.timing.decode_s,
    )
    with asking.output.waiting("another coe writes the file of conversations"):
        _, warning = history.record(
            exchange, profiles.history, conversation_id=conversation.id if conversation else None, no_log=options.no_log
        )
    if warning:
        asking.output.note(warning)


def messages_for(options: AskOptions, conversation: Conversation | None) -> list[ChatMessage]:
    """The conversation with the question at its end; a system prompt of the user's own or of before comes first."""
    earlier = conversation.chat() if conversation is not None else []
    system = options.system
    if system is None:
        system = next((content for role, content in earlier if role == "system" and content), None)
    messages = [ChatMessage("system", system)] if system is not None else []
    messages += [ChatMessage(role, content) for role, content in earlier if role != "system"]
    return [*messages, ChatMessage("user", options.question)]


def sink_for(output: Output, told: Resolved, profiles: ProfileSet, view: View, *, explain: bool) -> AnswerSink:
    """Where the answer goes; JSON has the decision too where it is to be explained."""
    routing = None
    if explain and told.routing is not None and told.routing.decision is not None:
        from coe_cli.output.routing import routing_as_dict

        routing = routing_as_dict(told.routing.decision, told.routing.latency_ms)
    if view.output_format is AnswerFormat.JSON:
        return JsonSink(output, routing)
    if view.output_format is AnswerFormat.JSONL:
        return JsonLinesSink(output, routing)
    human = view.output_format is AnswerFormat.HUMAN
    if view.extract:
        return CodeBlockSink(output, show_thinking=view.show_thinking, says_waiting=human)
    if view.live and human and draws_on(output.stderr):
        from coe_cli.output.live_answer import LiveAnswerSink
        from coe_cli.runtime.college.memory_probe import usage_sampler

        label = f"{told.expert} · {told.model}" if told.routing is not None and told.expert else told.model
        label = f"{told.model} for {told.expert}" if told.is_fallback else label
        sample = usage_sampler(told.provider, profiles.select(told.profile))
        return LiveAnswerSink(output, label, sample, show_thinking=view.show_thinking)
    return AnswerSink(output, show_thinking=view.show_thinking, says_waiting=human)
