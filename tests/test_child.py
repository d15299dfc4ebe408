"""Child processes that do heavy work: they say what went wrong, and never outlive their parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import eventually, is_gone

from coe_cli.errors import CoeError, DiskFull, OutOfMemory
from coe_cli.runtime.child import Message, run_child

MODULE = """
import os, signal, sys, time
from coe_cli.runtime.child import serve_as_child

def work(send):
    send({"pid": os.getpid()})
    if sys.argv[1] == "full":
        with open("/dev/full", "w") as file:
            file.write("x")
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "crash":
        raise ZeroDivisionError("by zero")
    time.sleep(600)

sys.exit(serve_as_child(work, "work"))
"""
PARENT = """
import sys
from coe_cli.runtime.child import run_child
run_child("some_work", ["sleep"], lambda message: print(message["pid"], flush=True), task="work")
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and /dev/full")


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_work.py").write_text(MODULE)
    paths = [str(tmp_path), str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("full", DiskFull, "the disk ran full during the work"),
        ("killed", OutOfMemory, "the work was ended"),
        ("crash", CoeError, "the work failed: ZeroDivisionError: by zero"),
    ],
)
def test_how_it_fails(how: str, kind: type[CoeError], says: str) -> None:
    heard: list[Message] = []
    with pytest.raises(kind, match=says):
        run_child("some_work", [how], heard.append, task="work")
    assert "pid" in heard[0]


def test_it_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.1)
    assert child.is_running()
    parent.kill()
    parent.wait()
    eventually(lambda: is_gone(child), within_s=10)
    parent.stdout.close()
