"""The steps of `coe ask`: choose, install if need be, load while the rest is made ready, answer, clean up."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from msgspec import structs

from coe_cli.core.catalog import Catalog
from coe_cli.core.model_spec import ModelSpec, models_on_disk
from coe_cli.core.profile import HardwareProfile, ProfileSet
from coe_cli.core.selection import Choice, choose_model, choose_profile
from coe_cli.errors import ModelMissing, PromptTooLong
from coe_cli.output.answer_sink import AnswerFormat, AnswerSink, CodeBlockSink, JsonLinesSink, JsonSink
from coe_cli.output.console import Output
from coe_cli.runtime import one_shot, protocol, worker_process
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_store import open_model
from coe_cli.runtime.prompt_length import prompt_tokens
from coe_cli.runtime.providers import choose_provider, installed_providers


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
    models_dir = folders().models
    on_disk = models_on_disk(models_dir)
    choice = choose_model(catalog, on_disk, expert=options.expert, model=options.model)
    if output_format is AnswerFormat.HUMAN:
        for note in choice.notes:
            output.note(note)
    if choice.install:
        spec = install_chosen(choice, catalog, output, pull=options.pull)
    else:
        spec = open_model(choice.model, on_disk[choice.model])
    messages = _messages(options, choice)
    spec, profile = _fit(spec, choice, messages, options, profiles, output)
    provider, why = choose_provider(spec.name, spec.provider, profile, installed_providers())
    if why.startswith("slower:"):
        output.note(why)
        spec = structs.replace(spec, provider=provider)
    worker = worker_process.take()
    sink: AnswerSink | None = None
    try:
        one_shot.begin_loading(worker, spec)
        sink = _sink(output, spec, profile, output_format, extract=extract, show_thinking=show_thinking, live=live)
        question = one_shot.Question(
            choice=choice,
            spec=spec,
            profile=profile.name,
            messages=messages,
            context_length=_context_length(spec, profile),
            max_tokens=options.max_tokens,
            sampling=protocol.Sampling(options.temperature, options.top_p, options.top_k, options.seed),
            timeout_s=options.timeout_s,
        )
        sink.finish(one_shot.answer(worker, question, sink, one_shot.monotonic))
    finally:
        if sink is not None:
            sink.close()
        if os.environ.get("COE_DEBUG"):
            sys.stderr.write(worker.stderr_tail())
        worker.kill()


def _messages(options: AskOptions, choice: Choice) -> list[protocol.ChatMessage]:
    system = options.system if options.system is not None else choice.system_prompt
    messages = [protocol.ChatMessage("user", options.question)]
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
