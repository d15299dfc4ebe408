"""A college as other processes see it: find it, start it, ask it, look at it, end it. Imports the standard library only."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from coe_cli.core.names import size_words
from coe_cli.core.process_exit import ExitKind, explain_exit
from coe_cli.core.routing.router import RouteAnswer, RouteRequest
from coe_cli.core.scheduling.college_status import CollegeStatus, ModelLine
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.errors import CoeError, DeviceLost, ExitCode, ModelMissing, PromptTooLong, TimedOut, UsageError, from_code
from coe_cli.package import start_code
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import ChatRequest, Needed, Resolved
from coe_cli.runtime.folders import folders
from coe_cli.runtime.server import discovery, pid_file
from coe_cli.runtime.server.serve_options import ServeOptions
from coe_cli.runtime.settings import settings_digest

_START = start_code("coe_cli.runtime.server.serve_process")
_START_LOG = "serve-start.log"
_START_TIMEOUT_S = 60.0
_PING_TIMEOUT_S = 5.0
_KILL_AFTER_S = 5.0
_FRESH_S = 2.0
_MAX_LINE_BYTES = 64 * 2**20

_decode_event = msgspec.json.Decoder(ce.WireEvent).decode


def find(*, any_state: bool = False) -> CollegeClient | None:
    """The college of this user, if one runs and takes requests; with ``any_state`` also one that ends after its answers.

    Raises:
        TimedOut: with ``any_state``, one runs and says nothing.
    """
    state = discovery.read_state(folders().state)
    if state is None:
        return None
    client = CollegeClient(state)
    if client.answers(*(["draining"] if any_state else [])):
        return client
    client.close()
    if any_state and client.silent and discovery.college_lives(folders().state):
        raise TimedOut(f"the college (process {state.pid}) does not answer", "Wait, or end it: coe stop")
    return None


def find_or_start(options: ServeOptions = ServeOptions()) -> CollegeClient:
    """The college of this user, started and detached if none runs; two calls at the same moment give one college.

    Raises:
        CoeError: why it did not start.
        TimedOut: it takes too long.
    """
    client = find()
    if client is not None:
        return client
    folder = discovery.private_folder(folders().state)
    with discovery.starting(folder, _START_TIMEOUT_S):
        client = find()
        if client is not None:
            return client
        process = _start_detached(folder, options)
        with contextlib.suppress(OSError):  # where nothing can be written the college says so, and ends
            pid_file.write(folder / pid_file.STARTING, process.pid)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            code = process.poll()
            client = find()
            if client is not None:
                client.started = True
                return client
            if code is not None:
                raise _why_not(folder, code)
            time.sleep(0.01)
    raise TimedOut(f"the college did not start within {_START_TIMEOUT_S:g} s", f"See {folder / _START_LOG}.")


def running() -> CollegeClient | None:
    """The college of this user by its state file and its lock alone, without a request.

    The system frees the lock with the college's process, so while it is held nobody else can listen on its port.
    """
    folder = folders().state
    state = discovery.read_state(folder)
    return CollegeClient(state) if state is not None and discovery.college_lives(folder) else None


def reach(options: ServeOptions, *, proven: bool = False) -> tuple[CollegeClient | None, str]:
    """The college that serves with these settings, started if none runs; or None, and why there is no such college.

    ``proven``: one that runs is asked first whether it takes requests.
    """
    try:
        client = None if proven else running()
        client = client or find_or_start(options)
    except CoeError as error:
        return None, f"no college could be started ({error.message})"
    state, other = client.state, ""
    files = (None if name is None else Path(name) for name in (options.profiles_file, options.catalog_file))
    if state.models_dir != str(folders().models):
        other = f"other models ({state.models_dir})"
    elif options.profile is not None and state.profile != options.profile:
        other = f"profile {state.profile}"
    elif state.settings != settings_digest(*files):
        other = "profiles or a catalog that have changed since"
    if not other:
        return client, ""
    client.close()
    return None, f"the running college has {other} (`coe stop` ends it)"


def _start_detached(folder: Path, options: ServeOptions) -> subprocess.Popen[bytes]:
    descriptor = os.open(folder / _START_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:

        def start(**how: Any) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-P", "-c", _START, msgspec.json.encode(options).decode()]
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, cwd=folder, **how
            )
            return process

        if sys.platform != "win32":
            return start(start_new_session=True)
        # CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW: a console of its own without a window, which workers inherit.
        flags = 0x00000200 | 0x08000000
        try:
            return start(creationflags=flags | 0x01000000)  # CREATE_BREAKAWAY_FROM_JOB: a terminal's job ends with it
        except PermissionError:  # that job does not let its processes go
            return start(creationflags=flags)
    finally:
        os.close(descriptor)


def _why_not(folder: Path, code: int) -> CoeError:
    if code == 0:
        return CoeError("another college holds the lock and does not answer", "End it with `coe stop`.")
    with contextlib.suppress(OSError, IndexError, msgspec.MsgspecError, KeyError, TypeError):
        lines = (folder / _START_LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        with contextlib.suppress(msgspec.MsgspecError, TypeError, KeyError):
            error = msgspec.json.decode(lines[-1])["error"]
            return from_code(error["code"], error["message"], error["hint"])
        return CoeError(f"the college did not start: {lines[-1][:300]}", f"See {folder / _START_LOG}.")
    # A college that has a reason and no room for it ends with 1; Task Manager's 1 looks the same.
    ended = explain_exit(code, windows=sys.platform == "win32", silent=code != ExitCode.UNEXPECTED)
    if ended.kind is not ExitKind.EXITED:
        return CoeError(f"the college {ended.text} as it started", "Start it again; see `coe doctor` if it recurs.")
    return CoeError(
        f"the college ended with code {code} as it started and could not write why into {folder / _START_LOG}",
        "Make room there, or set COE_STATE_DIR to a folder that can be written.",
    )


class CollegeGone(DeviceLost):
    """The college ended in the middle of an answer."""


class CollegeClient:
    """One connection to a college; not for several threads.

    ``started``: it was started for this connection. ``silent``: it took the connection and did not answer in time.
    """

    started = silent = False

    def __init__(self, state: discovery.CollegeState) -> None:
        self.state = state
        self._connection = http.client.HTTPConnection(state.connect_host, state.port, timeout=_PING_TIMEOUT_S)
        self._used_at = time.monotonic()
        host = f"[{state.connect_host}]" if ":" in state.connect_host else state.connect_host
        self._headers = {"Authorization": f"Bearer {state.token}", "Host": f"{host}:{state.port}"}

    def answers(self, *states: str) -> bool:
        """Whether the process that wrote the state file is there, ok or in one of ``states``; it proves that it knows the token."""
        nonce = secrets.token_hex(16)
        try:
            self._connection.request("GET", f"/healthz?nonce={nonce}", headers={"Host": self._headers["Host"]})
            response = self._connection.getresponse()
            answer = msgspec.json.decode(response.read(_MAX_LINE_BYTES))
        except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
            self.silent = isinstance(error, TimeoutError)
            self._connection.close()
            return False
        expected = discovery.proof(self.state.token, nonce)
        return isinstance(answer, dict) and answer.get("proof") == expected and answer.get("status") in ("ok", *states)

    def ask(self, request: ChatRequest, timeout_s: float | None = None) -> Iterator[ce.CollegeEvent]:
        """Events of one answer, ending with ``Finished``, or with ``Needed``, or with ``Resolved`` where nothing follows.

        Closing the iterator, or the process's end, cancels it.

        Raises:
            CoeError: as ``college.answering``; DeviceLost when the college itself goes away in mid-answer.
            TimedOut: nothing came for ``timeout_s`` seconds.
        """
        try:
            response = self._request("POST", "/coe/ask", msgspec.json.encode(request), timeout_s)
            silent_s = 0
            while line := response.readline(_MAX_LINE_BYTES):
                if line == b"\n":  # comes each second; counted, since the reader itself may have paused
                    silent_s += 1
                    if timeout_s is not None and silent_s > timeout_s:
                        raise TimeoutError
                    continue
                silent_s = 0
                event = _decode_event(line)
                if isinstance(event, ce.Broken):
                    error = from_code(event.code, event.message, event.hint)
                    error.__dict__["retry_after_s"] = event.retry_after_s
                    raise error
                yield event
                if isinstance(event, ce.Finished | Needed) or (isinstance(event, Resolved) and event.ends(request)):
                    response.read()
                    return
            raise self._gone()
        except TimeoutError:
            raise TimedOut(
                f"the college said nothing for {timeout_s:g} s", "Allow more time with --timeout, or see `coe ps`."
            ) from None
        except (OSError, http.client.HTTPException, msgspec.MsgspecError):
            raise self._gone() from None
        finally:
            self._connection.close()

    def snapshot(self) -> CollegeStatus:
        """What `coe ps` shows.

        Raises:
            DeviceLost: the college has gone.
        """
        return msgspec.json.decode(self._whole("GET", "/coe/snapshot"), type=CollegeStatus)

    def route(self, request: RouteRequest) -> RouteAnswer:
        """Decisions for questions by the college's own router.

        Raises:
            CoeError: it has none prepared, or one for other examples or another embedder.
            DeviceLost: the college has gone.
        """
        return msgspec.json.decode(self._whole("POST", "/coe/route", request), type=RouteAnswer)

    def unload(self, model: str) -> ModelLine:
        """Take a model out as soon as it is idle; returns how it was.

        Raises:
            ModelMissing: it is not loaded.
            DeviceLost: the college has gone.
        """
        return msgspec.json.decode(self._whole("POST", "/coe/unload", {"model": model}), type=ModelLine)

    def stop(self, *, drain: bool = False) -> None:
        """Tell the college to end, with ``drain`` only when its answers are complete; ``wait_until_gone`` waits.

        Raises:
            DeviceLost: it has gone already.
        """
        self._whole("POST", "/coe/stop", {"drain": drain})

    def close(self) -> None:
        self._connection.close()

    def abort(self) -> None:
        """Break the connection off, from any thread: whoever waits on it is woken by an error."""
        sock = self._connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _whole(self, method: str, path: str, value: object = None) -> bytes:
        try:
            response = self._request(method, path, None if value is None else msgspec.json.encode(value), 30.0)
            return response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise self._gone() from None

    def _request(self, method: str, path: str, body: bytes | None, timeout_s: float | None) -> http.client.HTTPResponse:
        if self._connection.sock is not None and time.monotonic() - self._used_at > _FRESH_S:
            self._connection.close()  # the server may be closing it at this very moment
        if self._connection.sock is None:
            self._connection.connect()
        self._used_at = time.monotonic()
        self._connection.sock.settimeout(timeout_s)
        self._connection.request(method, path, body, self._headers)
        response = self._connection.getresponse()
        if response.status >= 400:
            raise _refusal(response.status, response.read(_MAX_LINE_BYTES))
        return response

    def _gone(self) -> CollegeGone:
        return CollegeGone("the college ended in the middle of it", "Ask again; see `coe ps`.")


def _refusal(status: int, body: bytes) -> CoeError:
    if status == 413:
        from coe_cli.runtime.server.guard import MAX_BODY_BYTES

        most = size_words(MAX_BODY_BYTES / BYTES_PER_MB)
        return PromptTooLong(f"the question, with what was said before it, takes more than {most}", "Shorten it.")
    with contextlib.suppress(msgspec.MsgspecError, KeyError, TypeError):
        error = msgspec.json.decode(body)["error"]
        kind = {400: UsageError, 404: ModelMissing}.get(status, CoeError)
        return kind(str(error["message"]))
    return CoeError(f"the college answered with status {status}")


def _named(folder: Path) -> set[pid_file.ProcessIdentity]:
    """The processes that run and are, were or become the college."""
    return {found for name in (pid_file.COLLEGE, pid_file.STARTING) if (found := pid_file.read(folder / name))}


def wait_until_gone(timeout_s: float | None = None, ended: discovery.CollegeState | None = None) -> bool:
    """Wait until no process holds the college's lock or ends as a college; whether that came about within ``timeout_s`` seconds.

    ``ended`` is the college that is waited for; once another one has come, it is gone.
    """
    folder = folders().state
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while folder.is_dir() and (_named(folder) or discovery.college_lives(folder)):
        if ended is not None and (state := discovery.read_state(folder)) is not None and state.token != ended.token:
            return True
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def end_unresponsive() -> bool:
    """End whatever is a college and does not answer: starting, stuck, stopped or ending; whether there was one.

    Raises:
        CoeError: it cannot be ended.
    """
    folder = folders().state
    ended = False
    deadline = time.monotonic() + _KILL_AFTER_S
    while folder.is_dir():
        found = _named(folder)
        for process in found:
            if not process.end(_KILL_AFTER_S):
                raise CoeError(f"process {process.pid} does not end", "End it by hand.")
            ended, deadline = True, time.monotonic() + _KILL_AFTER_S  # its lock goes when all of its threads have gone
        if not found and not discovery.college_lives(folder):
            break
        if not found and time.monotonic() > deadline:
            raise CoeError(
                f"a process that coe does not know holds {folder / 'college.lock'}", "End that process by hand."
            )
        time.sleep(0.02)
    return ended
