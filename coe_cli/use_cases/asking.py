"""The steps of `coe ask`: choose who answers, install if need be, load while the rest is made ready, answer, clean up."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from coe_cli.core.catalog import Catalog
from coe_cli.core.model_spec import ModelSpec, models_on_disk
from coe_cli.core.profile import HardwareProfile, ProfileSet, Provider
from coe_cli.core.providers import on_host
from coe_cli.core.selection import choose_model
from coe_cli.errors import CoeError
from coe_cli.output.answer_sink import AnswerFormat
from coe_cli.output.console import Output
from coe_cli.providers.installed import choose_provider, installed_providers
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college import one_shot
from coe_cli.runtime.college.collecting import About, collect
from coe_cli.runtime.folders import folders
from coe_cli.runtime.store.model_store import open_model
from coe_cli.runtime.worker import worker_process
from coe_cli.use_cases.ask_steps import (
    AskOptions,
    View,
    ask_for,
    college_for,
    context_length,
    conversation_to_resume,
    fit,
    install_chosen,
    keep,
    messages_for,
    sink_for,
)
from coe_cli.use_cases.choosing import choose_experts

if TYPE_CHECKING:
    from coe_cli.core.conversations import Conversation
    from coe_cli.runtime.routing.ask_routing import Routed
    from coe_cli.runtime.server.college_client import CollegeClient


def run_ask(options: AskOptions, catalog: Catalog, profiles: ProfileSet, output: Output, view: View) -> None:
    """Answer one question, by one expert or by several.

    Raises:
        CoeError: whatever keeps the answer from being given, as one of its kinds.
    """
    profiles.select(options.profile)
    conversation = conversation_to_resume(profiles) if options.resume else None
    on_disk = models_on_disk(folders().models)
    early = _Early()
    try:
        if options.model is None and options.expert is None and not options.serve:
            early.load_the_only_model(catalog, on_disk)
        chosen = choose_experts(options, catalog, profiles, output, on_disk, conversation, view.output_format)
        if chosen.experts is not None and (len(chosen.experts) > 1 or options.refine):
            early.discard()
            from coe_cli.use_cases.asking_several import Together

            Together(chosen, options, catalog, profiles, output, view, conversation).answer()
            return
        expert = chosen.experts[0] if chosen.experts else None
        _answer_alone(expert, chosen.routed, options, catalog, profiles, output, view, conversation, on_disk, early)
    finally:
        early.discard()


class _Early:
    """A worker that loads while the question is still being routed, where every expert's answer comes from one model."""

    def __init__(self) -> None:
        self._worker: worker_process.WorkerProcess | None = None
        self._spec: ModelSpec | None = None

    def load_the_only_model(self, catalog: Catalog, on_disk: Mapping[str, Path]) -> None:
        """Begin to load, if it is sure which model will answer; what is wrong with it is said later."""
        models = {choose_model(catalog, on_disk, expert=name, model=None).model for name in catalog.experts}
        if len(models) != 1 or not models <= on_disk.keys():
            return
        (model,) = models
        with contextlib.suppress(CoeError):
            spec = open_model(model, on_disk[model])
            if on_host(spec.provider):
                self._worker, self._spec = _loading(spec), spec

    def take(self, spec: ModelSpec) -> worker_process.WorkerProcess:
        """A worker that is loading ``spec``."""
        worker, self._worker = self._worker, None
        if worker is not None and self._spec == spec and worker.alive:
            return worker
        if worker is not None:
            worker.kill()
        return _loading(spec)

    def discard(self) -> None:
        """End the worker if nobody took it."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def _loading(spec: ModelSpec) -> worker_process.WorkerProcess:
    worker = worker_process.take()
    try:
        one_shot.begin_loading(worker, spec)
    except BaseException:
        worker.kill()
        raise
    return worker


def _answer_alone(
    expert: str | None,
    routed: Routed | None,
    options: AskOptions,
    catalog: Catalog,
    profiles: ProfileSet,
    output: Output,
    view: View,
    conversation: Conversation | None,
    on_disk: Mapping[str, Path],
    early: _Early,
) -> None:
    choice = choose_model(catalog, on_disk, expert=expert, model=options.model)
    if view.output_format is AnswerFormat.HUMAN:
        for note in choice.notes:
            output.note(note)
    if choice.install:
        spec = install_chosen(choice, catalog, output, pull=options.pull)
    else:
        spec = open_model(choice.model, on_disk[choice.model])
    messages = messages_for(options, choice, conversation)
    spec, profile = fit(spec, choice, messages, options, profiles, output)
    ask = structs.replace(ask_for(spec, choice, messages, options), whole=view.whole)
    if view.output_format is AnswerFormat.JSONL:
        ask = structs.replace(ask, flush_s=0.0)  # a line for each token
    events = _events(ask, spec, profile, options, output, early)
    with contextlib.closing(events):
        label = f"{choice.expert} · {spec.name}" if routed is not None and choice.expert else spec.name
        sink = sink_for(output, label, spec, profile, view, routed if options.explain else None)
        try:
            about = About(choice.expert, spec.name, spec.provider, profile.name, choice.notes)
            noting = _noting(events, output) if view.output_format is AnswerFormat.HUMAN else events
            answer = collect(noting, about, sink)
            sink.finish(answer)
        finally:
            sink.close()
    keep(answer, options, messages, conversation, profiles, output)


def _noting(events: Iterable[ce.CollegeEvent], output: Output) -> Iterator[ce.CollegeEvent]:
    """The same events; what is to be said of the prompt is said when it comes."""
    for event in events:
        if isinstance(event, ce.Reading):
            for note in event.notes:
                output.note(note)
        yield event


def _events(
    ask: ce.AskByName,
    spec: ModelSpec,
    profile: HardwareProfile,
    options: AskOptions,
    output: Output,
    early: _Early,
) -> Generator[ce.CollegeEvent]:
    """The answer's events, from the resident college or from a worker of our own, which is loading when this returns."""
    # Listing the installed packages takes longer than all else here, and a model for the CPU has no choice.
    installed: list[Provider] = [spec.provider] if on_host(spec.provider) else installed_providers()
    provider, why = choose_provider(spec.name, spec.provider, profile, installed)
    if why.startswith("slower:"):
        output.note(why)
        spec = structs.replace(spec, provider=provider)
    client = college_for(options, output) if options.serve else None  # which gives the model the same provider
    if client is not None:
        return _of_college(client, ask, options.timeout_s)
    return _of_worker(early.take(spec), spec, ask, profile, options.timeout_s, output)


def _of_college(client: CollegeClient, ask: ce.AskByName, timeout_s: float) -> Generator[ce.CollegeEvent]:
    with contextlib.closing(client):
        yield from client.stream_chat(ask, timeout_s)


def _of_worker(
    worker: worker_process.WorkerProcess,
    spec: ModelSpec,
    ask: ce.AskByName,
    profile: HardwareProfile,
    timeout_s: float,
    output: Output,
) -> Generator[ce.CollegeEvent]:
    from coe_cli.runtime.college.recorder import Recorder  # while the worker loads
    from coe_cli.runtime.server.neighbour import tight

    recorder = Recorder()
    try:
        if said := tight(spec, profile):
            output.note(said)
        yield from one_shot.events(worker, spec, ask, context_length(spec, profile), timeout_s, recorder)
    finally:
        recorder.wait()
        if os.environ.get("COE_DEBUG"):
            sys.stderr.write(worker.stderr_tail())
        worker.kill()
