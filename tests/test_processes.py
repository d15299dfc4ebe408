"""Interrupts, deaths and closed pipes: what ends, how, and that no process is left."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap

import psutil
import pytest
from conftest import ENDLESS, MODEL, REPOSITORY, Coe, command_of, eventually, is_gone, one_line, read_some, worker_of
from operating_system import SYSTEM_ENDED_IT, WINDOWS, interrupt, kill

of_a_shell = pytest.mark.skipif(WINDOWS, reason="typed into a POSIX shell")

LONG = ("ask", "-m", MODEL, "--temperature", "0", ENDLESS)
"""An answer that takes tens of seconds."""


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "conhost.exe" not in command_of(child)]


def _interrupt(process: subprocess.Popen[bytes]) -> str:
    """Ctrl-C to coe and its children, as a terminal sends it; returns what was said on stderr."""
    children = _children(process)
    interrupt(process)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    eventually(lambda: all(is_gone(child) for child in children))
    assert b"Traceback" not in errors
    return errors.decode()


def _loading(worker: psutil.Process) -> bool:
    return any("onnxruntime" in item.path for item in worker.memory_maps())


def _prefilling(coe: Coe) -> subprocess.Popen[bytes]:
    """An answer whose prompt is read for seconds; it comes from a file, since a command line of Windows holds less."""
    question = coe.folder / "question.txt"
    question.write_text("one two three four five six seven " * 1000)
    with question.open("rb") as file:
        return coe.start("ask", "-m", MODEL, "-p", "standard", stdin=file)


def _has_lost_gil_to_prefill(worker: psutil.Process) -> bool:
    return worker.cpu_times().user > 2.5


def test_ctrl_c_in_mid_answer(coe: Coe) -> None:
    process = coe.start(*LONG)
    read_some(process.stdout, 20)
    assert _interrupt(process) == ""


def test_ctrl_c_while_the_worker_starts(coe: Coe) -> None:
    process = coe.start(*LONG)
    worker_of(process)
    _interrupt(process)


def test_ctrl_c_while_the_model_loads(coe: Coe) -> None:
    process = coe.start(*LONG)
    worker = worker_of(process)
    eventually(lambda: _loading(worker))
    assert _interrupt(process) == ""


@pytest.mark.long
def test_ctrl_c_during_a_long_prefill(coe: Coe) -> None:
    process = _prefilling(coe)
    worker = worker_of(process)
    eventually(lambda: _has_lost_gil_to_prefill(worker))
    assert _interrupt(process) == ""


@pytest.mark.long
@pytest.mark.parametrize("moment", ["subprocess.Popen.__init__", "worker_process.take", "asking.sink_for"])
def test_ctrl_c_between_two_owners_of_the_worker(coe: Coe, moment: str) -> None:
    """The worker is stopped, so that it ends only if coe ends it, not by seeing that coe is gone."""
    place, name = moment.rsplit(".", 1)
    script = coe.folder / "interrupted.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal, subprocess, sys
        import psutil
        from coe_cli.__main__ import main
        from coe_cli.use_cases import asking
        from coe_cli.runtime.worker import worker_process

        real = {moment}

        def interrupted(*arguments, **named):
            result = real(*arguments, **named)
            for worker in psutil.Process().children():
                worker.suspend()
                with open("worker.pid", "w") as file:
                    file.write(f"{{worker.pid}} {{worker.create_time()}}")
                signal.raise_signal(signal.SIGINT)
            return result

        {place}.{name} = interrupted
        main()
        """)
    )
    result = coe.run(command=[sys.executable, str(script), *LONG])
    pid, started = (coe.folder / "worker.pid").read_text().split()
    left = []
    with contextlib.suppress(psutil.Error, OSError):  # its id may be another's by now
        left = [process for process in [psutil.Process(int(pid))] if str(process.create_time()) == started]
    for process in left:
        kill(process.pid)
    assert (result.code, result.stdout, result.stderr, left) == (130, "", "", [])


