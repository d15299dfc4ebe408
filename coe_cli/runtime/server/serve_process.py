"""The process of a college: built from catalog and profile, announced in the state file, ended when nobody needs it.

Everything runs in the main thread's loop. Workers ask the system to be ended with the thread that started them, so they
are gone even if this process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import msgspec

from coe_cli import __version__
from coe_cli.core.duration import parse_duration_s
from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.scheduling.college_status import CollegeStatus
from coe_cli.core.scheduling.scheduler_state import pool_from_profile
from coe_cli.errors import CoeError, ExitCode, UsageError, explained
from coe_cli.interrupts import on_interrupt
from coe_cli.replacing import move, remove
from coe_cli.runtime.college.calibration_recorder import CalibrationRecorder
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.college_profile import college_profile
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.memory_probe import memory_probe_for
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import folders
from coe_cli.runtime.prompts.prompts import own
from coe_cli.runtime.routing.router_preparation import learn_in_child
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.runtime.server import discovery, pid_file
from coe_cli.runtime.server.guard import is_loopback
from coe_cli.runtime.server.listening import bound_socket, just_ended, note_ended
from coe_cli.runtime.server.running_college import device_of
from coe_cli.runtime.server.serve_options import ServeOptions
from coe_cli.runtime.server.server import ACCESS_LOG, PROMPT_LOG, Server
from coe_cli.runtime.settings import read_catalog, read_profiles, settings_digest
from coe_cli.streams import prepare_streams

API_KEY_VARIABLE = "COE_API_KEY"
_LOG_BYTES = 1_000_000
_DRAIN_S = 2.0
_VIEW_EVERY_S = 0.5
_OWNER_EVERY_S = 0.5

Observer = Callable[[CollegeStatus], None]


class AlreadyRunning(CoeError):
    """This user has a college already."""

    code = "already_running"


def serve(options: ServeOptions, on_ready: Callable[[str], None], observer: Observer | None = None) -> None:
    """Run a college until it is stopped or idle for long enough. ``on_ready`` hears its URL, ``observer`` its status.

    Raises:
        AlreadyRunning: there is one.
        UsageError: the address needs an API key, or cannot be bound.
        ProfileInvalid: profiles or catalog are wrong.
    """
    api_key = os.environ.get(API_KEY_VARIABLE) or None
    if not is_loopback(options.host) and api_key is None:
        raise UsageError(
            f"{options.host} can be reached from other machines, so it needs an API key",
            f"Set {API_KEY_VARIABLE}, or give --api-key, or stay on 127.0.0.1.",
        )
    if "*" in options.cors_origins and api_key is None:
        raise UsageError(
            "--cors-origin '*' lets every web page ask, so it needs an API key",
            f"Set {API_KEY_VARIABLE}, or name pages.",
        )
    files = _path(options.profiles_file), _path(options.catalog_file)
    settings = settings_digest(*files)
    profiles, catalog = read_profiles(files[0]), read_catalog(files[1])
    where = folders()
    profile = college_profile(profiles, options.profile, catalog, where)
    if options.slots is not None:
        profile = msgspec.structs.replace(profile, max_concurrent_slots=options.slots)
    folder = discovery.private_folder(where.state)
    lock = discovery.hold_college_lock(folder)
    if lock is None:
        raise AlreadyRunning("a college is running already", "See `coe ps`; end it with `coe stop`.")
    try:
        ended = just_ended(folder)
        discovery.remove_state(folder)  # whoever left it behind is gone
        try:
            pid_file.write(folder / pid_file.COLLEGE, os.getpid())
        except OSError as error:
            raise discovery.cannot_announce(folder, error) from error
        with bound_socket(options.host, options.port, ended) as listener, _logging(folder):
            state = discovery.CollegeState(
                pid=os.getpid(),
                host=options.host,
                port=listener.getsockname()[1],
                token=secrets.token_urlsafe(32),
                version=__version__,
                started_at=time.time(),
                profile=profile.name,
                models_dir=str(where.models),
                settings=settings,
            )
            router = SharedRouter(
                catalog, where, profile.provider, learn=lambda: learn_in_child(catalog, profile.provider)
            )
            resolver = RequestResolver(catalog, where.models, profile, router, routing=profiles.routing)
            job = _Process(options, state, listener, profile, resolver, api_key)
            asyncio.run(job.run(folder, on_ready, observer))
        note_ended(folder, state.port)
    finally:
        discovery.remove_state(folder)
        with contextlib.suppress(OSError):
            remove(folder / pid_file.COLLEGE)
        lock.release()


class _Process:
    """One run of the server around one college."""

    def __init__(
        self,
        options: ServeOptions,
        state: discovery.CollegeState,
        listener: socket.socket,
        profile: HardwareProfile,
        resolver: RequestResolver,
        api_key: str | None,
    ) -> None:
        self._options, self._state, self._listener = options, state, listener
        self._profile, self._resolver, self._api_key = profile, resolver, api_key
        self._ending = False
        self._failure: Exception | None = None

    async def run(self, folder: Path, on_ready: Callable[[str], None], observer: Observer | None) -> None:
        if self._options.open_router and self._resolver.routing.enabled:
            threading.Thread(target=self._open_router, daemon=True).start()
        import uvicorn

        from coe_cli.runtime.server.connections import SPARE_CONNECTIONS, bounded_protocol

        pool = pool_from_profile(self._profile, max_queue=self._options.max_queue)
        settings = CollegeSettings(
            pool,
            cost_in(self._profile, self._resolver.catalog),
            recorder=CalibrationRecorder(),
            keep_warm_worker=True,
            prompts=own().start(),
            replicas=self._options.replicas,
        )
        self._college = College(settings, memory_probe_for(self._profile))
        self._server = Server(self._college, self._resolver, self._state, self.stop, self._options, self._api_key)
        self._server.device = device_of(self._profile)
        config = uvicorn.Config(
            self._server,
            loop="none",
            http=bounded_protocol(pool.max_queue + pool.max_concurrent_slots + SPARE_CONNECTIONS),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=None,
            timeout_graceful_shutdown=1,
        )
        self._uvicorn = uvicorn.Server(config)
        self._uvicorn.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self._take_signals()
        helpers = [self._helper(self._announce(folder, on_ready)), self._helper(self._end_when_idle())]
        if self._options.owner_pid is not None:
            helpers.append(self._helper(self._end_with_owner(self._options.owner_pid)))
        if observer is not None:
            helpers.append(self._helper(self._show(observer)))
        try:
            await self._uvicorn.serve(sockets=[self._listener])
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await self._college.close()
        if self._failure is not None:
            raise self._failure

    def _helper(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what the college cannot do without: it ends with the error of one that fails."""

        def ended(task: asyncio.Task[None]) -> None:
            failure = None if task.cancelled() else task.exception()
            if isinstance(failure, Exception) and self._failure is None:
                self._failure = failure
                self._uvicorn.should_exit = True

        task = asyncio.create_task(job)
        task.add_done_callback(ended)
        return task

    def stop(self, drain: bool) -> None:
        """End: with ``drain`` when the answers in progress are complete, else after a moment. The second call is final."""
        self._college.drain()
        self._server.draining = True
        if self._ending or not self._server.busy:
            self._uvicorn.should_exit = True
            return
        self._ending = True
        self._college.notices.append("it takes no more requests, and ends when its answers are complete")
        asyncio.get_running_loop().create_task(self._exit_when_done(None if drain else _DRAIN_S))

    async def _exit_when_done(self, within_s: float | None) -> None:
        deadline = None if within_s is None else time.monotonic() + within_s
        while self._server.busy and (deadline is None or time.monotonic() < deadline):
            await asyncio.sleep(0.02)
        self._uvicorn.should_exit = True

    async def _announce(self, folder: Path, on_ready: Callable[[str], None]) -> None:
        while not self._uvicorn.started:
            await asyncio.sleep(0.002)
        discovery.write_state(folder, self._state)
        on_ready(self._state.url)
        if self._options.prepare_api:
            await self._server.openai()
            if not self._resolver.routing.enabled:
                return
            await asyncio.to_thread(self._open_router)

    def _open_router(self) -> None:
        with contextlib.suppress(CoeError):  # where none is prepared, `auto` says so when it is asked for
            self._resolver.router.decide("warm up")

    async def _end_when_idle(self) -> None:
        keep_alive = self._options.keep_alive
        keep_alive_s = self._profile.keep_alive_s if keep_alive is None else parse_duration_s(keep_alive)
        if keep_alive_s is None:
            return
        while self._server.idle_s < keep_alive_s:
            await asyncio.sleep(max(0.05, keep_alive_s - self._server.idle_s))
        self.stop(False)

    async def _end_with_owner(self, pid: int) -> None:
        """End when the process that this college was started for has gone; answers that others wait for are completed."""
        owner = pid_file.identity_of(pid)
        while owner is not None and owner.runs:
            await asyncio.sleep(_OWNER_EVERY_S)
        self.stop(True)

    async def _show(self, observer: Observer) -> None:
        async for status in self._server.statuses(_VIEW_EVERY_S):
            observer(status)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        if sys.platform == "win32":
            on_interrupt(lambda *_: loop.call_soon_threadsafe(self.stop, False))
        else:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.stop, False)


