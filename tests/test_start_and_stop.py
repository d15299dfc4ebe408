"""A college that cannot announce itself ends with an error; `coe stop` ends whatever `coe serve` can start, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import Coe, eventually, is_gone, one_line
from operating_system import WINDOWS, make_link

from coe_cli.runtime.atomic_write import write_private
from coe_cli.runtime.client import remote
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college_events import CollegeEvent, Restarted
from coe_cli.runtime.server import college_client, discovery, pid_file, stopping
from coe_cli.runtime.server.discovery import CollegeState
from coe_cli.runtime.server.pid_file import ProcessIdentity
from coe_cli.runtime.server.serve_options import ServeOptions

_HOLD = """
import pathlib, sys
from coe_cli.runtime.server import discovery
lock = discovery.hold_college_lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def coe(quick_coe: Coe) -> Coe:
    return quick_coe


@pytest.fixture
def state(coe: Coe) -> Path:
    return discovery.private_folder(coe.folder / "state")


@contextlib.contextmanager
def lock_held(state: Path) -> Iterator[psutil.Process]:
    """Some process that holds the college's lock and says nothing."""
    command = [sys.executable, "-c", _HOLD, str(state)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline().strip() == b"held"
        yield psutil.Process(holder.pid)
        holder.kill()


def colleges(coe: Coe) -> list[psutil.Process]:
    """The colleges of this test that run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.environ().get("COE_STATE_DIR") == coe.environment["COE_STATE_DIR"]
            if ours and any("serve" in part for part in process.cmdline()) and not is_gone(process):
                found.append(process)
    return found


@pytest.mark.parametrize("foreground", [False, True], ids=["detached", "in the foreground"])
def test_a_college_that_cannot_write_its_state_ends_with_an_error(coe: Coe, state: Path, foreground: bool) -> None:
    (state / "college.json").mkdir()
    (state / "college.json" / "in the way").touch()
    result = coe.run("serve", *(["--foreground"] if foreground else []))
    assert result.code == 1 and result.stdout == ""
    assert "cannot announce itself" in result.stderr and "COE_STATE_DIR" in result.stderr
    assert "Traceback" not in result.stderr and "Errno" not in result.stderr
    assert colleges(coe) == [] and not discovery.college_lives(state)


@pytest.mark.skipif(WINDOWS, reason="limits of POSIX")
@pytest.mark.parametrize("foreground", [False, True], ids=["detached", "in the foreground"])
def test_a_full_disk_is_an_error_and_no_college(coe: Coe, foreground: bool) -> None:
    limited = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh"]
    result = coe.run("serve", *(["--foreground"] if foreground else []), prefix=limited)
    assert result.code == 1 and result.stdout == ""
    assert "COE_STATE_DIR" in result.stderr and "Traceback" not in result.stderr
    assert colleges(coe) == [] and not discovery.college_lives(coe.folder / "state")
    assert coe.run("stop").check().stderr == "coe: no college is running\n"


@pytest.mark.parametrize("lock", ["college.lock", "start.lock"])
def test_a_lock_that_cannot_be_one_is_said_in_a_line(coe: Coe, state: Path, lock: str) -> None:
    make_link(state / lock, state / lock)
    said = one_line(coe.run("serve").stderr)
    assert f"{lock} cannot be used" in said and "Errno" not in said
    if lock == "college.lock":
        stopped = coe.run("stop")
        assert stopped.code == 1 and "college.lock cannot be used" in one_line(stopped.stderr)


def test_the_time_to_start_begins_when_no_other_starts_one(coe: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another starter has kept its right almost as long as is waited for it, and failed."""
    waited_s = 0.0

    @contextlib.contextmanager
    def long_wait(folder: Path, timeout_s: float) -> Iterator[None]:
        nonlocal waited_s
        with starting(folder, timeout_s):
            waited_s += timeout_s
            yield

    starting = discovery.starting
    for name, value in coe.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(discovery, "starting", long_wait)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + waited_s, sleep=time.sleep)
    monkeypatch.setattr(college_client, "time", clock)
    with contextlib.closing(college_client.find_or_start()) as client:
        assert client.started
    assert coe.run("stop").check().stderr == "coe: the college has ended\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "module"), [(pid_file.STARTING, "sitecustomize"), (pid_file.COLLEGE, "uvicorn")], ids=["no lock", "a lock"]
)
def test_a_college_that_stands_still_as_it_starts_is_ended(coe: Coe, state: Path, name: str, module: str) -> None:
    """It sleeps where it imports ``module``, before its lock is taken or after."""
    shim = coe.folder / "shim"
    shim.mkdir()
    (shim / f"{module}.py").write_text(
        "import sys, time\nif any('serve_process' in argument for argument in sys.orig_argv): time.sleep(1000)\n"
    )
    path = os.pathsep.join([str(shim), coe.environment["PYTHONPATH"]])
    starting = coe.start("serve", environment={"PYTHONPATH": path})
    process = psutil.Process(eventually(lambda: pid_file.read(state / name)).pid)
    process.suspend()
    assert "was ended" in coe.run("stop").check().stderr
    eventually(lambda: is_gone(process) and not discovery.college_lives(state))
    _, errors = starting.communicate(timeout=200)
    assert starting.returncode != 0 and b"Make room" not in errors
    url = coe.run("serve").check().stdout
    assert url.startswith("http")
    assert coe.run("stop").check().stderr == "coe: the college has ended\n"


