"""`coe ask` with several experts: drafts side by side, then one answer by the supervisor; one failing is not the end."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import NoReturn

from msgspec import structs

from coe_cli.core.answers.answer import ANSWER_SCHEMA_VERSION, Answer, Timing, Usage
from coe_cli.core.names import joined
from coe_cli.core.routing.router import Routing
from coe_cli.core.routing.synthesis import (
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
from coe_cli.output.draft_panels import DraftLines, DraftPanels
from coe_cli.output.terminal import draws_on
from coe_cli.runtime.client.client import resolve
from coe_cli.runtime.client.fan_out import Job, fan_out
from coe_cli.runtime.college.chat_request import ChatRequest, Resolved
from coe_cli.runtime.college.collecting import collect
from coe_cli.use_cases.ask_steps import Asking, AskOptions, keep, messages_for, sink_for
from coe_cli.use_cases.providing import Providing

_BYTES_PER_TOKEN = 3.0
"""How many bytes of the question one token stands for at the least, when it is not counted."""


class Together:
    """The experts at work on one question, by requests of their own; ``parts`` of the question by expert."""

    def __init__(
        self, asking: Asking, experts: list[str], parts: dict[str, str], routing: Routing | None, providing: Providing
    ) -> None:
        self._experts, self._parts, self._routing = experts, parts, routing
        self._asking, self._providing = asking, providing
        self._options, self._catalog, self._profiles, self._output, self._view, *_ = asking
        self._conversation, self._client = asking.conversation, asking.client
        self._begin = time.monotonic()
        self._notes: list[str] = []

    def answer(self) -> None:
        """Ask the experts and write one answer, or their drafts under headings.

        Raises:
            CoeError: no expert could answer, and the first one's reason; or the supervisor could not make one answer of
                the drafts, which have been written in its place.
        """
        told = {expert: self._resolved(expert) for expert in self._experts}
        able = next((expert for expert, one in told.items() if isinstance(one, Resolved)), None)
        self._expert = SUPERVISOR if SUPERVISOR in self._catalog.experts else None
        if not self._options.synthesis:
            self._expert = able or self._expert
        self._writer = self._providing.resolve(self._client, self._request(self._options, self._expert))
        known = [one for one in (self._writer, *told.values()) if isinstance(one, Resolved)]
        self._note(_joined_warnings(known))
        replaced = {note.text for one in known for note in one.notes if note.kind == "fallback"}
        jobs = [self._job(expert, one) for expert, one in told.items()]
        drafts = self._drafts(jobs)
        self._note([warning for draft in drafts for warning in draft.warnings if warning not in replaced])
        failed = next((draft.error for draft in drafts if draft.error is not None), None)
        if failed is not None and all(draft.error is not None for draft in drafts):
            raise from_code(failed.code, failed.message, failed.hint)
        if self._options.synthesis:
            self._synthesise(drafts)
        else:
            self._write(drafts)

    def _note(self, notes: list[str]) -> None:
        for note in dict.fromkeys(notes):
            if note not in self._notes:
                self._notes.append(note)
                if self._view.output_format is AnswerFormat.HUMAN:
                    self._output.note(note)

    def _resolved(self, expert: str) -> Resolved | CoeError:
        """Who answers for an expert, or why nobody can."""
        try:
            return self._providing.resolve(self._client, self._request(self._options, expert))
        except CoeError as error:
            return error

    def _request(self, options: AskOptions, expert: str | None, *, buffered: bool = False) -> ChatRequest:
        request = ChatRequest(
            messages_for(options, self._conversation),
            expert=expert,
            model=options.model,
            route=False,
            max_tokens=options.max_tokens,
            sampling=options.sampling,
            buffered=buffered,
            allow_special_tokens=options.allow_special_tokens,
            fallback=options.fallback or None,
        )
        return self._providing.with_consent(request)

    @property
    def _panels(self) -> bool:
        human = self._view.output_format is AnswerFormat.HUMAN
        return self._view.live and human and draws_on(self._output.stderr)

    def _job(self, expert: str, told: Resolved | CoeError) -> Job:
        if isinstance(told, CoeError):
            model = self._options.model or self._catalog.experts[expert].model
            return Job(expert, model, self._writer.provider, self._request(self._options, expert), told)
        question = draft_question(self._options.question, self._parts.get(expert), plain=told.plain)
        options = replace(self._options, question=question)
        if options.max_tokens is None and options.synthesis:
            tokens = int(len(self._options.question.encode()) / _BYTES_PER_TOKEN)
            room = draft_max_tokens(self._writer.context_length, tokens, len(self._experts))
            options = replace(options, max_tokens=room)
        # What nobody watches is kept back by the college, so that it can start again when its worker is lost.
        return Job(expert, told.model, told.provider, self._request(options, expert, buffered=not self._panels))

    def _drafts(self, jobs: list[Job]) -> list[Draft]:
        if self._panels:
            with contextlib.closing(DraftPanels(self._output, [(job.expert, job.model) for job in jobs])) as panels:
                return fan_out(jobs, self._client, panels)
        with self._output.waiting(f"{joined(self._experts)} write their drafts"):
            return fan_out(jobs, self._client, DraftLines(self._output, self._view.output_format))

    def _synthesise(self, drafts: list[Draft]) -> None:
        sink = self._sink()
        try:
            try:
                # As with drafts: what is shown at its end only can start again.
                asked = replace(self._options, question=self._bounded_prompt(drafts))
                request = self._request(asked, self._expert, buffered=self._view.buffered)
                with contextlib.closing(self._client.ask(request)) as events:
                    final = collect(events, None, sink)
            except CoeError as error:
                sink.break_off()
                self._write_instead(drafts, error)
            joint = self._joined(drafts, structs.replace(final, warnings=[]))
            sink.finish(joint)
        finally:
            sink.close()
        self._keep(joint)

    def _write_instead(self, drafts: list[Draft], error: CoeError) -> NoReturn:
        """Write the drafts in place of the answer that could not be made of them.

        Raises:
            CoeError: always, why it could not.
        """
        writer = self._writer.expert or self._writer.model
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
        limit = self._writer.context_length - answer_room(self._writer.context_length)
        room = sum(map(len, whole))
        while True:
            prompt = supervisor_prompt(question, drafts, shares([len(text) for text in whole], room))
            told = resolve(self._client, self._request(replace(self._options, question=prompt), self._expert))
            tokens = told.prompt_tokens
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
            provider=self._writer.provider,
            profile=self._writer.profile,
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
        sink.delta(joint.answer, is_thinking=False)
        sink.finish(joint)
        self._keep(joint)

    def _sink(self, *, live: bool = True) -> AnswerSink:
        view = self._view if live else self._view._replace(live=False)
        told = structs.replace(self._writer, routing=self._routing, expert=self._writer.expert or "supervisor")
        return sink_for(self._output, told, self._profiles, view, explain=self._options.explain)

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
        together = structs.replace(answer, expert="+".join(draft.expert for draft in answer.drafts))
        keep(together, self._writer.system, self._asking)


def _joined_warnings(known: list[Resolved]) -> list[str]:
    """Each warning once; where the models of several experts are missing, one line says so for all."""
    each = list(dict.fromkeys(warning for one in known for warning in one.warnings))
    missing = {note.text: one for one in known for note in one.notes if note.kind == "fallback"}
    if len(missing) < 2:
        return each
    names, instead = ", ".join(str(one.expert) for one in missing.values()), next(iter(missing.values())).model
    told = f"the models of {names} are not on disk, {instead} answers instead (coe models list names them)"
    return [told, *(warning for warning in each if warning not in missing)]
