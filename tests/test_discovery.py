"""How processes find their college: the state file, its locks, starts at the same moment, stale files, sudden deaths."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import msgspec
import psutil
import pytest
from conftest import Coe, eventually, is_gone, workers_of
from serving import Served, end, serving

from coe_cli import __version__
from coe_cli.app import run
from coe_cli.errors import CoeError
from coe_cli.runtime.doctor.models import check_held_models
from coe_cli.runtime.server import discovery
from coe_cli.runtime.server.college_client import find
from coe_cli.runtime.server.discovery import CollegeState

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and signals")


@pytest.fixture
def coe(quick_coe: Coe) -> Coe:
    return quick_coe


def _state(**changes: object) -> CollegeState:
    state = CollegeState(
        pid=os.getpid(),
        host="127.0.0.1",
        port=1,
        token="t" * 43,
        version="1",
        started_at=0.0,
        profile="p",
        models_dir="m",
    )
    return msgspec.structs.replace(state, **changes)


def test_a_state_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    discovery.write_state(tmp_path, _state(port=4711))
    assert discovery.read_state(tmp_path) == _state(port=4711)
    assert [path.name for path in tmp_path.iterdir()] == ["college.json"]


@posix
def test_only_the_owner_may_read_the_state(tmp_path: Path) -> None:
    folder = discovery.private_folder(tmp_path / "state")
    discovery.write_state(folder, _state())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "college.json").stat().st_mode) == 0o600


@posix
def test_a_state_folder_that_others_could_read_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert stat.S_IMODE(discovery.private_folder(tmp_path).stat().st_mode) == 0o700


@posix
def test_a_state_file_that_others_could_have_read_is_not_trusted(tmp_path: Path) -> None:
    discovery.write_state(tmp_path, _state())
    (tmp_path / "college.json").chmod(0o644)
    assert discovery.read_state(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b"\xff\xfe", b'{"pid": "x"}', b"x" * 100_000])
def test_a_broken_state_file_is_no_state(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "college.json").write_bytes(content)
    (tmp_path / "college.json").chmod(0o600)
    assert discovery.read_state(tmp_path) is None


def test_a_state_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CoeError) as error:
        discovery.private_folder(tmp_path / "file" / "state")
    assert "COE_STATE_DIR" in error.value.hint


def test_the_college_lock_has_one_holder_and_is_free_when_it_ends(tmp_path: Path) -> None:
    assert not discovery.college_lives(tmp_path)
    code = (
        "import sys, pathlib; from coe_cli.runtime.server import discovery;"
        "lock = discovery.hold_college_lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdin is not None
    with holder:
        assert holder.stdout.readline().strip() == b"held"
        assert discovery.college_lives(tmp_path)
        assert discovery.hold_college_lock(tmp_path) is None
        holder.kill()
    assert not discovery.college_lives(tmp_path)


def test_the_proof_depends_on_token_and_nonce() -> None:
    assert discovery.proof("a", "n") == discovery.proof("a", "n")
    assert len({discovery.proof(*pair) for pair in (("a", "n"), ("b", "n"), ("a", "m"))}) == 3


def test_two_starts_at_the_same_moment_give_one_college(coe: Coe) -> None:
    starts = [coe.start("serve") for _ in range(4)]
    answers = [start.communicate(timeout=200) for start in starts]
    urls = {out.decode().strip() for out, _ in answers}
    assert [start.returncode for start in starts] == [0] * 4, answers
    assert len(urls) == 1
    served = Served(coe, urls.pop())
    try:
        assert served.request("GET", "/healthz").json["version"] == __version__
        colleges = [p for p in psutil.process_iter() if _serves(p, coe)]
        assert [p.pid for p in colleges] == [served.state["pid"]]
    finally:
        end(served.process)


def test_a_second_start_says_what_it_could_not_give(coe: Coe) -> None:
    with serving(coe) as served:
        plain = coe.run("serve").check()
        assert plain.stdout.strip() == served.url and "running already" in plain.stderr
        assert coe.run("serve", "--port", str(served.port)).check().stdout == plain.stdout
        ignored = coe.run("serve", "--keep-alive", "never", "--log-prompts").check()
        assert "--keep-alive, --log-prompts not applied: `coe stop` ends it" in ignored.stderr
        for options in (("--foreground",), ("--host", "::1"), ("--port", str(served.port + 1))):
            refused = coe.run("serve", *options)
            assert (refused.code, refused.stdout) == (2, "")
            assert f"at {served.url}. Use that one, or end it first: coe stop" in refused.stderr


def _serves(process: psutil.Process, coe: Coe) -> bool:
    try:
        return (
            any("serve_process" in part for part in process.cmdline())
            and process.environ().get("COE_STATE_DIR") == coe.environment["COE_STATE_DIR"]
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.Error, OSError):
        return False


def test_who_looks_at_the_lock_is_not_taken_for_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows who looks holds it for a moment."""
    holder = filelock.FileLock(tmp_path / "college.lock")
    monkeypatch.setattr(sys, "platform", "win32")
    with holder:
        assert discovery.college_lives(tmp_path)
    holder.acquire()
    monkeypatch.setattr(time, "sleep", lambda seconds: holder.release())
    assert not discovery.college_lives(tmp_path)


def test_a_stale_state_file_is_no_obstacle(coe: Coe) -> None:
    folder = discovery.private_folder(coe.folder / "state")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    discovery.write_state(folder, _state(port=port))
    assert "no college is running" in coe.run("ps").check().stderr
    with serving(coe) as served:
        assert served.port != port or served.state["token"] != "t" * 43


