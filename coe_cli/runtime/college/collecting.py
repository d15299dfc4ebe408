"""From the events of one answer to the answer as a whole, with every delta passed on as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from coe_cli.core.answers.answer import ANSWER_SCHEMA_VERSION, Answer, Timing, Usage, tokens_per_s
from coe_cli.core.answers.thinking import TextDelta, ThinkingSplitter
from coe_cli.errors import DeviceLost
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import Resolved


class About(NamedTuple):
    """What the answer says of where it came from."""

    expert: str | None
    model: str
    provider: str
    profile: str
    notes: list[str]


def about(told: Resolved) -> About:
    """What the first event says of it."""
    return About(told.expert, told.model, told.provider, told.profile, told.warnings)


class AnswerRenderer(Protocol):
    """Hears of an answer while it is made; ``worker_pid`` is 0 while it is not known.

    ``wrote`` tells of so many tokens more, before the deltas that their text belongs to.
    """

    def phase(self, name: str, worker_pid: int) -> None: ...

    def wrote(self, tokens: int) -> None: ...

    def delta(self, text: str, *, is_thinking: bool) -> None: ...


class AnswerDeltas:
    """Feed it every event of one answer.

    Args:
        splits_thinking: false where nothing of the answer can be a thought: a raw completion, or a grammar, which leaves no
            place for one whatever the template has opened.
    """

    def __init__(self, *, splits_thinking: bool = True) -> None:
        self._splits_thinking = splits_thinking
        self._splitter = ThinkingSplitter(thinks=False)

    def of(self, event: ce.CollegeEvent) -> list[TextDelta]:
        """The deltas that are certain with this event."""
        if isinstance(event, ce.Delta):
            return self._splitter.feed(event.text)
        if isinstance(event, ce.Finished):
            return self._splitter.finish()
        if isinstance(event, ce.PrefillStarted):
            thinks = self._splits_thinking and (event.thinks or event.in_thinking)
            self._splitter = ThinkingSplitter(thinks=thinks, in_thinking=event.in_thinking)
        return []


class Collector:
    """Takes the events of one answer one by one.

    ``source`` says where the answer comes from, where no ``Resolved`` does. ``splits_thinking`` as in ``AnswerDeltas``.
    """

    def __init__(
        self, source: About | None = None, renderer: AnswerRenderer | None = None, *, splits_thinking: bool = True
    ) -> None:
        self._about, self._renderer = source, renderer
        self._begin = time.monotonic()
        self._deltas = AnswerDeltas(splits_thinking=splits_thinking)
        self._load_s: float | None = None
        self._notes: list[str] = []
        self._text: dict[bool, list[str]] = {False: [], True: []}

    def feed(self, event: ce.CollegeEvent) -> Answer | None:
        """Take one event in and pass it on to the renderer; the whole answer with the last one."""
        if isinstance(event, ce.Delta) and self._renderer is not None:
            self._renderer.wrote(event.tokens)
        self._deliver(self._deltas.of(event))
        if isinstance(event, ce.Delta):
            return None
        if isinstance(event, ce.Finished):
            return self._whole(event)
        if isinstance(event, ce.PrefillStarted):
            self._load_s = event.load_s
            self._notes = event.notes
            self._phase("reading the prompt", event.worker_pid)
        elif isinstance(event, Resolved):
            self._about = about(event)
        elif isinstance(event, ce.Loading):
            self._phase("loading")
        elif isinstance(event, ce.Waiting) and event.reason == "loading" and not event.ahead:
            self._phase("loading")  # it had begun before the question came
        elif isinstance(event, ce.Waiting):
            self._phase(f"waiting ({event.reason}, {event.ahead} ahead)")
        elif isinstance(event, ce.Restarted):
            self._phase(f"starting again ({event.reason})")
        return None

    @property
    def text(self) -> str:
        """The answer as far as it has come, without thoughts."""
        return "".join(self._text[False]).strip("\n")

    def _phase(self, name: str, worker_pid: int = 0) -> None:
        if self._renderer is not None:
            self._renderer.phase(name, worker_pid)

    def _deliver(self, deltas: list[TextDelta]) -> None:
        for delta in deltas:
            self._text[delta.is_thinking].append(delta.text)
            if self._renderer is not None:
                self._renderer.delta(delta.text, is_thinking=delta.is_thinking)

    def _whole(self, event: ce.Finished) -> Answer:
        source = self._about
        assert source is not None
        return Answer(
            schema_version=ANSWER_SCHEMA_VERSION,
            answer=self.text,
            thinking="".join(self._text[True]).strip(),
            expert=source.expert,
            model=source.model,
            provider=source.provider,
            profile=source.profile,
            finish_reason=event.finish_reason,
            usage=Usage(event.prompt_tokens, event.completion_tokens),
            timing=Timing(
                load_s=self._load_s,
                first_token_s=event.first_token_s,
                decode_s=event.decode_s,
                total_s=time.monotonic() - self._begin,
                tokens_per_s=tokens_per_s(event.completion_tokens, event.decode_s),
            ),
            warnings=[*source.notes, *self._notes, *event.notes],
        )


def collect(events: Iterable[ce.CollegeEvent], source: About | None, renderer: AnswerRenderer) -> Answer:
    """Pass every delta to ``renderer`` and return the whole answer.

    Raises:
        CoeError: what ``events`` raises; DeviceLost when they end too early.
    """
    collector = Collector(source, renderer)
    for event in events:
        answer = collector.feed(event)
        if answer is not None:
            return answer
    raise broken_off()


def broken_off() -> DeviceLost:
    """The error for events that end without ``Finished``."""
    return DeviceLost("the answer broke off without a word why", "Ask again.")
