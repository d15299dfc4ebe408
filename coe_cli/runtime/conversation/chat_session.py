"""A conversation: what has been said, who answers next, and how much of it was in the cache already."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from msgspec import structs

from coe_cli.core.answers.answer import tokens_per_s
from coe_cli.core.answers.conversations import Conversation, Exchange
from coe_cli.core.hardware.profile import ProfileSet
from coe_cli.runtime.client.client import Client
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import ChatRequest, Resolved
from coe_cli.runtime.college.collecting import AnswerRenderer, Collector, about
from coe_cli.runtime.conversation import history
from coe_cli.runtime.worker.protocol import ChatMessage


@dataclass
class ChatStats:
    """Sums over the session; ``context_tokens`` is what the last turn took of ``context_length``."""

    turns: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0
    decode_s: float = 0.0
    decoded_tokens: int = 0
    last_first_token_s: float | None = None
    context_tokens: int = 0
    context_length: int = 0

    @property
    def tokens_per_s(self) -> float | None:
        return self.decoded_tokens / self.decode_s if self.decode_s > 0 else None


class ChatSession:
    """Sends the whole conversation each turn: the slot's cache makes what is old in it cheap.

    ``resolve`` says who would answer a request, and provides what that needs. ``defaults``: sampling, length and fallback of
    every request.
    """

    def __init__(
        self,
        client: Client,
        resolve: Callable[[ChatRequest], Resolved],
        profiles: ProfileSet,
        *,
        defaults: ChatRequest = ChatRequest([]),
        no_log: bool = False,
    ) -> None:
        self._defaults = defaults
        self._client, self._resolve, self._profiles = client, resolve, profiles
        self._no_log = no_log
        self._messages: list[ChatMessage] = []
        self._conversation_id: int | None = None
        self._own_system: str | None = None
        self._named: tuple[str | None, str | None] = (None, None)
        self._told: Resolved
        self._role_system = ""
        self.stats = ChatStats()
        self.log_warning: str | None = None

    @property
    def told(self) -> Resolved:
        """Who answers, as the college has said."""
        return self._told

    @property
    def model(self) -> str:
        return self._told.model

    @property
    def expert(self) -> str | None:
        return self._told.expert

    @property
    def system(self) -> str:
        """The system prompt in force; empty for none."""
        return (self._role_system if self._own_system is None else self._own_system).strip()

    @system.setter
    def system(self, text: str | None) -> None:
        self._own_system = text

    def choose(self, *, expert: str | None = None, model: str | None = None) -> list[str]:
        """Let another expert or model answer from now on; returns notes for the user. On an error nothing changes.

        Raises:
            UsageError, ModelMissing, ModelDamaged: there is no such expert or no such model to be used.
        """
        request = structs.replace(self._defaults, expert=expert, model=model, route=False)
        told = self._resolve(request)
        self._told, self._named, self._role_system = told, (expert, model), told.system
        self.stats.context_length = told.context_length
        return told.warnings

    def resume(self, conversation: Conversation) -> None:
        """Go on with a conversation of the history."""
        self._messages = [ChatMessage(role, content) for role, content in conversation.chat() if role != "system"]
        self._conversation_id = conversation.id
        kept = next((content for role, content in conversation.chat() if role == "system"), None)
        if kept is not None and self._own_system is None:
            self._own_system = kept

    def clear(self) -> None:
        """Forget what has been said; the next question begins a new conversation."""
        self._messages = []
        self._conversation_id = None
        self.stats.context_tokens = 0

    def ask(self, question: str, renderer: AnswerRenderer) -> Generator[ce.CollegeEvent]:
        """Events of the answer, of which ``renderer`` hears.

        What has come when the iterator is closed stays in the conversation; a question that failed leaves it.

        Raises:
            CoeError: why there is no (whole) answer.
        """
        asked = [*self._messages, ChatMessage("user", question)]
        system = [] if self._own_system is None else [ChatMessage("system", self._own_system)]
        expert, model = self._named
        fallback = self._told.is_fallback or self._defaults.fallback
        request = structs.replace(
            self._defaults, messages=system + asked, expert=expert, model=model, route=False, fallback=fallback
        )
        collector = Collector(about(self._told), renderer)
        reading: ce.PrefillStarted | None = None
        finished: ce.Finished | None = None
        events = self._client.ask(request)
        try:
            for event in events:
                collector.feed(event)
                if isinstance(event, Resolved):
                    self._told = event
                elif isinstance(event, ce.PrefillStarted):
                    reading = event
                elif isinstance(event, ce.Finished):
                    finished = event
                yield event
        except (GeneratorExit, KeyboardInterrupt):
            if collector.text:
                self._keep(asked, collector.text, reading, finished)
            raise
        finally:
            events.close()
        self._keep(asked, collector.text, reading, finished)

    def _keep(
        self, asked: list[ChatMessage], text: str, reading: ce.PrefillStarted | None, finished: ce.Finished | None
    ) -> None:
        self._messages = [*asked, ChatMessage("assistant", text)]
        self._count(reading, finished)
        exchange = Exchange(
            question=asked[-1].content,
            answer=text,
            model=self._told.model,
            expert=self._told.expert,
            provider=self._told.provider,
            profile=self._told.profile,
            system=self.system,
            finish_reason=finished.finish_reason if finished is not None else "cancelled",
            prompt_tokens=reading.prompt_tokens if reading is not None else None,
            completion_tokens=finished.completion_tokens if finished is not None else None,
            load_s=reading.load_s if reading is not None else None,
            first_token_s=finished.first_token_s if finished is not None else None,
            decode_s=finished.decode_s if finished is not None else None,
        )
        kept, self.log_warning = history.record(
            exchange, self._profiles.history, conversation_id=self._conversation_id, no_log=self._no_log
        )
        self._conversation_id = kept if kept is not None else self._conversation_id

    def _count(self, reading: ce.PrefillStarted | None, finished: ce.Finished | None) -> None:
        stats = self.stats
        stats.turns += 1
        if reading is not None:
            stats.prompt_tokens += reading.prompt_tokens
            stats.reused_tokens += reading.reused_tokens
            stats.context_tokens = reading.prompt_tokens
        if finished is not None:
            stats.completion_tokens += finished.completion_tokens
            stats.context_tokens += finished.completion_tokens
            stats.last_first_token_s = finished.first_token_s
            if tokens_per_s(finished.completion_tokens, finished.decode_s) is not None:
                stats.decoded_tokens += finished.completion_tokens - 1
                stats.decode_s += finished.decode_s
