"""`coe ask` with several experts: drafts side by side, then one answer by the supervisor; one failing is not the end."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from msgspec import structs

from coe_cli.core.answer import ANSWER_SCHEMA_VERSION, Answer, Timing, Usage
from coe_cli.core.catalog import Catalog
from coe_cli.core.model_spec import ModelSpec, models_on_disk
from coe_cli.core.profile import HardwareProfile, ProfileSet
from coe_cli.core.providers import on_host
from coe_cli.core.scheduler_state import pool_from_profile
from coe_cli.core.selection import Choice, choose_model, choose_profile
from coe_cli.core.synthesis import (
    LEAST_DRAFT_CHARS,
    SUPERVISOR,
    Draft,
    DraftError,
    JointAnswer,
    answer_room,
    draft_max_tokens,
    draft_question,
    shares,
    summed_usage,
    supervisor_prompt,
    under_headings,
)
from coe_cli.errors import CoeError, from_code
from coe_cli.output.answer_sink import AnswerFormat, AnswerSink, NoCodeBlock
from coe_cli.output.console import Output
from coe_cli.output.draft_panels import DraftLines, DraftPanels
from coe_cli.providers.installed import choose_provider, installed_providers
from coe_cli.runtime.college.answerer import CollegeAnswerer
from coe_cli.runtime.college.collecting import About, collect
from coe_cli.runtime.college.college import CollegeSettings
from coe_cli.runtime.college.consultation import Job, OwnSource, ResidentSource, Source, consult
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.meter import ResidentSetMeter, Unmeasured
from coe_cli.runtime.folders import folders
from coe_cli.runtime.prompts.prompts import prompt_tokens
from coe_cli.runtime.routing.embedder_memory import with_measured_embedder
from coe_cli.runtime.server.neighbour import tight
from coe_cli.runtime.store.model_store import open_model
from coe_cli.use_cases.ask_steps import (
    AskOptions,
    View,
    ask_for,
    college_for,
    context_length,
    fit,
    install_chosen,
    keep,
    messages_for,
    sink_for,
)
from coe_cli.use_cases.choosing import Chosen

if TYPE_CHECKING:
    from coe_cli.core.conversations import Conversation

_BYTES_PER_TOKEN = 3.0
"""How many bytes of the question one token stands for at the least, when it is not counted."""


class Together:
    """The experts of ``chosen`` at work on one question."""

    def __init__(
        self,
        chosen: Chosen,
        options: AskOptions,
        catalog: Catalog,
        profiles: ProfileSet,
        output: Output,
        view: View,
        conversation: Conversation | None,
    ) -> None:
        self._chosen, self._options, self._catalog, self._profiles = chosen, options, catalog, profiles
        self._output, self._view, self._conversation = output, view, conversation
        self._begin = time.monotonic()
        self._experts = chosen.experts or []
        writer = SUPERVISOR if SUPERVISOR in catalog.experts else None
        if not options.synthesis:
            writer = next((name for name in self._experts if self._problem(name) is None), writer)
        self._choice, self._spec, self._profile = self._prepare(writer)

    def answer(self) -> None:
        """Ask the experts and write one answer, or their drafts under headings.

        Raises:
            CoeError: no expert could answer, and the first one's reason; or the supervisor could not make one answer of
                the drafts, which have been written in its place.
        """
        jobs = [self._job(expert) for expert in self._experts]
        self._notes = _standing_in([self._choice.notes, *(job.about.notes for job in jobs)])
        if self._view.output_format is AnswerFormat.HUMAN:
            for note in self._notes:
                self._output.note(note)
        source = self._source()
        try:
            drafts = self._drafts(jobs, source)
            failed = next((draft.error for draft in drafts if draft.error is not None), None)
            if failed is not None and all(draft.error is not None for draft in drafts):
                raise from_code(failed.code, failed.message, failed.hint)
            if self._options.synthesis:
                self._synthesise(drafts, source)
            else:
                self._write(drafts)
        finally:
            source.close()

    def _prepare(self, expert: str | None) -> tuple[Choice, ModelSpec, HardwareProfile]:
        """Choice, model and profile of an expert; installs the embedded model if it has to stand in."""
        where = models_on_disk(folders().models)
        choice = choose_model(self._catalog, where, expert=expert, model=self._options.model)
        if choice.install:
            spec = install_chosen(choice, self._catalog, self._output, pull=self._options.pull)
        else:
            spec = open_model(choice.model, where[choice.model])
        profile = choose_profile(self._profiles, self._options.profile, spec.provider)
        if not on_host(spec.provider):
            provider, why = choose_provider(spec.name, spec.provider, profile, installed_providers())
            spec = structs.replace(spec, provider=provider)
            if why.startswith("slower:"):
                choice = structs.replace(choice, notes=[*choice.notes, why])
        return choice, spec, profile

    @property
    def _panels(self) -> bool:
        human = self._view.output_format is AnswerFormat.HUMAN
        return self._view.live and human and self._output.stderr.isatty()

    def _problem(self, expert: str) -> CoeError | None:
        try:
            self._prepare(expert)
        except CoeError as error:
            return error
        return None

    def _job(self, expert: str) -> Job:
        try:
            choice, spec, profile = self._prepare(expert)
        except CoeError as error:
            model = self._options.model or self._catalog.experts[expert].model
            about = About(expert, model, self._spec.provider, self._profile.name, [])
            return Job(about, self._spec, ask_for(self._spec, self._choice, [], self._options), error)
        question = draft_question(
            self._options.question, self._chosen.parts.get(expert), plain=choice.template is not None
        )
        options = replace(self._options, question=question)
        if options.max_tokens is None and self._options.synthesis:
            room = context_length(self._spec, self._profile)
            tokens = int(len(self._options.question.encode()) / _BYTES_PER_TOKEN)
            options = replace(options, max_tokens=draft_max_tokens(room, tokens, len(self._experts)))
        problem: CoeError | None = None
        messages = messages_for(options, choice, self._conversation)
        try:
            spec, profile = fit(spec, choice, messages, options, self._profiles, self._output)
        except CoeError as error:
            problem = error
        about = About(expert, spec.name, spec.provider, profile.name, choice.notes)
        # What nobody watches is kept back by the college, so that it can start again when its worker is lost.
        ask = structs.replace(ask_for(spec, choice, messages, options), whole=not self._panels)
        return Job(about, spec, ask, problem)

    def _source(self) -> Source:
        """The resident college, or one in this process where that is asked for or no other way."""
        if self._options.serve:
            client = college_for(self._options, self._output)
            if client is not None:
                state = client.state
                client.close()
                from coe_cli.runtime.server.college_client import CollegeClient

                return ResidentSource(lambda: CollegeClient(state), self._options.timeout_s)
        meter = ResidentSetMeter() if on_host(self._profile.provider) else Unmeasured()
        profile = with_measured_embedder(self._profile, folders())
        if said := tight(self._spec, profile):
            self._output.note(said)
        settings = CollegeSettings(pool_from_profile(profile), cost_in(profile))
        return OwnSource(CollegeAnswerer(settings, meter))

    def _drafts(self, jobs: list[Job], source: Source) -> list[Draft]:
        board: DraftLines
        if self._panels:
            board = DraftPanels(self._output, [(job.about.expert or "", job.spec.name) for job in jobs])
        else:
            board = DraftLines(self._output, self._view.output_format)
        with contextlib.closing(board):
            return consult(jobs, source, board)

    def _synthesise(self, drafts: list[Draft], source: Source) -> None:
        about = About(self._choice.expert, self._spec.name, self._spec.provider, self._profile.name, [])
        sink = self._sink()
        try:
            try:
                final = collect(source.events(self._synthesis_job(drafts, about)), about, sink)
            except CoeError as error:
                sink.break_off()
                self._write_instead(drafts, about, error)
            joint = self._joined(drafts, final)
            sink.finish(joint)
        finally:
            sink.close()
        self._keep(joint)

    def _synthesis_job(self, drafts: list[Draft], about: About) -> Job:
        asked = replace(self._options, question=self._bounded_prompt(drafts))
        messages = messages_for(asked, self._choice, self._conversation)
        # As with drafts: what is shown at its end only can start again.
        ask = structs.replace(ask_for(self._spec, self._choice, messages, asked), whole=self._view.whole)
        return Job(about, self._spec, ask)

    def _write_instead(self, drafts: list[Draft], about: About, error: CoeError) -> NoReturn:
        """Write the drafts in place of the answer that could not be made of them.

        Raises:
            CoeError: always, why it could not.
        """
        writer = about.expert or about.model
        failure = from_code(
            error.code,
            f"{writer} made no answer of the drafts, so they are given as they are: {error.message}",
            error.hint,
        )
        with contextlib.suppress(NoCodeBlock):
            self._write(drafts, DraftError(error.code, error.message, error.hint))
        raise failure from error

    def _bounded_prompt(self, drafts: list[Draft]) -> str:
        """The supervisor's prompt, with the drafts shortened until it fits its slot beside the answer."""
        question = self._options.question
        whole = [draft.answer for draft in drafts if draft.error is None]
        context = context_length(self._spec, self._profile)
        limit = context - answer_room(context)
        room = sum(map(len, whole))
        while True:
            prompt = supervisor_prompt(question, drafts, shares([len(text) for text in whole], room))
            messages = messages_for(replace(self._options, question=prompt), self._choice, self._conversation)
            tokens = prompt_tokens(self._spec, messages, self._choice.template, context)
            if tokens is None or tokens <= limit or room <= LEAST_DRAFT_CHARS:
                return prompt
            room = min(room - 1, int(room * 0.95 * limit / tokens))

    def _write(self, drafts: list[Draft], error: DraftError | None = None) -> None:
        """The drafts under headings, as they are; ``error``: why there is nothing better."""
        models = dict.fromkeys(draft.model for draft in drafts)
        known = [draft.timing for draft in drafts if draft.timing is not None]
        answer = Answer(
            schema_version=ANSWER_SCHEMA_VERSION,
            answer=under_headings(drafts),
            thinking="",
            expert=None,
            model=", ".join(models),
            provider=self._spec.provider,
            profile=self._profile.name,
            finish_reason="length" if any(draft.finish_reason == "length" for draft in drafts) else "stop",
            usage=Usage(0, 0),
            timing=Timing(
                load_s=None,
                first_token_s=min((timing.first_token_s for timing in known), default=0.0),
                decode_s=max((timing.decode_s for timing in known), default=0.0),
                total_s=0.0,
                tokens_per_s=None,
            ),
            warnings=[] if error is None else [f"no synthesis: {error.message}"],
        )
        joint = self._joined(drafts, answer, error)
        sink = self._sink(live=False)
        sink.piece(joint.answer, is_thinking=False)
        sink.finish(joint)
        self._keep(joint)

    def _sink(self, *, live: bool = True) -> AnswerSink:
        view = self._view if live else self._view._replace(live=False)
        explained = self._chosen.routed if self._options.explain else None
        label = f"{self._choice.expert or 'supervisor'} · {self._spec.name}"
        return sink_for(self._output, label, self._spec, self._profile, view, explained)

    def _joined(self, drafts: list[Draft], final: Answer, error: DraftError | None = None) -> JointAnswer:
        """The whole: ``usage`` counts every token, ``total_s`` every second."""
        failures = [f"{d.expert} failed: {d.error.message}" for d in drafts if d.error is not None]
        fields = {name: getattr(final, name) for name in Answer.__struct_fields__}
        fields |= {
            "usage": summed_usage([final.usage, *(draft.usage for draft in drafts)]),
            "timing": structs.replace(final.timing, total_s=time.monotonic() - self._begin),
            "warnings": [*self._notes, *final.warnings, *failures],
        }
        return JointAnswer(drafts=drafts, error=error, **fields)

    def _keep(self, answer: JointAnswer) -> None:
        asked = messages_for(self._options, self._choice, self._conversation)
        together = structs.replace(answer, expert="+".join(draft.expert for draft in answer.drafts))
        keep(together, self._options, asked, self._conversation, self._profiles, self._output)


def _standing_in(notes: list[list[str]]) -> list[str]:
    """Each note once; where several experts are stood in for, one line says so for all."""
    each = list(dict.fromkeys(note for some in notes for note in some))
    missing = [note for note in each if " is not on disk, " in note]
    if len(missing) < 2:
        return each
    names = [note.partition(":")[0] for note in missing]
    rest = missing[0].partition(", ")[2].partition(" (")[0]
    joined = f"the models of {', '.join(names)} are not on disk, {rest} (coe models list names them)"
    return [joined, *(note for note in each if note not in missing)]
