"""The port of a college: its alone, and waited for where the one that has just ended still holds it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Coe
from serving import free_port, serving

from coe_cli.errors import UsageError
from coe_cli.runtime.server import listening
from coe_cli.runtime.server.listening import bound_socket, just_ended, note_ended

HOST = "127.0.0.1"


@pytest.fixture
def holder() -> Iterator[socket.socket]:
    """Somebody who listens on a port."""
    with socket.socket() as it:
        it.bind((HOST, 0))
        it.listen()
        yield it


def port_of(holder: socket.socket) -> int:
    return int(holder.getsockname()[1])


def has_sleep(monkeypatch: pytest.MonkeyPatch, sleep: Callable[[float], None]) -> None:
    """Of this module alone: other threads of the process sleep as well."""
    monkeypatch.setattr(listening, "time", SimpleNamespace(sleep=sleep))


def test_the_port_of_the_college_that_just_ended_is_waited_for(
    holder: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, waits = port_of(holder), iter([lambda: None, lambda: None, holder.close])
    has_sleep(monkeypatch, lambda seconds: next(waits)())
    with bound_socket(HOST, port, port) as listener:
        assert port_of(listener) == port and not list(waits)


def test_it_is_not_waited_for_for_ever(holder: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    has_sleep(monkeypatch, waited.append)
    with pytest.raises(UsageError, match="cannot be used"), bound_socket(HOST, port_of(holder), port_of(holder)):
        pass
    assert 1 < sum(waited) < 10


@pytest.mark.parametrize("ended", [None, 1])
def test_the_port_of_somebody_else_is_refused_at_once(
    holder: socket.socket, ended: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_sleep(monkeypatch, lambda seconds: pytest.fail("it waits"))
    with pytest.raises(UsageError, match="cannot be used"), bound_socket(HOST, port_of(holder), ended):
        pass


def test_a_college_tells_the_next_one_its_port(quick_coe: Coe) -> None:
    state = quick_coe.folder / "state"
    with serving(quick_coe, "--port", str(free_port())) as served:
        assert just_ended(state) == served.port, "one that is killed leaves its state file"
        quick_coe.run("stop").check()
        assert just_ended(state) == served.port
        with serving(quick_coe, "--port", str(served.port)) as again:
            assert again.port == served.port


def test_a_college_that_ended_long_ago_holds_no_port(tmp_path: Path) -> None:
    assert just_ended(tmp_path) is None
    note_ended(tmp_path, 8080)
    assert just_ended(tmp_path) == 8080
    os.utime(tmp_path / "college.port", (1_000_000_000, 1_000_000_000))
    assert just_ended(tmp_path) is None
