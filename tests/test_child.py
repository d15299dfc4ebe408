"""Child processes that do heavy work: they say what went wrong, and never outlive their parent."""

from __future__ import annotations

import json
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
import ctypes, errno, os, sys
from coe_cli.runtime.child import serve_as_child

def work(send):
    send({"pid": os.getpid()})
    import numpy  # its OpenBLAS asks what stdin is, while a thread waits for the parent's end
    send({"stdin": os.read(0, 1).decode()})
    if sys.argv[1] == "full":
        raise OSError(errno.ENOSPC, "no room")
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), 9)
    if sys.argv[1] == "crash":
        print("printed, not sent", flush=True)
        raise ZeroDivisionError("Teilung durch 0: ÷ → ∞")
    # PyDLL keeps the GIL, as a prefill does: no thread of the process sees anything meanwhile
    system = ctypes.PyDLL("kernel32" if sys.platform == "win32" else None)
    send({"asleep": 1})
    system.Sleep(600_000) if sys.platform == "win32" else system.sleep(600)

sys.exit(serve_as_child(work, "work"))
"""
PARENT = """
import json
from coe_cli.runtime.child import run_child
run_child("some_work", ["sleep"], lambda message: print(json.dumps(message), flush=True), task="work")
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_work.py").write_text(MODULE, encoding="utf-8")
    paths = [str(tmp_path), str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("full", DiskFull, "the disk ran full during the work"),
        ("killed", OutOfMemory, r"the work was (killed by signal 9|ended from outside \(code 9\))"),
        ("crash", CoeError, "the work failed: ZeroDivisionError: Teilung durch 0: ÷ → ∞"),
    ],
)
def test_how_it_fails(how: str, kind: type[CoeError], says: str) -> None:
    heard: list[Message] = []
    with pytest.raises(kind, match=says):
        run_child("some_work", [how], heard.append, task="work")
    assert [list(message) for message in heard] == [["pid"], ["stdin"]]


def test_it_ends_when_its_parent_is_killed_also_while_it_holds_the_gil() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    heard = [json.loads(parent.stdout.readline()) for _ in range(3)]
    child = psutil.Process(heard[0]["pid"])
    time.sleep(0.5)  # until it is in that call: on a slow machine it may not be, and ends by the pipe
    assert child.is_running()
    parent.kill()
    parent.wait()
    eventually(lambda: is_gone(child))
    parent.stdout.close()
