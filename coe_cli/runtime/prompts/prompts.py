"""coe's end of the prompt process: requests wait here, one is under way, and a process that breaks a limit is replaced."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from typing import Protocol

import msgspec

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import (
    CoeError,
    DeviceLost,
    ModelDamaged,
    PromptsFull,
    PromptTooLong,
    UnknownToken,
    UsageError,
    from_code,
)
from coe_cli.interrupts import interrupt_put_off
from coe_cli.package import start_code
from coe_cli.runtime.job_object import OWN_GROUP, end_with_us, kill
from coe_cli.runtime.prompts.deadline import Deadline
from coe_cli.runtime.prompts.prompt_messages import Begun, FromPrompts, NotPrepared, Prepare, Prompt, Stage, text_bytes
from coe_cli.runtime.worker.protocol import HEAD_BYTES, ChatMessage, frame, frame_length

_START = start_code("coe_cli.runtime.prompts.prompt_process")
_LONG_BYTES = 65_536
_LOOK_UP_S = 0.2
_RETRY_AFTER_S = 5.0
_TEMPLATE_TOKENS = 256
"""More than any chat template adds around a short conversation."""

_decode = msgspec.msgpack.Decoder(FromPrompts).decode


@dataclass(frozen=True)
class PromptLimits:
    """``stage_s``: seconds that opening a tokenizer, rendering and tokenizing may each take, ``start_s`` the process's start.

    The rest bounds what waits.
    """

    stage_s: float = 10.0
    start_s: float = 60.0
    waiting: int = 256
    waiting_bytes: int = 32 * 2**20


class TooManyTokens(PromptTooLong):
    """``tokens`` of the prompt: exactly, or at least so many if not ``exact``."""

    tokens: int

    def __init__(self, message: str, hint: str, tokens: int, *, exact: bool) -> None:
        super().__init__(message, hint, tokens)
        self.exact = exact


def surely_fits(messages: list[ChatMessage], template: str | None, context_length: int) -> bool:
    """Whether the prompt fits whatever its tokens are: one stands for at least one byte."""
    size = text_bytes(messages) + len(template or "")
    return size + _TEMPLATE_TOKENS < context_length


def prompt_of_ids(ids: list[int], spec: ModelSpec, context_length: int) -> Prompt:
    """The prompt of a client that has tokenized it itself.

    Raises:
        UsageError, TooManyTokens: there is none, one that the model has not, or no room for an answer.
    """
    if not ids:
        raise UsageError("the prompt is empty", "Give it some tokens.")
    if not all(0 <= each < spec.shape.vocab_size for each in ids):
        raise UnknownToken(
            f"the prompt has a token that {spec.name} has not", f"It has {spec.shape.vocab_size}, from 0."
        )
    if len(ids) >= context_length:
        raise TooManyTokens(f"the prompt has {len(ids)} tokens", "Shorten it.", len(ids), exact=True)
    return Prompt(ids)


class PromptSource(Protocol):
    """Makes prompts for a college."""

    async def prepared(self, request: Prepare) -> Prompt:
        """See ``Prompts.prepared``."""
        ...


class Prompts:
    """Makes prompts. The process starts with ``start`` or the first request and lives until ``close``.

    Any thread may ask; short requests go before long ones. A request that ends the process is tried once more.
    """

    def __init__(self, limits: PromptLimits = PromptLimits()) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._queue: queue.PriorityQueue[tuple[int, int, _Job | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._waiting = 0
        self._waiting_bytes = 0
        self._child: _Child | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def pid(self) -> int:
        """The process's id; 0 while there is none."""
        child = self._child
        return child.pid if child is not None and child.alive else 0

    def start(self) -> Prompts:
        """Start the process, which gets ready while the caller goes on."""
        with self._lock:
            if self._child is None and not self._closed:
                self._child = _Child()
        return self

    def submit(self, request: Prepare) -> Future[Prompt]:
        """Queue a request. The future ends in a prompt or in a CoeError that names the model.

        Raises:
            PromptsFull: too much waits already.
        """
        size, job = request.text_bytes, _Job(request, Future())
        with self._lock:
            if self._closed:
                raise from_code("draining", "the college was stopped", "Ask again.")
            full = self._waiting >= self._limits.waiting or self._waiting_bytes + size > self._limits.waiting_bytes
            if self._waiting and full:
                raise PromptsFull(
                    f"{self._waiting} prompts are being made ready", "Try again in a moment.", _RETRY_AFTER_S
                )
            self._waiting += 1
            self._waiting_bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="prompts", daemon=True)
                self._thread.start()
        self._queue.put((size > _LONG_BYTES, next(self._numbers), job))
        job.future.add_done_callback(lambda _: self._over(size))
        return job.future

    def prepare(self, request: Prepare) -> Prompt:
        """The prompt, for a caller without an event loop.

        Raises:
            TooManyTokens: it leaves no room for an answer.
            ModelDamaged: the model's template or tokenizer cannot be used, or breaks a limit.
            UsageError: nothing, or nothing that a model can be given, is in it.
        """
        return result(self.submit(request))

    async def prepared(self, request: Prepare) -> Prompt:
        """The prompt, without holding up the event loop; raises what ``prepare`` does."""
        import asyncio  # `coe ask --no-serve` starts without it

        return await asyncio.wrap_future(self.submit(request))

    def close(self) -> None:
        """End the process and whatever waits for it; safe to call more than once."""
        with self._lock:
            self._closed = True
            child = self._child
        self._queue.put((-1, -1, None))
        if child is not None:
            child.kill()

    def _over(self, size: int) -> None:
        with self._lock:
            self._waiting -= 1
            self._waiting_bytes -= size

    def _work(self) -> None:
        while (job := self._queue.get()[2]) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                job.future.set_result(self._twice(job.request))
            except Exception as error:  # of the system's too: who waits must hear of it, and the next has its turn
                job.future.set_exception(error)
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._queue.get_nowait()[2]
                if job is not None:
                    job.future.cancel()

    def _twice(self, request: Prepare) -> Prompt:
        begun = False
        for _ in range(2):
            with self._lock:
                if self._closed:
                    raise from_code("draining", "the college was stopped", "Ask again.")
                if self._child is None or not self._child.alive:
                    self._child = _Child()
                child = self._child
            try:
                return child.prepare(request, self._limits)
            except _Ended as ended:
                begun = begun or ended.begun
                child.kill()
        if not begun:
            raise DeviceLost(
                "the process that makes prompts ends as soon as it starts", "COE_DEBUG=1 shows what it prints."
            )
        raise ModelDamaged(
            f"making the prompt for `{request.model}` ended the process twice, most likely for want of memory",
            "Use a plain prompt for this model's experts, or another model.",
        )