def test_a_stranger_on_the_port_is_not_taken_for_the_college(coe: Coe) -> None:
    """Something that answers HTTP there but does not know the token is never sent a question."""
    folder = discovery.private_folder(coe.folder / "state")
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        discovery.write_state(folder, _state(port=server.getsockname()[1]))

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(65_536))
                body = json.dumps({"status": "ok", "proof": "0" * 64}).encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

        thread = threading.Thread(target=answer)
        thread.start()
        assert "no college is running" in coe.run("ps").check().stderr
        thread.join()
    assert b"GET /healthz?nonce=" in heard[0] and b"t" * 43 not in heard[0]


@pytest.mark.long
def test_sigkill_of_the_college_leaves_no_worker_and_no_obstacle(coe: Coe) -> None:
    with serving(coe) as served:
        assert served.chat(max_tokens=2).status == 200
        process = served.process
        children = workers_of(process)
        psutil.Process(process.pid).kill()
        eventually(lambda: all(is_gone(p) for p in [process, *children]))
        assert "no college is running" in coe.run("ps").check().stderr
        with serving(coe) as again:
            assert again.chat(max_tokens=2).status == 200


@posix
def test_sigterm_ends_college_and_workers_and_takes_the_state_away(coe: Coe) -> None:
    with serving(coe) as served:
        assert served.chat(max_tokens=2).status == 200
        process = served.process
        workers = process.children()
        os.kill(process.pid, signal.SIGTERM)
        eventually(lambda: all(is_gone(p) for p in [process, *workers]))
        assert not (coe.folder / "state" / "college.json").exists()


def _announced(process: subprocess.Popen[bytes], coe: Coe) -> Served | None:
    """A college in the foreground once it can be asked; None if it has ended before."""
    eventually(lambda: process.poll() is not None or discovery.read_state(coe.folder / "state"))
    state = discovery.read_state(coe.folder / "state")
    return Served(coe, state.url) if state is not None else None


@pytest.mark.long
@pytest.mark.parametrize("by", ["the flag", "the profile"])
def test_a_college_ends_when_nobody_needs_it_although_somebody_looks_on(coe: Coe, by: str) -> None:
    if by == "the profile":
        (coe.config / "hardware_profiles.yaml").write_text("keep_alive: 1s\n")
    process = coe.start("serve", "--foreground", *(("--keep-alive", "1s") if by == "the flag" else ()))
    while (served := _announced(process, coe)) is not None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # it ends meanwhile
            served.request("GET", "/metrics")
    process.communicate(timeout=200)
    assert process.returncode == 0


@pytest.mark.long
def test_after_an_answer_a_college_ends_by_itself(coe: Coe) -> None:
    """It gets more time where a machine is too slow to ask anything of it within four seconds."""
    for keep_alive_s in (4, 16, 64):
        process = coe.start("serve", "--foreground", "--keep-alive", f"{keep_alive_s}s")
        served, answer = _announced(process, coe), None
        if served is not None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = served.chat(max_tokens=2)
        process.communicate(timeout=200 + keep_alive_s)
        assert process.returncode == 0
        if answer is not None:
            break
    assert answer is not None and answer.status == 200


@pytest.mark.slow
def test_a_client_that_was_silent_for_long_is_still_heard(coe: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COE_STATE_DIR", coe.environment["COE_STATE_DIR"])
    with serving(coe) as served:
        client = find()
        assert client is not None
        assert client.snapshot().pid == served.state["pid"]
        time.sleep(6)  # the server closes a silent connection after five seconds
        assert client.snapshot().pid == served.state["pid"]
        client.close()


@pytest.mark.long
def test_keep_alive_by_the_flag_goes_before_the_profile(coe: Coe) -> None:
    (coe.config / "hardware_profiles.yaml").write_text("keep_alive: 1s\n")
    with serving(coe) as kept:  # ten minutes by the flag
        time.sleep(2)
        assert kept.chat(max_tokens=2).status == 200


def test_why_a_college_did_not_start_is_said(coe: Coe) -> None:
    (coe.config / "hardware_profiles.yaml").write_text("profiles: 3\n")
    result = coe.run("serve")
    assert result.code == 3
    assert "hardware_profiles.yaml" in result.stderr and "Traceback" not in result.stderr


def test_an_address_that_is_taken_is_said(coe: Coe) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = coe.run("serve", "--port", str(taken.getsockname()[1]))
    assert result.code == 2
    assert "--port" in result.stderr


def test_another_address_needs_a_key(coe: Coe) -> None:
    result = coe.run("serve", "--host", "0.0.0.0")
    assert result.code == 2
    assert "API key" in result.stderr


@pytest.mark.parametrize("look", [["ps"], ["stop", "small"], None])
def test_a_college_that_says_nothing_is_not_called_none(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], look: list[str] | None
) -> None:
    monkeypatch.setattr("coe_cli.runtime.server.college_client._PING_TIMEOUT_S", 0.2)
    folder = discovery.private_folder(own_folders / "state")
    lock = discovery.hold_college_lock(folder)
    assert lock is not None
    with socket.create_server(("127.0.0.1", 0)) as mute, contextlib.ExitStack() as until_here:
        until_here.callback(lock.release)
        discovery.write_state(folder, _state(port=mute.getsockname()[1]))
        if look is None:
            (found,) = check_held_models(own_folders / "models")
            said = f"{found.message}. {found.fix}"
        else:
            assert run(look) == 8
            said = " ".join("".join(capsys.readouterr()).split())
    assert f"the college (process {os.getpid()}) does not answer. " in said and "coe stop" in said
