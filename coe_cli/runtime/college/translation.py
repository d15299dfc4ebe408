"""Between a college's events and the worker's protocol: what is asked as the worker hears it, what it says as events."""

from __future__ import annotations

from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.worker import protocol

_WHOLE_FLUSH_S = 0.5  # the watchdog wants to hear of progress


def to_worker(request_id: int, ask: ce.Ask | ce.AskByName, context_length: int) -> protocol.Generate:
    """The request in a slot of ``context_length`` tokens."""
    return protocol.Generate(
        request_id=request_id,
        messages=ask.messages,
        context_length=context_length,
        max_tokens=ask.max_tokens,
        template=ask.template,
        sampling=ask.sampling,
        stop=ask.stop,
        guidance=ask.guidance,
        flush_s=_WHOLE_FLUSH_S if ask.whole else ask.flush_s,
    )


def reading(message: protocol.Started, load_s: float | None, worker_pid: int) -> ce.Reading:
    """``load_s`` is None where the model was resident."""
    return ce.Reading(message.prompt_tokens, message.reused_tokens, message.in_thinking, load_s, worker_pid)


def piece(message: protocol.Token) -> ce.Piece:
    """A part of the answer."""
    return ce.Piece(message.text, message.tokens)


def finished(message: protocol.Done) -> ce.Finished:
    """The answer's end."""
    return ce.Finished(
        finish_reason=message.finish_reason,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        first_token_s=message.first_token_s,
        decode_s=message.decode_s,
    )
