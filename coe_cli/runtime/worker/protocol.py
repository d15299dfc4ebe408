"""Messages between coe and a worker: typed, versioned, framed with their length.

A frame is four bytes of length (big endian) and one msgpack map with a ``type`` key. Requests carry an id, so that one
worker can serve several at once.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Literal

import msgspec
from msgspec import Struct

from coe_cli.core.answers.sampling import Sampling as Sampling
from coe_cli.core.answers.token_bytes import TokenLogprob
from coe_cli.core.answers.tool_calls import ToolCall
from coe_cli.core.names import size_words
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.errors import UsageError

PROTOCOL_VERSION = 2

FLUSH_S = 0.025
"""Minimum seconds between streamed chunks (40 per second)."""

FinishReason = Literal["stop", "length", "cancelled"]

_LENGTH = struct.Struct(">I")
_MAX_FRAME_BYTES = 64 * 2**20


class Message(Struct, frozen=True, tag_field="type", tag=True):
    """Base of all messages; the class name is the tag."""


class Load(Message, frozen=True):
    """Load the model in ``folder``. ``session_options`` go over those of ``genai_config.json``.

    ``slots`` generators at most keep their cache; with ``warm_context_length`` one of that size is made and run at once,
    because the first use of a new size is slow on GPUs. ``context_length``: a slot's, of which a paged model makes
    the cache of all slots; None leaves that to its configuration.
    """

    folder: str
    provider: str
    slots: int = 1
    warm_context_length: int | None = None
    session_options: dict[str, str | int | bool] = {}
    provider_options: dict[str, str] = {}
    context_length: int | None = None


class ChatMessage(Struct, frozen=True):
    """One turn. ``tool_calls``: functions that the assistant called; ``tool_call_id``: which of them a ``tool`` turn answers."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: list[ToolCall] = []
    tool_call_id: str = ""


class Guidance(Struct, frozen=True):
    """A grammar that the answer must follow; ``data`` is its text, ``field`` where a client's request had it."""

    kind: Literal["json_schema", "regex", "lark_grammar"]
    data: str
    field: str = ""


class Generate(Message, frozen=True):
    """Go on from ``prompt_ids``, token ids as ``runtime.prompts`` has made them.

    ``flush_s``: after its first token the answer's text is sent at most so often, in seconds; 0 sends every token at once.
    ``context_length`` bounds prompt and answer together, in tokens; ``max_tokens`` bounds the answer. A
    ``measured`` answer goes on to ``max_tokens`` whatever the model says, and ``Done`` tells when each token came.
    ``logprobs``: tell the log probability of each token, with so many of the likeliest in its place; None tells none.
    """

    request_id: int
    prompt_ids: list[int]
    context_length: int
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: list[str] = []
    guidance: Guidance | None = None
    flush_s: float = 0.0
    measured: bool = False
    logprobs: int | None = None


class Cancel(Message, frozen=True):
    request_id: int


class Hello(Message, frozen=True):
    """The worker's first message."""

    protocol_version: int
    oga_version: str
    pid: int


class Loaded(Message, frozen=True):
    load_s: float


class Started(Message, frozen=True):
    """The prompt's prefill begins; ``reused_tokens`` of it are in the slot's cache already."""

    request_id: int
    prompt_tokens: int
    reused_tokens: int = 0


class Token(Message, frozen=True):
    """A part of the answer: the text of so many ``tokens``; ``logprobs``, where they were asked for, of those in the text."""

    request_id: int
    text: str
    tokens: int = 1
    logprobs: list[TokenLogprob] = []


class Done(Message, frozen=True):
    """The end of an answer. Times are seconds in the worker: to the first token, and for all tokens after it.

    ``token_at_s``: the instant of each token on the worker's own clock, if the answer was ``measured``.
    ``repeats``: it was ended because it repeated itself; ``stopped_by``: the stop string that ended it.
    """

    request_id: int
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    decode_s: float
    token_at_s: list[float] = []
    repeats: bool = False
    stopped_by: str = ""


class Failed(Message, frozen=True):
    """A failure as a code of the CoeError family; ``request_id`` is None when it concerns the whole worker."""

    code: str
    message: str
    hint: str = ""
    request_id: int | None = None


ToWorker = Load | Generate | Cancel
FromWorker = Hello | Loaded | Started | Token | Done | Failed

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


HEAD_BYTES = _LENGTH.size


def frame(message: Struct) -> bytes:
    """One message with its length before it.

    Raises:
        UsageError: it has a number, a text or a size that cannot be sent; nothing of it was.
    """
    try:
        body = _encoder.encode(message)
    except (OverflowError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"the request cannot be given to the model: {error}", "Use smaller numbers and plain Unicode text."
        ) from error
    if len(body) > _MAX_FRAME_BYTES:
        raise UsageError(
            f"the request is larger than the {size_words(_MAX_FRAME_BYTES / BYTES_PER_MB)} that a model takes",
            "Shorten the prompt.",
        )
    return _LENGTH.pack(len(body)) + body


def frame_length(head: bytes) -> int:
    """Bytes of the body that follows ``head``.

    Raises:
        msgspec.DecodeError: no message is that long.
    """
    (length,) = _LENGTH.unpack(head)
    if length > _MAX_FRAME_BYTES:
        raise msgspec.DecodeError(f"a frame of {length} bytes is longer than any message")
    return int(length)


def write(stream: BinaryIO, message: Message) -> None:
    """Write one frame and flush it."""
    stream.write(frame(message))
    stream.flush()


def read_to_worker(stream: BinaryIO) -> ToWorker | Failed | None:
    """The next message for the worker, or None at the end of the stream.

    A request with a value out of its range comes back as the failure to answer it with: it must not cost the process.

    Raises:
        msgspec.MsgspecError: the bytes are not a message.
    """
    body = _frame(stream)
    if body is None:
        return None
    try:
        message: ToWorker = _to_worker.decode(body)
        return message
    except msgspec.ValidationError as error:
        fields = msgspec.msgpack.decode(body)
        if not isinstance(fields, dict) or not isinstance(request_id := fields.get("request_id"), int):
            raise
        return Failed(UsageError.code, f"the request cannot be used: {error}", "Correct the value.", request_id)


def read_from_worker(stream: BinaryIO) -> FromWorker | None:
    """The next message of a worker, or None at the end of the stream.

    Raises:
        msgspec.MsgspecError: the bytes are not a message.
    """
    body = _frame(stream)
    return None if body is None else _from_worker.decode(body)


def _frame(stream: BinaryIO) -> bytes | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    length = frame_length(head)
    body = stream.read(length)
    return body if len(body) == length else None