def _path(name: str | None) -> Path | None:
    return Path(name) if name else None


@contextlib.contextmanager
def _logging(folder: Path) -> Iterator[None]:
    """Access, prompts and failures of the server in one bounded file that only its owner can read."""
    path = folder / "serve.log"
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        path.chmod(0o600)
    handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8", delay=True)
    handler.rotator = _rotate_privately
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [ACCESS_LOG, PROMPT_LOG, logging.getLogger("uvicorn.error")]
    for logger in loggers:
        logger.setLevel(logging.INFO if logger is not loggers[-1] else logging.WARNING)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def _rotate_privately(source: str, target: str) -> None:
    move(Path(source), Path(target))
    with contextlib.suppress(OSError):
        os.close(os.open(source, os.O_CREAT | os.O_WRONLY, 0o600))


def main() -> None:
    """Run a detached college; its options are JSON in the first argument, its failure is JSON on stderr."""
    prepare_streams()
    try:
        options = msgspec.json.decode(sys.argv[1], type=ServeOptions)
        serve(options, lambda url: None)
    except AlreadyRunning:
        sys.exit(ExitCode.OK)
    except Exception as failure:
        error = explained(failure)
        with contextlib.suppress(OSError):  # the disk may be full
            if error is not failure:
                traceback.print_exc()
            sys.stderr.write(msgspec.json.encode(error.as_dict()).decode() + "\n")
        sys.exit(error.exit_code)
