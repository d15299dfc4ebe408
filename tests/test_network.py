"""Local means local: an answer needs no network and tries none."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from conftest import ENDLESS, MODEL, Coe, read_some, worker_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces")
QUESTION = ("ask", "-m", MODEL, "The capital of France is")


def _without_network() -> list[str]:
    for options in (["-n"], ["-rn"]):
        if shutil.which("unshare") and subprocess.run(["unshare", *options, "true"]).returncode == 0:
            return ["unshare", *options]
    pytest.skip("needs the right to make a network namespace")


def test_it_answers_without_a_network(coe: Coe) -> None:
    result = coe.run(*QUESTION, prefix=_without_network())
    assert (result.code, result.stderr) == (0, "")
    assert "Paris" in result.stdout


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_no_process_of_it_tries_to_connect(coe: Coe) -> None:
    trace = coe.folder / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=execve,socket,connect,sendto,sendmsg,bind", "-o", str(trace)]
    result = coe.run(*QUESTION, prefix=[*_without_network(), *strace])
    if "PTRACE" in result.stderr or "ptrace" in result.stderr:
        pytest.skip("strace may not trace here")
    assert "Paris" in result.stdout
    calls = trace.read_text()
    assert calls.count("execve(") >= 2, "coe and its worker were traced"
    assert "AF_INET" not in calls


def test_telemetry_is_off_before_the_worker_starts(coe: Coe) -> None:
    process = coe.start("ask", "-m", MODEL, "--temperature", "0", ENDLESS)
    read_some(process.stdout)
    assert worker_of(process).environ()["ORT_DISABLE_TELEMETRY"] == "1"
