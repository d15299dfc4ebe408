"""Nothing is silent: what takes longer than a second says on stderr what it waits for, on a terminal and in a pipe."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from conftest import MODEL, Coe, eventually

from coe_cli.app import run
from coe_cli.core.models.source_uri import HubSource
from coe_cli.core.notes import Note
from coe_cli.output.console import Output, Wait
from coe_cli.runtime.store import hub, source_errors
from coe_cli.runtime.store.hub import list_files
from coe_cli.runtime.store.source_errors import SourceFailed
from coe_cli.use_cases.providing import Preparing

STARTS = "the college is starting, or choosing who answers"
WAITS = {
    "doctor": "looking at this machine",
    "fit": "looking for graphics cards",
    "profile check embedded": "looking for graphics cards",
    "setup --dry-run": "looking for graphics cards",
    f"models pull {MODEL}": "looking for graphics cards",
    "models import hf:owner/repo": "asking what hf:owner/repo has",
    "models pull Qwen2.5-Math-7B-DML -p embedded": "asking the hub for the licence of Qwen2.5-Math-7B-DML",
    f"models rm {MODEL} --force": f"looking who uses {MODEL}",
    "ps": "asking the college",
    "stop": "waiting for the college to end",
    "stop --drain": "waiting for its answers to end",
    "route Hi --no-pull": "loading the router",
    f"ask -m {MODEL} --max-tokens 1 Hi": STARTS,
    f"ask -m {MODEL} --max-tokens 1 -x Hi": "loading the model",
    f"chat -m {MODEL} --max-tokens 1": "waiting for the college",
    "batch --max-tokens 1 -": "preparing the rows, and loading the first model",
}
"""Command lines whose waits have a name; with no patience at all it is said at once."""


@pytest.mark.parametrize("line", WAITS)
def test_a_wait_is_said(quick_coe: Coe, line: str) -> None:
    quick_coe.environment |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    rows = f'{{"prompt": "Hi", "model": "{MODEL}"}}\n' if line.startswith("batch") else "Hi\n" * ("chat" in line)
    assert f"coe: {WAITS[line]}\n" in quick_coe.run(*line.split(), stdin=rows, COE_PATIENCE_S="0").stderr


@pytest.mark.parametrize("line", ["ps", "setup --dry-run"])
def test_no_wait_is_said_before_its_time(quick_coe: Coe, line: str) -> None:
    assert WAITS[line] not in quick_coe.run(*line.split(), COE_PATIENCE_S="3600").stderr


@pytest.mark.parametrize("options", [("-q",), ("--format", "json"), ("--format", "jsonl"), ("--format", "quiet")])
def test_who_wants_the_answer_alone_is_told_of_no_wait(quick_coe: Coe, options: tuple[str, ...]) -> None:
    result = quick_coe.run("ask", "-m", MODEL, "--max-tokens", "1", *options, "Hi", COE_PATIENCE_S="0").check()
    assert result.stderr == ""


def test_a_wait_is_said_once_where_something_is_prepared_in_between(quick_coe: Coe) -> None:
    quick_coe.environment |= {"COE_NO_ROUTE": "0", "HF_HOME": str(quick_coe.folder), "HF_HUB_OFFLINE": "1"}
    quick_coe.environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    said = quick_coe.run("ask", "--max-tokens", "1", "--fallback", "Hi", COE_PATIENCE_S="0").check().stderr.splitlines()
    waits = [f"coe: {wait}" for wait in (STARTS, "preparing to route questions, once", "waiting for the college")]
    assert [line for line in said if line in waits] == waits


@pytest.fixture
def silent() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that takes connections and says nothing: its address, and the connections."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
    for connection in taken:
        connection.close()


def test_a_hub_that_says_nothing_is_waited_for_once(
    silent: tuple[str, list[socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, taken = silent
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "ANSWER_S", 1.5)
    monkeypatch.setattr(source_errors, "_silent_since", {})  # the next server may have this one's port
    for repo in ("one/one", "two/two", "three/three"):
        with pytest.raises(SourceFailed, match=r"did not answer within 1\.5 s"):
            list_files(HubSource(repo, None, None))
    assert len(eventually(lambda: taken)) == 1


@pytest.mark.slow
def test_without_a_network_a_quiet_question_fails_within_reason(
    bare_coe: Coe, silent: tuple[str, list[socket.socket]]
) -> None:
    """Hub and index take connections and say nothing; both are wanted twice."""
    address, taken = silent
    for name in ("HF_HUB_OFFLINE", "PIP_NO_INDEX"):
        del bare_coe.environment[name]
    bare_coe.environment |= {"HF_ENDPOINT": address, "PIP_INDEX_URL": f"{address}/simple/", "NO_PROXY": "127.0.0.1"}
    bare_coe.environment |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": "", "COE_NO_ROUTE": "0"}
    result = bare_coe.run("ask", "-q", "What is a deadlock?", COE_PATIENCE_S="0")
    assert (result.code, result.stdout) == (4, "")
    assert result.stderr.startswith("coe: model `smollm2-135m` could not be fetched: ")
    assert "did not answer within 15 s" in result.stderr and "Check the network" in result.stderr
    assert len(taken) <= 4


def test_a_line_for_a_program_leaves_the_waits_of_the_next_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", "list", "--format", "json"]) == 0
    json.loads(capsys.readouterr().out)
    assert Wait.is_told


def test_no_wait_is_said_into_the_bar_of_what_is_prepared() -> None:
    before = set(threading.enumerate())
    view = Preparing(Output(), waiting="loading the router")
    (timer,) = (thread for thread in set(threading.enumerate()) - before if isinstance(thread, threading.Timer))
    view(Note("progress", "fetching the embedder"))
    timer.join(200)
    assert not timer.is_alive()
    view.close()
