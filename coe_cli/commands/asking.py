"""The steps of `coe ask`: choose, install if need be, load while the rest is made ready, answer, clean up."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from coe_cli.core.answer import Answer
from coe_cli.core.catalog import Catalog
from coe_cli.core.model_spec import ModelSpec, models_on_disk
from coe_cli.core.profile import HardwareProfile, ProfileSet, Provider
from coe_cli.core.selection import Choice, choose_model, choose_profile
from coe_cli.errors import ModelMissing, PromptTooLong
from coe_cli.output.answer_sink import AnswerFormat, AnswerSink, CodeBlockSink, JsonLinesSink, JsonSink
from coe_cli.output.console import Output
from coe_cli.runtime import college_events as ce
from coe_cli.runtime import one_shot, protocol, worker_process
from coe_cli.runtime.collecting import About, collect
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_store import open_model
from coe_cli.runtime.prompt_length import prompt_tokens
from coe_cli.runtime.providers import choose_provider, installed_providers

if TYPE_CHECKING:
    from coe_cli.core.conversations import Conversation
    from coe_cli.runtime.college_client import CollegeClient


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
    profiles_file: Path | None = None
    catalog_file: Path | None = None


def run_ask(
    options: AskOptions,
    catalog: Catalog,
    profiles: ProfileSet,
    output: Output,
    *,
    output_format: AnswerFormat,
    extract: bool,
    show_thinking: bool,
    live: bool,
) -> None:
    """Answer one question.

    Raises:
        CoeError: whatever keeps the answer from being given, as one of its kinds.
    """
    profiles.select(options.profile)
    conversation = _conversation(profiles) if options.resume else None
    on_disk = models_on_disk(folders().models)
    choice = choose_model(catalog, on_disk, expert=options.expert, model=options.model)
    if output_format is AnswerFormat.HUMAN:
        for note in choice.notes:
            output.note(note)
    if choice.install:
        spec = install_chosen(choice, catalog, output, pull=options.pull)
    else:
        spec = open_model(choice.model, on_disk[choice.model])
    messages = _messages(options, choice, conversation)
    spec, profile = _fit(spec, choice, messages, options, profiles, output)
    ask = ce.AskByName(
        model=spec.name,
        messages=messages,
        template=choice.template if spec.name == choice.model else None,
        max_tokens=options.max_tokens,
        sampling=protocol.Sampling(options.temperature, options.top_p, options.top_k, options.seed),
    )
    events = _events(ask, spec, profile, options, output)
    with contextlib.closing(events):
        sink = _sink(output, spec, profile, output_format, extract=extract, show_thinking=show_thinking, live=live)
        try:
            about = About(choice.expert, spec.name, spec.provider, profile.name, choice.notes)
            answer = collect(events, about, sink)
            sink.finish(answer)
        finally:
            sink.close()
    _keep(answer, options, messages, conversation, profiles, output)


def _events(
    ask: ce.AskByName, spec: ModelSpec, profile: HardwareProfile, options: AskOptions, output: Output
) -> Generator[ce.CollegeEvent]:
    """The answer's events, from the resident college or from a worker of our own, which is loading when this returns."""
    # Listing the installed packages takes longer than all else here, and a model for the CPU has no choice.
    installed: list[Provider] = ["cpu"] if spec.provider == "cpu" else installed_providers()
    provider, why = choose_provider(spec.name, spec.provider, profile, installed)
    if why.startswith("slower:"):
        output.note(why)
        spec = structs.replace(spec, provider=provider)
    client = _college(options, output) if options.serve else None  # which gives the model the same provider
    if client is not None:
        return _of_college(client, ask, options.timeout_s)
    worker = worker_process.take()
    try:
        one_shot.begin_loading(worker, spec)
    except BaseException:
        worker.kill()
        raise
    return _of_worker(worker, ask, _context_length(spec, profile), options.timeout_s)


