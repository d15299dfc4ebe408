"""The caller's end of a worker that dies at a bad moment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
from conftest import eventually

from coe_cli.errors import DeviceLost
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_process import WorkerProcess

LAST_WORDS = """
import sys
from coe_cli.runtime.worker import protocol
protocol.write(sys.stdout.buffer, protocol.Failed("device_lost", "DLL load failed", "Install it again."))
"""


@pytest.fixture
def start() -> Iterator[Callable[[str], WorkerProcess]]:
    started: list[WorkerProcess] = []

    def start_(script: str) -> WorkerProcess:
        started.append(WorkerProcess([sys.executable, "-c", script]))
        eventually(lambda: not started[-1].alive)
        return started[-1]

    yield start_
    for worker in started:
        worker.kill()


def test_what_it_said_before_it_ended_is_heard_by_a_caller_who_was_slow(start: Callable[[str], WorkerProcess]) -> None:
    worker = start(LAST_WORDS)
    worker.send(protocol.Cancel(1))
    message = worker.receive(60)
    assert isinstance(message, protocol.Failed) and message.message == "DLL load failed"


def test_a_worker_that_is_gone_is_gone_each_time_it_is_asked(start: Callable[[str], WorkerProcess]) -> None:
    worker = start("raise SystemExit(3)")
    for _ in range(2):
        worker.send(protocol.Cancel(1))
        with pytest.raises(DeviceLost, match="ended with code 3"):
            worker.receive(60)
