"""Between a college's events and the worker's protocol: what is asked as the worker hears it, what it says as events."""

from __future__ import annotations

from coe_cli.core.answers.tool_calls import tool_grammar
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.prompts.prompt_messages import Prepare, Prompt
from coe_cli.runtime.worker import protocol

_REPEATS = "the answer repeated itself and was ended"
_MORE = "ask for more with max_tokens (--max-tokens)"
_WITH_THOUGHTS = 4
_BUFFERED_FLUSH_S = 0.5  # the watchdog wants to hear of progress


def to_prepare(ask: ce.Ask, spec: ModelSpec, context_length: int) -> Prepare:
    """The prompt that the request needs, in a slot of ``context_length`` tokens."""
    return Prepare(
        model=spec.name,
        folder=str(spec.folder),
        messages=ask.messages,
        context_length=context_length,
        template=ask.template,
        allow_special_tokens=ask.allow_special_tokens,
        tools=ask.tools.templates() if ask.tools is not None else None,
        rendering=ask.rendering,
    )


def answer_limit(ask: ce.Ask, prompt: Prompt) -> int:
    """Tokens of the answer at most: the request's own limit or the profile's, with room for thoughts."""
    thinks = prompt.thinks or prompt.opens_thinking
    return ask.max_tokens or ask.max_answer_tokens * (_WITH_THOUGHTS if thinks else 1)


def to_worker(request_id: int, ask: ce.Ask, prompt: Prompt, context_length: int) -> protocol.Generate:
    """The request in a slot of ``context_length`` tokens."""
    return protocol.Generate(
        request_id=request_id,
        prompt_ids=prompt.ids,
        context_length=context_length,
        max_tokens=answer_limit(ask, prompt),
        sampling=ask.sampling,
        stop=ask.stop,
        guidance=_guidance(ask, prompt),
        logprobs=ask.logprobs,
        flush_s=_BUFFERED_FLUSH_S if ask.buffered else ask.flush_s,
    )


def _guidance(ask: ce.Ask, prompt: Prompt) -> protocol.Guidance | None:
    """The answer's grammar; with functions one that has their calls too, in the format of the prompt."""
    if ask.tools is None:
        return ask.guidance
    schema = ask.guidance.data if ask.guidance is not None else None
    text = tool_grammar(
        ask.tools,
        prompt.tool_format or "hermes",
        marker=prompt.tool_marker,
        schema=schema,
        single=not prompt.tool_format,
    )
    return protocol.Guidance("lark_grammar", text)


def prefill_started(
    message: protocol.Started, prompt: Prompt, load_s: float | None, worker_pid: int
) -> ce.PrefillStarted:
    """``load_s`` is None where the model was loaded already."""
    return ce.PrefillStarted(
        message.prompt_tokens,
        message.reused_tokens,
        prompt.opens_thinking,
        load_s,
        worker_pid,
        prompt.notes,
        prompt.thinks,
    )


def delta(message: protocol.Token) -> ce.Delta:
    """A part of the answer."""
    return ce.Delta(message.text, message.tokens, message.logprobs)


def finished(message: protocol.Done, ask: ce.Ask, prompt: Prompt) -> ce.Finished:
    """The answer's end."""
    limit = answer_limit(ask, prompt)
    notes = []
    if message.repeats:
        notes.append(_REPEATS)
    elif message.finish_reason == "length" and ask.max_tokens is None and message.completion_tokens >= limit:
        notes.append(f"the answer ends at {limit} tokens, the profile's max_answer_tokens: {_MORE}")
    return ce.Finished(
        finish_reason=message.finish_reason,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        first_token_s=message.first_token_s,
        decode_s=message.decode_s,
        notes=notes,
        stopped_by=message.stopped_by,
    )
