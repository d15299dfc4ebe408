"""In a venv on Windows `python.exe` starts the interpreter as a child: coe means that one, and ends both."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from conftest import eventually, is_gone

from coe_cli.package import python_path
from coe_cli.runtime.job_object import end_with_us
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.worker_process import WorkerProcess

WORKER = """
import os, sys, threading, time
from coe_cli.runtime.worker import protocol
protocol.write(sys.stdout.buffer, protocol.Hello(protocol.PROTOCOL_VERSION, "launched", os.getpid()))
time.sleep(600)  # and does not see that its channel is closed
"""
LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"


@pytest.fixture(autouse=True)
def this_coe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path())


def test_the_worker_behind_a_launcher_is_meant_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not whatever has its id by then: psutil kills the process that had the id when it said who it is."""
    real, killed = psutil.Process.kill, []
    monkeypatch.setattr(psutil.Process, "kill", lambda process: (killed.append(process), real(process)))
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    worker = WorkerProcess([sys.executable, "-c", LAUNCHER, str(script)])
    try:
        hello = worker.receive(60)
        assert isinstance(hello, protocol.Hello)
        assert worker.pid == hello.pid
        process = psutil.Process(worker.pid)
        assert process.ppid() != psutil.Process().pid
    finally:
        worker.kill()
    eventually(lambda: is_gone(process))
    assert killed == [process]


@pytest.mark.skipif(sys.platform != "win32", reason="job objects")
def test_what_is_in_the_job_ends_with_its_owner(tmp_path: Path) -> None:
    owner = textwrap.dedent(
        """
        import subprocess, sys, time
        from coe_cli.package import python_path
        from coe_cli.runtime.job_object import end_with_us
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(end_with_us(child.pid), child.pid, flush=True)
        time.sleep(600)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    put_in, pid = process.stdout.readline().split()
    assert put_in == "True"
    child = psutil.Process(int(pid))
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: is_gone(child))


@pytest.mark.skipif(sys.platform == "win32", reason="job objects")
def test_there_are_no_jobs_elsewhere() -> None:
    assert end_with_us(1) is False