@pytest.mark.long
def test_one_that_has_lost_its_state_file_is_ended(coe: Coe, state: Path) -> None:
    coe.run("serve").check()
    process = psutil.Process(json.loads((state / "college.json").read_text())["pid"])
    (state / "college.json").unlink()
    assert "was ended" in coe.run("stop").check().stderr
    eventually(lambda: is_gone(process))


def test_one_that_ends_by_itself_is_let_end(coe: Coe, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a batch, whose own college has given up its lock while its process still ends."""
    for name, value in coe.environment.items():
        monkeypatch.setenv(name, value)
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as ending:
        pid_file.write(state / pid_file.STARTING, ending.pid)
        wait = college_client.wait_until_gone

        def then_wait(timeout_s: float | None = None) -> bool:
            ending.communicate()
            return wait(timeout_s)

        monkeypatch.setattr(stopping, "wait_until_gone", then_wait)
        said = stopping.stop_college(drain=False)
        ending.kill()
    assert (said, ending.returncode) == ("no college is running", 0)


def test_rows_whose_college_has_ended_go_on_with_the_next_one(
    coe: Coe, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They waited a minute for the end of the college that another row had started meanwhile."""
    for name, value in coe.environment.items():
        monkeypatch.setenv(name, value)
    ended, successor = (
        CollegeState(1, "127.0.0.1", 1, token, "1", 0.0, "embedded", "models") for token in ("first", "second")
    )

    class Connection(college_client.CollegeClient):
        def ask(self, request: ChatRequest, timeout_s: float | None = None) -> Iterator[CollegeEvent]:
            if self.state is ended:
                raise college_client.CollegeGone("it ended")
            yield Restarted("by the next one")

    connections = [Connection(ended), Connection(successor)]
    wait, gone = college_client.wait_until_gone, []
    monkeypatch.setattr(remote, "reach", lambda *_, **__: (connections.pop(0), ""))
    monkeypatch.setattr(remote, "wait_until_gone", lambda _, *which: gone.append(wait(0.0, *which)))
    client = remote.RemoteClient(ServeOptions(), pytest.fail, pytest.fail, leaves_college=False)
    discovery.write_state(state, successor)
    with lock_held(state):
        *_, last = client.ask(ChatRequest(messages=[], buffered=True))
        assert last == Restarted("by the next one")
        assert gone == [True]
        assert not wait(0.0, successor)


@pytest.mark.parametrize(
    ("platform", "code", "said"),
    [
        ("linux", -15, "the college was killed by signal 15 (SIGTERM) as it started"),
        ("win32", 15, "the college was ended from outside (code 15) as it started"),
        ("win32", 1, "the college ended with code 1 as it started and could not write why into"),
    ],
)
def test_a_college_that_is_killed_as_it_starts_lacks_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, code: int, said: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert college_client._why_not(tmp_path, code).message.startswith(said)


@pytest.mark.slow
def test_in_the_foreground_too(coe: Coe, state: Path) -> None:
    process = coe.start("serve", "--foreground")
    eventually(lambda: (state / "college.json").exists())
    psutil.Process(process.pid).suspend()
    assert "was ended" in coe.run("stop").check().stderr
    assert process.wait(timeout=200) is not None


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(pid_file.STARTING, marks=pytest.mark.slow), pid_file.COLLEGE])
def test_a_process_that_got_the_id_of_a_college_is_left_alone(coe: Coe, state: Path, name: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as other:
        try:
            identity = pid_file.identity_of(other.pid)
            assert identity is not None
            earlier = ProcessIdentity(other.pid, str(float(identity.started) - 1))
            write_private(state / name, json.dumps({"pid": other.pid, "started": earlier.started}).encode())
            assert coe.run("stop").check().stderr == "coe: no college is running\n"
            with lock_held(state) as holder:
                result = coe.run("stop")
                assert result.code == 1 and "does not know" in one_line(result.stderr)
                assert not is_gone(holder)
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.parametrize("content", [b"", b"{}", b"7", b'{"pid": 0, "started": "1"}', b'{"pid": -1, "started": "1"}'])
def test_a_broken_pid_file_names_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "college.pid").write_bytes(content)
    assert pid_file.read(tmp_path / "college.pid") is None
