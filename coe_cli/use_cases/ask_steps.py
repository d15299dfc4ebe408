"""What `coe ask` does whether one expert answers or several: options, messages, room, install, the college, the record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from coe_cli.core.answer import Answer
from coe_cli.core.catalog import Catalog
from coe_cli.core.model_spec import ModelSpec
from coe_cli.core.profile import HardwareProfile, ProfileSet
from coe_cli.core.selection import Choice, choose_profile
from coe_cli.errors import ModelMissing, PromptTooLong
from coe_cli.output.answer_sink import AnswerFormat, AnswerSink, CodeBlockSink, JsonLinesSink, JsonSink
from coe_cli.output.console import Output
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.folders import folders
from coe_cli.runtime.prompts.prompts import prompt_tokens
from coe_cli.runtime.store.model_store import open_model
from coe_cli.runtime.worker import protocol

if TYPE_CHECKING:
    from coe_cli.core.conversations import Conversation
    from coe_cli.runtime.routing.ask_routing import Routed
    from coe_cli.runtime.server.college_client import CollegeClient
    from coe_cli.runtime.server.serve_options import ServeOptions


@dataclass(frozen=True)
class AskOptions:
    """What the user asked for; None leaves the choice to coe, the profile or the model."""

    question: str
    model: str | None
    expert: str | None
    profile: str | None
    system: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    pull: bool
    timeout_s: float
    serve: bool = True
    resume: bool = False
    no_log: bool = False
    route: bool = True
    explain: bool = False
    experts: str | None = None
    synthesis: bool = True
    refine: bool = False
    profiles_file: Path | None = None
    catalog_file: Path | None = None
    allow_special_tokens: bool = False


class View(NamedTuple):
    """How the answer is shown. ``live`` allows the live view, which is drawn on a terminal only."""

    output_format: AnswerFormat = AnswerFormat.HUMAN
    extract: bool = False
    show_thinking: bool = False
    live: bool = True

    @property
    def whole(self) -> bool:
        """Whether nothing of an answer is shown before its end, so that it may start again unseen."""
        if self.output_format in (AnswerFormat.JSON, AnswerFormat.JSONL):
            return self.output_format is AnswerFormat.JSON
        return self.extract and not self.show_thinking


def college_for(options: AskOptions, output: Output) -> CollegeClient | None:
    """The resident college, started if there is none; None where it cannot serve this question, and why is said."""
    from coe_cli.runtime.server import college_client

    client, why_not = college_client.reach(serve_options(options))
    if client is None:
        output.note(f"{why_not}; answering without it")
    return client


def serve_options(options: AskOptions) -> ServeOptions:
    """The college that these options mean."""
    from coe_cli.runtime.server.serve_options import ServeOptions

    return ServeOptions(
        profile=options.profile,
        profiles_file=str(options.profiles_file.absolute()) if options.profiles_file else None,
        catalog_file=str(options.catalog_file.absolute()) if options.catalog_file else None,
    )


def conversation_to_resume(profiles: ProfileSet) -> Conversation:
    from coe_cli.runtime.conversation import history

    return history.last_conversation(profiles.history)


def keep(
    answer: Answer,
    options: AskOptions,
    messages: list[protocol.ChatMessage],
    conversation: Conversation | None,
    profiles: ProfileSet,
    output: Output,
) -> None:
    """Keep question and answer, if that is wanted; a history that cannot be written costs a note and no more."""
    from coe_cli.runtime.conversation import history

    if not history.logging_wanted(profiles.history, no_log=options.no_log):
        return
    from coe_cli.core.conversations import Exchange

    exchange = Exchange(
        question=options.question,
        answer=answer.answer,
        model=answer.model,
        expert=answer.expert,
        provider=answer.provider,
        profile=answer.profile,
        system=next((message.content for message in messages if message.role == "system"), ""),
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        load_s=answer.timing.load_s,
        first_token_s=answer.timing.first_token_s,
        decode_s=answer.timing.decode_s,
    )
    _, warning = history.record(
        exchange, profiles.history, conversation_id=conversation.id if conversation else None, no_log=options.no_log
    )
    if warning:
        output.note(warning)


def messages_for(options: AskOptions, choice: Choice, conversation: Conversation | None) -> list[protocol.ChatMessage]:
    earlier = conversation.chat() if conversation is not None else []
    kept = next((content for role, content in earlier if role == "system"), "")
    system = options.system if options.system is not None else kept or choice.system_prompt
    messages = [protocol.ChatMessage(role, content) for role, content in earlier if role != "system"]
    messages.append(protocol.ChatMessage("user", options.question))
    return [protocol.ChatMessage("system", system.strip()), *messages] if system.strip() else messages


def install_chosen(choice: Choice, catalog: Catalog, output: Output, *, pull: bool) -> ModelSpec:
    """Fetch the embedded model with progress and its size said.

    Raises:
        ModelMissing: ``pull`` forbids it, or no source gives it.
    """
    entry = catalog.models[choice.model]
    size_mb = next((source.size_mb for source in entry.sources if source.size_mb), None)
    size = f" ({size_mb:.0f} MB)" if size_mb else ""
    if not pull:
        raise ModelMissing(
            f"no model is on disk and --no-pull forbids to fetch `{choice.model}`{size}",
            f"Fetch it: coe models pull {choice.model}",
        )
    from coe_cli.output.progress_view import ProgressView

    with ProgressView(output, f"fetching {choice.model}{size}, once") as view:
        from coe_cli.runtime.store.install import install

        return install(choice.model, catalog, folders().models, view)


def context_length(spec: ModelSpec, profile: HardwareProfile) -> int:
    return min(profile.context_length, spec.context_length)


def fit(
    spec: ModelSpec,
    choice: Choice,
    messages: list[protocol.ChatMessage],
    options: AskOptions,
    profiles: ProfileSet,
    output: Output,
) -> tuple[ModelSpec, HardwareProfile]:
    """The model that has room for the prompt: the chosen one, or the expert's fallback.

    Raises:
        PromptTooLong: neither has.
    """
    profile = choose_profile(profiles, options.profile, spec.provider)
    context = context_length(spec, profile)
    tokens = prompt_tokens(spec, messages, choice.template, context)
    if tokens is None or tokens < context:
        return spec, profile
    if choice.fallback is not None:
        other = open_model(choice.fallback, folders().models / choice.fallback)
        other_profile = choose_profile(profiles, options.profile, other.provider)
        other_context = context_length(other, other_profile)
        other_tokens = prompt_tokens(other, messages, None, other_context)
        if other_tokens is None or other_tokens < other_context:
            output.note(
                f"the prompt has {tokens} tokens and {spec.name} has room for {context}: {other.name} answers instead"
            )
            return other, other_profile
    limits = f"profile {profile.name} allows {profile.context_length}, {spec.name} {spec.context_length}"
    shorter = "Begin a new conversation (without -c)" if options.resume else "Shorten the prompt"
    raise PromptTooLong(
        f"the prompt has {tokens} tokens and the context is {context} ({limits})",
        f"{shorter}, or choose a profile (-p) or a model (-m) with a longer context.",
    )


def ask_for(spec: ModelSpec, choice: Choice, messages: list[protocol.ChatMessage], options: AskOptions) -> ce.AskByName:
    """The request to the model that ``fit`` settled on, which may not be the chosen one."""
    return ce.AskByName(
        model=spec.name,
        messages=messages,
        template=choice.template if spec.name == choice.model else None,
        max_tokens=options.max_tokens,
        allow_special_tokens=options.allow_special_tokens,
        sampling=protocol.Sampling(options.temperature, options.top_p, options.top_k, options.seed),
    )


def sink_for(
    output: Output, label: str, spec: ModelSpec, profile: HardwareProfile, view: View, explained: Routed | None = None
) -> AnswerSink:
    """Where the answer goes; JSON has the decision too where it is to be explained."""
    from coe_cli.output.routing import routing_as_dict

    routing = None
    if explained is not None and explained.decision is not None:
        routing = routing_as_dict(explained.decision, explained.latency_ms)
    if view.output_format is AnswerFormat.JSON:
        return JsonSink(output, routing)
    if view.output_format is AnswerFormat.JSONL:
        return JsonLinesSink(output, routing)
    if view.extract:
        return CodeBlockSink(output, show_thinking=view.show_thinking)
    if view.live and view.output_format is AnswerFormat.HUMAN and output.stderr.isatty():
        from coe_cli.output.live_answer import LiveAnswerSink
        from coe_cli.runtime.college.gauge import memory_gauge

        return LiveAnswerSink(output, label, memory_gauge(spec, profile), show_thinking=view.show_thinking)
    return AnswerSink(output, show_thinking=view.show_thinking)