def result(future: Future[Prompt]) -> Prompt:
    """What ``submit`` has promised; raises what ``Prompts.prepare`` does."""
    while True:
        # Woken now and then, since a wait without an end does not see Ctrl-C on Windows.
        with contextlib.suppress(NotYet):
            return future.result(_LOOK_UP_S)


@dataclass(frozen=True)
class _Job:
    request: Prepare
    future: Future[Prompt]


class _Ended(Exception):
    """The process is gone; ``begun``: it was at work on the request."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun


class _Child:
    """One prompt process, which answers one request at a time."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            "RAYON_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "2",
        }
        stderr = None if os.environ.get("COE_DEBUG") else subprocess.DEVNULL
        try:
            with interrupt_put_off():
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=environment,
                    **OWN_GROUP,
                )
                _living.add(self)
            end_with_us(self._process.pid)
        except OSError as error:
            raise DeviceLost(
                f"the process that makes prompts cannot be started: {sys.executable}: {error.strerror or error}",
                "Free memory and processes, then try again.",
            ) from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def prepare(self, request: Prepare, limits: PromptLimits) -> Prompt:
        """
        Raises:
            _Ended: the process ended, not for a limit on its time.
            CoeError: what it says, or the stage that took too long.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with Deadline(limits.start_s, lambda: kill(self._process)) as deadline:
            stage: Stage | None = None
            try:
                self._process.stdin.write(frame(request))
                self._process.stdin.flush()
                while isinstance(message := self._read(), Begun):
                    stage = message.stage
                    deadline.begin(limits.stage_s)
            except (OSError, ValueError, EOFError, msgspec.MsgspecError):
                message = None
        if message is None:
            if deadline.passed:
                self.kill()
                raise _too_slow(request, stage, limits)
            raise _Ended(begun=stage is not None)
        if isinstance(message, NotPrepared):
            if message.tokens is not None:
                raise TooManyTokens(message.message, message.hint, message.tokens, exact=message.exact)
            raise from_code(message.code, message.message, message.hint)
        return message

    def kill(self) -> None:
        """End the process and wait for it; safe to call more than once."""
        kill(self._process)
        self._process.wait()
        _living.discard(self)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def _read(self) -> FromPrompts:
        assert self._process.stdout is not None
        head = self._process.stdout.read(HEAD_BYTES)
        if len(head) < HEAD_BYTES:
            raise EOFError
        found: FromPrompts = _decode(self._process.stdout.read(frame_length(head)))
        return found


def _too_slow(request: Prepare, stage: Stage | None, limits: PromptLimits) -> CoeError:
    name, stage_s = request.model, limits.stage_s
    if stage is None:
        return DeviceLost(
            f"the process that makes prompts did not start within {limits.start_s:g} s",
            "Close other programs, and ask again.",
        )
    if stage == "rendering":
        return ModelDamaged(
            f"the chat template of `{name}` ran for more than {stage_s:g} s",
            "Use a plain prompt for this model's experts, or another model.",
        )
    if stage == "tokenizing" and request.text_bytes > _LONG_BYTES:
        return PromptTooLong(
            f"the prompt of {request.text_bytes} bytes was not tokenized for `{name}` within {stage_s:g} s",
            "Shorten it.",
        )
    return ModelDamaged(
        f"the tokenizer of `{name}` took more than {stage_s:g} s", f"Fetch it again: coe models pull {name}"
    )


_living: set[_Child] = set()
_own: Prompts | None = None


def own() -> Prompts:
    """The one of this process, for whoever has no college; it lives until ``end_all``."""
    global _own
    if _own is None:
        _own = Prompts()
        atexit.register(end_all)
    return _own


def start_early() -> None:
    """Start the process before the command line is parsed, so that it gets ready meanwhile."""
    own().start()


def end_all() -> None:
    """End every prompt process of this one, whoever had it when an interrupt came between two owners."""
    global _own
    if _own is not None:
        _own.close()
        _own = None
    for child in list(_living):
        child.kill()