@pytest.mark.long
def test_ctrl_c_while_a_fleet_is_simulated(coe: Coe) -> None:
    """OR-Tools has run in the process before, and the simulation has processes of its own."""
    pytest.importorskip("ortools")
    file = coe.folder / "FLEET.yaml"
    file.write_text(
        "nodes: [{name: desk, profile: standard, count: 3}]\n"
        "demand: {sql_query: {requests_per_s: 0.2, tokens_in: 300, tokens_out: 80}}\n"
        "rates: {default: {prefill_tokens_per_s: 1500, decode_tokens_per_s: 50}}\n"
        "simulation: {requests: 3000000}\n"
    )
    process = coe.start("vram", "plan", "--fleet", str(file))
    said = b""
    while b"simulating" not in said:
        said += read_some(process.stderr)
    eventually(lambda: len(_children(process)) >= 2 or process.poll() is not None)
    _interrupt(process)


def test_ctrl_c_while_onnxruntime_is_imported() -> None:
    """Its extension makes an ImportError of it, and coe would speak of a broken installation."""
    script = """
        import os, signal, sys
        class Interrupting:
            def find_spec(self, name, path=None, target=None):
                if name == "numpy":
                    signal.raise_signal(signal.SIGINT)
        sys.meta_path.insert(0, Interrupting())
        from coe_cli.runtime.onnxruntime_import import import_onnxruntime
        try:
            import_onnxruntime()
        except KeyboardInterrupt:
            print(hasattr(sys.modules["onnxruntime"], "InferenceSession"), os.environ["ORT_DISABLE_TELEMETRY"])
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert result.stdout == "True 1\n" and "Traceback" not in result.stderr


def test_ctrl_c_while_coe_imports_a_module_that_calls_exec(coe: Coe) -> None:
    """CPython ends by the signal itself, not with 130, when the interrupt came out of exec(), as in dataclasses."""
    shim = coe.folder / "shim"
    shim.mkdir()
    (shim / "platformdirs.py").write_text(
        "exec('import os, signal, time; signal.raise_signal(signal.SIGINT); time.sleep(9)')\n"
    )
    path = os.pathsep.join([str(shim), coe.environment["PYTHONPATH"]])
    result = coe.run("ask", "-m", MODEL, "Hi", PYTHONPATH=path)
    assert (result.code, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_c_that_some_library_swallows_still_counts(coe: Coe) -> None:
    """An interrupt may land in a callback of the interpreter, where an exception goes nowhere."""
    shim = coe.folder / "shim"
    shim.mkdir()
    (shim / "platformdirs.py").write_text(
        textwrap.dedent("""
        import os, signal, sys, time
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(9)
        except KeyboardInterrupt:
            pass
        sys.path = [p for p in sys.path if p != os.path.dirname(__file__)]
        del sys.modules["platformdirs"]
        import platformdirs
        """)
    )
    path = os.pathsep.join([str(shim), coe.environment["PYTHONPATH"]])
    result = coe.run("ask", "-m", MODEL, "Hi", PYTHONPATH=path)
    assert (result.code, result.stdout, result.stderr) == (130, "", "")


def test_worker_killed_in_mid_answer(coe: Coe) -> None:
    process = coe.start(*LONG)
    read_some(process.stdout, 20)
    worker_of(process).kill()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 7
    message = one_line(errors.decode())
    assert message.startswith(f"coe: the worker of `{MODEL}` {SYSTEM_ENDED_IT}")
    assert "Ask again" in message


@pytest.mark.parametrize("deadly", ["kill", pytest.param("terminate", marks=pytest.mark.long)])
def test_the_worker_ends_with_coe(coe: Coe, deadly: str) -> None:
    process = coe.start(*LONG)
    read_some(process.stdout, 20)
    worker = worker_of(process)
    getattr(process, deadly)()
    process.wait(timeout=200)
    eventually(lambda: is_gone(worker))


@pytest.mark.long
def test_the_worker_ends_with_coe_even_in_a_prefill(coe: Coe) -> None:
    process = _prefilling(coe)
    worker = worker_of(process)
    eventually(lambda: _has_lost_gil_to_prefill(worker))
    process.kill()
    process.wait(timeout=200)
    eventually(lambda: is_gone(worker))


@pytest.mark.parametrize("output_format", ["human", pytest.param("jsonl", marks=pytest.mark.long)])
def test_a_reader_that_leaves_ends_it_quietly(coe: Coe, output_format: str) -> None:
    process = coe.start(*LONG, "--format", output_format)
    assert process.stdout is not None
    read_some(process.stdout, 20)
    worker = worker_of(process)
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, b"")
    eventually(lambda: is_gone(worker))


@of_a_shell
def test_a_reader_that_left_before_the_list_came(coe: Coe) -> None:
    script = '"$0" -m coe_cli models list --format csv | :; echo "${PIPESTATUS[0]}"'
    result = coe.run(command=["bash", "-c", script, sys.executable])
    assert (result.stdout, result.stderr) == ("0\n", "")


@pytest.mark.long
@of_a_shell
@pytest.mark.parametrize(
    ("closed", "shows"),
    [
        ("<&-", True),
        (">&-", False),
        ("2>&-", True),
        ("<&- >&- 2>&-", False),
    ],
)
def test_a_stream_that_was_closed_from_the_start_is_like_a_reader_that_left(coe: Coe, closed: str, shows: bool) -> None:
    ask = '"$0" -m coe_cli ask --no-log -m "$1" --max-tokens 3 "The capital of France is" ' + closed
    result = coe.run(command=["bash", "-c", ask, sys.executable, MODEL])
    assert (result.code, bool(result.stdout), result.stderr) == (0, shows, "")
    listed = coe.run(command=["bash", "-c", f'"$0" -m coe_cli models list {closed}', sys.executable])
    assert (listed.code, bool(listed.stdout), listed.stderr) == (0, shows, "")


@pytest.mark.long
def test_noise_of_native_code_does_not_reach_stdout(coe: Coe) -> None:
    """A module in front of the real OGA writes to file descriptor 1 when imported and all the time after that."""
    noisy = coe.folder / "noisy"
    noisy.mkdir()
    (noisy / "onnxruntime_genai.py").write_text(
        textwrap.dedent("""
        import os, sys, threading, time
        def shout():
            while True:
                os.write(1, b"GARBAGE" * 100)
                time.sleep(0.001)
        os.write(1, b"GARBAGE")
        threading.Thread(target=shout, daemon=True).start()
        sys.path = [p for p in sys.path if p != os.path.dirname(__file__)]
        del sys.modules["onnxruntime_genai"]
        import onnxruntime_genai
        """)
    )
    path = os.pathsep.join([str(noisy), coe.environment["PYTHONPATH"]])
    result = coe.run("ask", "-m", MODEL, "The capital of France is", PYTHONPATH=path, COE_DEBUG="1").check()
    assert "GARBAGE" in result.stderr, "the noise was there, and is shown to who asks for it"
    assert "Paris" in result.stdout
    assert "GARBAGE" not in result.stdout


def test_a_worker_that_cannot_import_oga_says_so(coe: Coe) -> None:
    coe.retry_soon()
    broken = coe.folder / "broken"
    broken.mkdir()
    (broken / "onnxruntime_genai.py").write_text("raise ImportError('DLL load failed')\n")
    path = os.pathsep.join([str(broken), coe.environment["PYTHONPATH"]])
    result = coe.run("ask", "-m", MODEL, "Hi", PYTHONPATH=path)
    assert result.code == 7
    assert "DLL load failed" in one_line(result.stderr)


def test_nothing_for_too_long_is_a_time_out(coe: Coe) -> None:
    question = "one two three four five " * 1200
    result = coe.run("ask", "-m", MODEL, "-p", "standard", "--timeout", "0.1", stdin=question)
    assert result.code == 8
    assert "--timeout" in one_line(result.stderr)


def test_a_worker_gets_huge_pages_beside_other_tunables(monkeypatch: pytest.MonkeyPatch) -> None:
    from coe_cli.runtime.worker.worker_process import worker_environment

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert worker_environment()["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert worker_environment()["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert worker_environment()["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"