def _of_college(client: CollegeClient, ask: ce.AskByName, timeout_s: float) -> Generator[ce.CollegeEvent]:
    with contextlib.closing(client):
        yield from client.stream_chat(ask, timeout_s)


def _of_worker(
    worker: worker_process.WorkerProcess, ask: ce.AskByName, context_length: int, timeout_s: float
) -> Generator[ce.CollegeEvent]:
    try:
        yield from one_shot.events(worker, ask, context_length, timeout_s)
    finally:
        if os.environ.get("COE_DEBUG"):
            sys.stderr.write(worker.stderr_tail())
        worker.kill()


def _college(options: AskOptions, output: Output) -> CollegeClient | None:
    """The resident college, started if there is none; None where it cannot serve this question, and why is said."""
    from coe_cli.runtime import college_client
    from coe_cli.runtime.serve_options import ServeOptions

    client, why_not = college_client.reach(
        ServeOptions(
            profile=options.profile,
            profiles_file=str(options.profiles_file.absolute()) if options.profiles_file else None,
            catalog_file=str(options.catalog_file.absolute()) if options.catalog_file else None,
        )
    )
    if client is None:
        output.note(f"{why_not}; answering without it")
    return client


def _conversation(profiles: ProfileSet) -> Conversation:
    from coe_cli.runtime import history

    return history.last_conversation(profiles.history)


def _keep(
    answer: Answer,
    options: AskOptions,
    messages: list[protocol.ChatMessage],
    conversation: Conversation | None,
    profiles: ProfileSet,
    output: Output,
) -> None:
    """Keep question and answer, if that is wanted; a history that cannot be written costs a note and no more."""
    from coe_cli.runtime import history

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


def _messages(options: AskOptions, choice: Choice, conversation: Conversation | None) -> list[protocol.ChatMessage]:
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
        from coe_cli.runtime.install import install

        return install(choice.model, catalog, folders().models, view)


def _context_length(spec: ModelSpec, profile: HardwareProfile) -> int:
    return min(profile.context_length, spec.context_length)


def _fit(
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
    context = _context_length(spec, profile)
    assert spec.folder is not None
    tokens = prompt_tokens(spec.folder, messages, choice.template, context)
    if tokens is None or tokens < context:
        return spec, profile
    if choice.fallback is not None:
        other = open_model(choice.fallback, folders().models / choice.fallback)
        other_profile = choose_profile(profiles, options.profile, other.provider)
        other_context = _context_length(other, other_profile)
        assert other.folder is not None
        other_tokens = prompt_tokens(other.folder, messages, None, other_context)
        if other_tokens is None or other_tokens < other_context:
            output.note(
                f"the prompt has {tokens} tokens and {spec.name} has room for {context}: {other.name} answers instead"
            )
            return other, other_profile
    limits = f"profile {profile.name} allows {profile.context_length}, {spec.name} {spec.context_length}"
    raise PromptTooLong(
        f"the prompt has {tokens} tokens and the context is {context} ({limits})",
        "Shorten the prompt, or choose a profile (-p) or a model (-m) with a longer context.",
    )


def _sink(
    output: Output,
    spec: ModelSpec,
    profile: HardwareProfile,
    output_format: AnswerFormat,
    *,
    extract: bool,
    show_thinking: bool,
    live: bool,
) -> AnswerSink:
    if output_format is AnswerFormat.JSON:
        return JsonSink(output)
    if output_format is AnswerFormat.JSONL:
        return JsonLinesSink(output)
    if extract:
        return CodeBlockSink(output, show_thinking=show_thinking)
    if live and output_format is AnswerFormat.HUMAN and output.stderr.isatty():
        from coe_cli.output.live_answer import LiveAnswerSink
        from coe_cli.runtime.gauge import memory_gauge

        return LiveAnswerSink(output, spec.name, memory_gauge(spec, profile), show_thinking=show_thinking)
    return AnswerSink(output, show_thinking=show_thinking)
