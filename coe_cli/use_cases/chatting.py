"""The loop of `coe chat`: read a question or a command, answer it, and go on until the input ends."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

from coe_cli.core.answers.conversations import Conversation
from coe_cli.core.hardware.profile import ProfileSet
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.names import did_you_mean
from coe_cli.core.plain_text import check_text
from coe_cli.errors import CoeError, PromptTooLong, UsageError
from coe_cli.output.console import Output
from coe_cli.output.errors import write_error
from coe_cli.output.terminal import typing_held_back
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import ChatRequest, Resolved
from coe_cli.runtime.conversation import history
from coe_cli.runtime.conversation.chat_session import ChatSession
from coe_cli.runtime.conversation.line_input import QuestionReader
from coe_cli.runtime.folders import folders
from coe_cli.use_cases.answer_options import AnswerOptions
from coe_cli.use_cases.ask_steps import View, sink_for
from coe_cli.use_cases.clients import CollegePlace, client_for
from coe_cli.use_cases.providing import Providing

_COMMANDS = {
    "expert": "/expert NAME   let this expert answer; without a name, who answers now",
    "model": "/model NAME    let this model answer",
    "system": "/system TEXT   your own system prompt; without a text, the one in force",
    "clear": "/clear         forget what was said and begin anew",
    "stats": "/stats         tokens, speed, and how much was in the cache already",
    "help": "/help          this list",
    "exit": "/exit          leave, as Ctrl-D does",
}


@dataclass(frozen=True, kw_only=True)
class ChatOptions(AnswerOptions):
    """A conversation."""

    show_thinking: bool = False
    raw: bool = False


def run_chat(options: ChatOptions, catalog: Catalog, profiles: ProfileSet, output: Output) -> None:
    """Talk until the input ends. The running college answers, or one in this process.

    Raises:
        CoeError: the session cannot begin; or, when the questions come from a pipe, one could not be answered.
    """
    profiles.select(options.profile)
    conversation = history.last_conversation(profiles.history) if options.resume else None
    logged = history.logging_wanted(profiles.history, no_log=options.no_log)
    place = CollegePlace(options.profile, options.profiles_file, options.catalog_file, options.serve)
    client = client_for(place, catalog, profiles, output.note)
    providing = Providing(catalog, profiles, output, profile=options.profile, pull=options.pull)
    reader = QuestionReader(folders().state / "chat_lines" if logged else None)
    try:
        defaults = ChatRequest(
            [], sampling=options.sampling, max_tokens=options.max_tokens, fallback=options.fallback or None
        )
        resolve = partial(providing.resolve, client)
        session = ChatSession(client, resolve, profiles, defaults=defaults, no_log=options.no_log)
        session.system = options.system
        notes = _choose(session, options, conversation, options.expert_of(catalog))
        if conversation is not None:
            session.resume(conversation)
        output.notes(notes)
        if reader.interactive:
            who = f"{session.expert} ({session.model})" if session.expert else session.model
            output.note(f"{who} answers. /help lists the commands, Ctrl-D leaves.")
        view = View(show_thinking=options.show_thinking, live=reader.interactive and not options.raw)
        _Chat(session, reader, output, profiles, view).talk()
    finally:
        reader.close()
        client.close()


class _Chat:
    def __init__(
        self, session: ChatSession, reader: QuestionReader, output: Output, profiles: ProfileSet, view: View
    ) -> None:
        self._session = session
        self._reader = reader
        self._output = output
        self._profiles, self._view = profiles, view
        self._said: set[str] = set()

    def talk(self) -> None:
        while True:
            try:
                question = self._reader.read()
            except KeyboardInterrupt:
                if not self._reader.interactive:
                    raise
                self._output.stderr.write("\n")
                continue
            if question is None:
                if self._reader.interactive:
                    self._output.stderr.write("\n")
                return
            if not question.strip():
                continue
            try:
                name, _, argument = question.strip().removeprefix("/").partition(" ")
                if question.lstrip().startswith("/") and "/" not in name:
                    if not self._command(name, argument.strip()):
                        return
                else:
                    with typing_held_back(sys.stdin):
                        self._answer(question)
            except CoeError as error:
                if not self._reader.interactive:
                    raise
                write_error(self._output.stderr, error, as_json=False)
                if isinstance(error, PromptTooLong):
                    self._output.note("/clear forgets what was said, and leaves room")

    def _answer(self, question: str) -> None:
        check_text(question=question)
        sink = sink_for(self._output, self._session.told, self._profiles, self._view, explain=False)
        notes: list[str] = []
        events = self._session.ask(question, sink)
        sink.phase("waiting for the college", 0)
        try:
            for event in events:
                if isinstance(event, ce.PrefillStarted):
                    notes += [note for note in event.notes if note not in self._said]
                elif isinstance(event, ce.Finished):
                    notes += event.notes
                elif self._reader.interactive and isinstance(event, Resolved):
                    notes += [note.text for note in event.notes if note.kind == "context"]
            sink.end()
        except KeyboardInterrupt:
            if not self._reader.interactive:
                raise
            sink.close()
            self._output.note("stopped")
        finally:
            events.close()
            sink.close()
        self._said.update(notes)
        if self._session.log_warning and self._session.log_warning not in self._said:
            notes.append(self._session.log_warning)
            self._said.add(self._session.log_warning)
        self._output.notes(notes)

    def _command(self, name: str, argument: str) -> bool:
        """Carry a command out; False to leave.

        Raises:
            CoeError: it cannot be carried out.
        """
        session, note = self._session, self._output.note
        if name in ("exit", "quit", "bye"):
            return False
        if name == "help":
            self._output.notes(_COMMANDS.values())
        elif name == "clear":
            session.clear()
            note("the conversation begins anew")
        elif name == "stats":
            self._stats()
        elif name == "system":
            if argument:
                session.system = argument
            note(f"system prompt: {session.system or 'none'}")
        elif name in ("expert", "model"):
            if argument:
                notes = session.choose(expert=argument) if name == "expert" else session.choose(model=argument)
                self._output.notes(notes)
            note(f"expert: {session.expert or 'none'}, model: {session.model}")
        else:
            raise UsageError(f"there is no command /{name}", did_you_mean(name, list(_COMMANDS)) or "See /help.")
        return True

    def _stats(self) -> None:
        stats = self._session.stats
        rate, first_s = stats.tokens_per_s, stats.last_first_token_s
        share = f" ({stats.reused_tokens / stats.prompt_tokens:.0%})" if stats.prompt_tokens else ""
        self._output.note(f"turns {stats.turns}, answers {stats.completion_tokens} tokens")
        self._output.note(f"prompts {stats.prompt_tokens} tokens, from the cache {stats.reused_tokens}{share}")
        self._output.note(
            f"first token {'unknown' if first_s is None else f'{first_s:.2f} s'},"
            f" speed {'unknown' if rate is None else f'{rate:.1f} tokens/s'}"
        )
        self._output.note(f"context {stats.context_tokens} of {stats.context_length} tokens")


def _choose(
    session: ChatSession, options: ChatOptions, conversation: Conversation | None, expert: str | None
) -> list[str]:
    """Who answers: whom the user names, else who answered last in the conversation that goes on."""
    if conversation is not None and options.expert is None and options.model is None:
        if conversation.expert is not None:
            return session.choose(expert=conversation.expert)
        return session.choose(model=conversation.model)
    return session.choose(expert=expert, model=options.model)
