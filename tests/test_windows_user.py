"""coe as a user of Windows types it: a venv, `pip install -e .`, and each command with a pipe. Needs the embedded model."""

from __future__ import annotations

import codecs
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ENDLESS, MODEL, REPOSITORY, eventually, is_gone

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="Windows")

NO_WINDOW = 0x08000000  # CREATE_NO_WINDOW: a console of its own


@dataclass
class User:
    """Someone in a folder of theirs, with a venv in it."""

    folder: Path
    environment: dict[str, str]

    @property
    def scripts(self) -> Path:
        return self.folder / ".venv" / "Scripts"

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [str(self.scripts / "coe.exe"), *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **options)

    def coe(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> str:
        """What it prints, which is UTF-8 with plain line ends."""
        pipe = subprocess.PIPE
        process = self.start(*arguments, stdin=pipe, stdout=pipe, stderr=pipe)
        out, errors = process.communicate(stdin, timeout=200)
        assert process.returncode == code, errors.decode()
        assert b"\r" not in out
        return out.decode()


def _environment(folder: Path) -> dict[str, str]:
    """Of a Windows on which coe's folders are in ``folder``, and nothing of the tests' own Python."""
    system = {k: v for k, v in os.environ.items() if not k.startswith(("COE_", "PYTHON"))}
    return system | {f"COE_{name}_DIR": str(folder / name) for name in ("CONFIG", "STATE", "CACHE", "MODELS")}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[User]:
    folder = tmp_path_factory.mktemp("Jürgens Ordner")
    environment = _environment(folder) | {"COE_MODELS_DIR": str(models_dir)}
    patience = {"COE_PATIENCE_S": os.environ["COE_PATIENCE_S"]}  # no wait is told, however slow the lab is
    someone = User(folder, environment | patience | {"COE_NO_ROUTE": "1"})
    subprocess.run(
        [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", ".venv"], cwd=folder, check=True
    )
    install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-e", str(REPOSITORY)]
    subprocess.run([someone.scripts / "python.exe", *install], cwd=folder, env=environment, check=True)
    yield someone
    someone.coe("stop")


WHEELS = Path("/wheels")
"""What the package index gives Windows for the README's lines: the lab has it and no network."""


@pytest.mark.timeout(1500)
@pytest.mark.skipif(not WHEELS.is_dir(), reason="the Windows lab has the wheels")
def test_the_lines_of_the_readme(tmp_path: Path) -> None:
    """From a checkout to the first answer, each line as it stands."""
    checkout = tmp_path / "coe cli"
    shutil.copytree(REPOSITORY, checkout, ignore=shutil.ignore_patterns(MODEL, ".venv", "__pycache__"))
    shell = re.search(r"```powershell\n# demo\n(.*?)\n\n", (checkout / "README.md").read_text("utf-8"), re.DOTALL)
    assert shell is not None
    environment = _environment(tmp_path) | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS.resolve())}
    environment["PATH"] += os.pathsep + str(Path(sys.executable).parent)
    typed, said = tmp_path / "typed.cmd", b""
    try:
        for line in shell[1].splitlines():
            typed.write_text(f"@{line}\n", encoding="utf-8")
            done = subprocess.run(
                ["cmd", "/c", str(typed)], cwd=checkout, env=environment, capture_output=True, timeout=600
            )
            assert done.returncode == 0, (line, done.stdout.decode(), done.stderr.decode())
            said = done.stdout
    finally:
        if (coe := checkout / ".venv/Scripts/coe.exe").exists():
            subprocess.run([coe, "stop"], cwd=checkout, env=environment, check=False)
    assert "Paris" in said.decode()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["--version"], "coe "),
        (["--help"], "·"),
        (["models", "list"], MODEL),
        (["models", "show", MODEL], MODEL),
        (["profile", "list"], "minimal"),
        (["vram", "plan", "-p", "compact"], "headroom"),
        (["logs", "list"], ""),
        (["doctor"], "Windows"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_it_fills_a_pipe(user: User, command: list[str], says: str) -> None:
    if command == ["doctor"]:  # its exit code tells what is wrong with this machine
        out = subprocess.run([user.scripts / "coe.exe", *command], capture_output=True, env=user.environment).stdout
        assert says in out.decode()
        return
    assert says in user.coe(*command)


def test_a_question_by_the_readme(user: User) -> None:
    assert "Paris" in user.coe("ask", "-m", MODEL, "--temperature", "0", "What is the capital of France?")


def test_a_question_from_a_file_of_powershell(user: User) -> None:
    text = "What is the capital of France?\r\n".encode("utf-16")
    answer = json.loads(user.coe("ask", "-m", MODEL, "--temperature", "0", "--format", "json", stdin=text))
    assert "Paris" in answer["answer"]


def test_serve_ps_stop_and_a_killed_worker(user: User) -> None:
    assert user.coe("serve").startswith("http://127.0.0.1:")
    user.coe("ask", "-m", MODEL, "--max-tokens", "3", "Hi")
    college = json.loads(user.coe("ps", "--format", "json"))
    (model,) = college["models"]
    assert model["measured_mb"] > 100, "the launcher of the venv was measured"
    worker = psutil.Process(model["pid"])
    worker.kill()
    assert "Paris" in user.coe("ask", "-m", MODEL, "--temperature", "0", "What is the capital of France?")
    assert json.loads(user.coe("ps", "--format", "json"))["models"][0]["pid"] != model["pid"]
    process = psutil.Process(college["pid"])  # before its id may be another's
    user.coe("stop")
    eventually(lambda: is_gone(process))


def test_a_killed_college_takes_its_worker_along(user: User) -> None:
    user.coe("ask", "-m", MODEL, "--max-tokens", "3", "Hi")
    college = json.loads(user.coe("ps", "--format", "json"))
    worker = psutil.Process(college["models"][0]["pid"])
    psutil.Process(college["pid"]).kill()
    eventually(lambda: is_gone(worker))
    assert json.loads(user.coe("ps", "--format", "json"))["pid"] is None


def test_a_batch_with_a_bom_and_windows_line_ends(user: User) -> None:
    (user.folder / "Fragen für alle.jsonl").write_bytes(
        codecs.BOM_UTF8 + '{"prompt": "Grüße", "max_tokens": 3}\r\n{"prompt": "Hi", "max_tokens": 3}\r\n'.encode()
    )
    user.coe("batch", "Fragen für alle.jsonl", "-o", "Antworten für alle.jsonl", "-m", MODEL)
    rows = (user.folder / "Antworten für alle.jsonl").read_bytes().decode().splitlines()
    assert len(rows) == 2 and all("error" not in json.loads(row) or not json.loads(row)["error"] for row in rows)


def test_a_reader_that_leaves_is_no_error(user: User) -> None:
    process = user.start("ask", "-m", MODEL, "--no-serve", ENDLESS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(200), errors) == (0, b"")


def test_ctrl_c_stops_an_answer(user: User) -> None:
    driver = textwrap.dedent(
        """
        import os, signal, subprocess, sys, time
        process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.kill(0, signal.CTRL_C_EVENT)  # to all of this console
        out, errors = process.communicate(timeout=200)
        sys.stderr.buffer.write(errors)
        sys.exit(process.returncode)
        """
    )
    command = [str(user.scripts / "coe.exe"), "ask", "-m", MODEL, "--no-serve", "--temperature", "0", ENDLESS]
    done = subprocess.run(
        [sys.executable, "-c", driver, *command],
        capture_output=True,
        env=user.environment,
        creationflags=NO_WINDOW,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (130, b""), signal.SIGINT
