"""A request between its question and its end, and what the college has counted over all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from coe_cli.errors import CoeError
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.prompts.prompt_messages import Prompt


@dataclass
class OpenRequest:
    """``held_back`` are the pieces of an answer that is wanted whole, until its end."""

    ask: ce.Ask
    prompt: Prompt | None = None
    events: asyncio.Queue[ce.CollegeEvent | CoeError] = field(default_factory=asyncio.Queue)
    load_s: float | None = None
    delivered: bool = False
    held_back: list[ce.Delta] = field(default_factory=list)

    def piece(self, piece: ce.Delta) -> bool:
        """Hand a piece on, or hold it back; whether the asker now has something of the answer for the first time."""
        if self.ask.buffered:
            self.held_back.append(piece)
            self.events.put_nowait(ce.Delta("", piece.tokens))  # a sign of life for whoever bounds the silence
            return False
        self.events.put_nowait(piece)
        first, self.delivered = not self.delivered, True
        return first

    def again(self, reason: str) -> None:
        """The answer starts again; nothing of it was handed on."""
        self.held_back.clear()
        self.events.put_nowait(ce.Restarted(reason))

    def end(self, outcome: ce.Finished | CoeError) -> None:
        """The last event, after what was held back of a complete answer."""
        if self.held_back and isinstance(outcome, ce.Finished):
            self.events.put_nowait(ce.Delta("".join(piece.text for piece in self.held_back), 0))
        self.events.put_nowait(outcome)


@dataclass
class Counters:
    """Counts since the start; tokens are those of complete answers."""

    answers: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    reused_prompt_tokens: int = 0
    completion_tokens: int = 0

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
