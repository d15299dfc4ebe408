"""A request between its question and its end, and what the college has counted over all of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from msgspec import structs

from coe_cli.core.scheduling.college_status import SlotLine
from coe_cli.core.scheduling.scheduler_events import RequestId
from coe_cli.errors import CoeError
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.timings import Stopwatch, Timings
from coe_cli.runtime.prompts.prompt_messages import Prompt

_FULL = 2


@dataclass
class OpenRequest:
    """``held_back`` are the parts of an answer that is wanted whole, until its end."""

    ask: ce.Ask
    prompt: Prompt | None = None
    events: asyncio.Queue[ce.CollegeEvent | CoeError] = field(default_factory=asyncio.Queue)
    load_s: float | None = None
    delivered: bool = False
    held_back: list[ce.Delta] = field(default_factory=list)
    prefill: ce.PrefillStarted | None = None
    written: int = 0

    def begin(self, prefill: ce.PrefillStarted) -> None:
        """It has a slot."""
        self.prefill, self.written = prefill, 0
        self.events.put_nowait(prefill)

    def deliver(self, delta: ce.Delta) -> bool:
        """Hand a part on, or hold it back; whether the asker now has something of the answer for the first time."""
        self.written += delta.tokens
        if self.ask.buffered:
            self.held_back.append(delta)
            self.events.put_nowait(ce.Delta("", delta.tokens))  # a sign of life for whoever bounds the silence
            return False
        self.events.put_nowait(delta)
        first, self.delivered = not self.delivered, True
        return first

    def again(self, reason: str) -> None:
        """The answer starts again; nothing of it was handed on."""
        self.held_back.clear()
        self.prefill = None
        self.events.put_nowait(ce.Restarted(reason))

    def end(self, outcome: ce.Finished | CoeError) -> None:
        """The last event, after what was held back of a complete answer."""
        if self.held_back and isinstance(outcome, ce.Finished):
            logprobs = [each for delta in self.held_back for each in delta.logprobs]
            self.events.put_nowait(ce.Delta("".join(delta.text for delta in self.held_back), 0, logprobs))
        self.events.put_nowait(outcome)


class OpenRequests(dict[int, OpenRequest]):
    """All requests that have not ended, by their number."""

    def inform(self, request_id: RequestId, event: ce.CollegeEvent | CoeError) -> None:
        """Hand an event to who asks, if he still does."""
        if (request := self.get(int(request_id))) is not None:
            request.events.put_nowait(event)

    def end(self, request_id: RequestId, outcome: ce.Finished | CoeError) -> None:
        if (request := self.pop(int(request_id), None)) is not None:
            request.end(outcome)

    def slots(self, model: str) -> list[SlotLine]:
        """The answers that the model is writing."""
        return [
            SlotLine(each.ask.expert, each.prefill.prompt_tokens, each.prefill.reused_tokens, each.written)
            for each in self.of(model)
            if each.prefill is not None
        ]

    def of(self, model: str) -> list[OpenRequest]:
        return [request for request in self.values() if request.ask.model.name == model]

    def to_replica(self, ask: ce.Ask, most: int, loaded: Collection[str]) -> ce.Ask:
        """The request to that replica of its model which is least busy: a further one only where the others are full.

        A replica is full with one request that it answers and one that waits, so that it is never idle in between.
        """
        name = ask.model.name
        busy = Counter(request.ask.model.name for request in self.values())
        replicas = [name, *(f"{name} ({number})" for number in range(2, most + 1))]
        there = [replica for replica in replicas if replica in loaded or busy[replica]] or replicas[:1]
        chosen = min(there, key=busy.__getitem__)
        if busy[chosen] >= _FULL and (fresh := [replica for replica in replicas if replica not in there]):
            chosen = fresh[0]
        return structs.replace(ask, model=structs.replace(ask.model, name=chosen))


@dataclass
class Counters:
    """Counts since the start; tokens are those of complete answers."""

    answers: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    reused_prompt_tokens: int = 0
    completion_tokens: int = 0
    timings: dict[tuple[str, str], Timings] = field(default_factory=dict)
    """By model and expert."""

    def stopwatch(self, model: str, expert: str | None, now_s: float) -> Stopwatch:
        """One for an answer that begins now."""
        return Stopwatch(self.timings.setdefault((model, expert or ""), Timings()), now_s)

    def written(self, model: str) -> int:
        """Tokens that a model has written, those of unfinished answers with them."""
        return sum(timings.written for (name, _), timings in self.timings.items() if name == model)

    def count(self, event: ce.CollegeEvent | CoeError) -> None:
        """Take in an event that was handed to an asker."""
        if isinstance(event, CoeError):
            self.failures += 1
        elif isinstance(event, ce.PrefillStarted):
            self.reused_prompt_tokens += event.reused_tokens
        elif isinstance(event, ce.Finished):
            self.answers += 1
            self.prompt_tokens += event.prompt_tokens
            self.completion_tokens += event.completion_tokens
