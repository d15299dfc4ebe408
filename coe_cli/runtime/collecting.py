"""From the events of one answer to the answer as a whole, with every piece passed on as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from coe_cli.core.answer import ANSWER_SCHEMA_VERSION, Answer, Timing, Usage, tokens_per_s
from coe_cli.core.thinking import Piece, ThinkingSplitter
from coe_cli.errors import DeviceLost
from coe_cli.runtime import college_events as ce


class About(NamedTuple):
    """What the answer says of where it came from."""

    expert: str | None
    model: str
    provider: str
    profile: str
    notes: list[str]


class Listener(Protocol):
    """Hears of an answer while it is made; ``worker_pid`` is 0 while it is not known."""

    def phase(self, name: str, worker_pid: int) -> None: ...

    def piece(self, text: str, *, is_thinking: bool) -> None: ...


def collect(
    events: Iterable[ce.CollegeEvent], about: About, listener: Listener, clock: Callable[[], float] = time.monotonic
) -> Answer:
    """Pass every piece to ``listener`` and return the whole answer; times are seconds of ``clock``.

    Raises:
        CoeError: what ``events`` raises; DeviceLost when they end too early.
    """
    begin = clock()
    splitter = ThinkingSplitter()
    load_s: float | None = None
    text: dict[bool, list[str]] = {False: [], True: []}

    def deliver(pieces: list[Piece]) -> None:
        for piece in pieces:
            text[piece.is_thinking].append(piece.text)
            listener.piece(piece.text, is_thinking=piece.is_thinking)

    for event in events:
        if isinstance(event, ce.Piece):
            deliver(splitter.feed(event.text))
        elif isinstance(event, ce.Reading):
            splitter = ThinkingSplitter(in_thinking=event.in_thinking)
            load_s = event.load_s
            listener.phase("reading the prompt", event.worker_pid)
        elif isinstance(event, ce.Loading):
            listener.phase("loading", 0)
        elif isinstance(event, ce.Waiting):
            listener.phase(f"waiting ({event.reason}, {event.ahead} ahead)", 0)
        elif isinstance(event, ce.Again):
            listener.phase(f"starting again ({event.reason})", 0)
        else:
            deliver(splitter.finish())
            return Answer(
                schema_version=ANSWER_SCHEMA_VERSION,
                answer="".join(text[False]).strip("\n"),
                thinking="".join(text[True]).strip(),
                expert=about.expert,
                model=about.model,
                provider=about.provider,
                profile=about.profile,
                finish_reason=event.finish_reason,
                usage=Usage(event.prompt_tokens, event.completion_tokens),
                timing=Timing(
                    load_s=load_s,
                    first_token_s=event.first_token_s,
                    decode_s=event.decode_s,
                    total_s=clock() - begin,
                    tokens_per_s=tokens_per_s(event.completion_tokens, event.decode_s),
                ),
                warnings=list(about.notes),
            )
    raise DeviceLost("the answer broke off without a word why", "Ask again.")
