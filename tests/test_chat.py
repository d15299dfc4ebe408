"""`coe chat` on the real model: in a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ENDLESS, MODEL, Coe, copy_model, eventually, is_gone, one_line, workers_of
from model_store.saying_model import write_saying_model

GREEDY = ("chat", "-m", MODEL, "--temperature", "0", "--max-tokens", "12")


def _conversations(coe: Coe) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(coe.run("logs", "list", "--format", "json").check().stdout)[
        "conversations"
    ]
    return found


def _messages(coe: Coe, number: str = "") -> list[dict[str, object]]:
    arguments = ["logs", "show", *([number] if number else []), "--format", "json"]
    found: list[dict[str, object]] = json.loads(coe.run(*arguments).check().stdout)["conversation"]["messages"]
    return found


# --- in a pipe


def test_lines_of_a_pipe_are_one_conversation(coe: Coe) -> None:
    result = coe.run(*GREEDY, stdin="The capital of France is\nAnd of \\\nItaly?\n/stats\n").check()
    assert result.stdout.strip()
    assert "turns 2" in result.stderr
    reused = next(line for line in result.stderr.splitlines() if "from the cache" in line)
    assert int(reused.split("from the cache ")[1].split()[0]) > 10, "the second turn found the first one's tokens"
    (row,) = _conversations(coe)
    assert row["questions"] == 2
    messages = [message for message in _messages(coe) if message["role"] != "system"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[2]["content"] == "And of \nItaly?"
    assert "".join(f"{message['content']}\n" for message in messages[1::2]) == result.stdout
    assert messages[3]["model"] == MODEL and messages[3]["completion_tokens"]
    again = coe.run("chat", "-c", "--temperature", "0", "--max-tokens", "12", stdin="/stats\nThanks.\n/stats\n").check()
    (row,) = _conversations(coe)
    assert row["questions"] == 3, "-c goes on with it"
    assert "turns 0" in again.stderr and "turns 1" in again.stderr


@pytest.mark.long
def test_the_second_answer_is_that_of_a_fresh_run(coe: Coe) -> None:
    turns = coe.run(*GREEDY, "--no-log", stdin="Name a colour.\nName another one.\n").check().stdout.splitlines()
    assert len(turns) >= 2
    coe.run(*GREEDY, stdin="Name a colour.\n").check()
    second = coe.run("chat", "-c", "--temperature", "0", "--max-tokens", "12", stdin="Name another one.\n").check()
    assert second.stdout.splitlines() == turns[-len(second.stdout.splitlines()) :]


def test_commands(quick_coe: Coe) -> None:
    script = (
        '/system Answer in one word.\n/system\nHello\n/clear\n"""\nHello\nagain"""\n/expert\n/help\n/exit\nnot read\n'
    )
    result = quick_coe.run(*GREEDY, stdin=script).check()
    assert result.stderr.count("system prompt: Answer in one word.") == 2
    assert f"expert: none, model: {MODEL}" in result.stderr
    for name in ("/expert", "/model", "/system", "/clear", "/stats", "/help", "/exit"):
        assert name in result.stderr
    newest, oldest = _conversations(quick_coe)
    assert (oldest["title"], newest["title"]) == ("Hello", "Hello again")
    contents = [message["content"] for message in _messages(quick_coe, str(newest["id"]))]
    assert contents[:2] == ["Answer in one word.", "Hello\nagain"]


def test_another_model_and_expert(quick_coe: Coe) -> None:
    copy_model(quick_coe.models / MODEL, quick_coe.models / "second")
    script = "Hello\n/model second\nHello again\n/expert math_expert\nAnd again\n"
    result = quick_coe.run(*GREEDY, stdin=script).check()
    assert "expert: none, model: second" in result.stderr
    assert "expert: math_expert, model: " in result.stderr
    answers = [message for message in _messages(quick_coe) if message["role"] == "assistant"]
    assert [answer["model"] for answer in answers][:2] == [MODEL, "second"]
    assert answers[2]["expert"] == "math_expert"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("/stat\n", "`stats`"),
        ("/model nothing\n", "nothing"),
        ("/expert nothing\n", "nothing"),
        ("x " * 9000, "tokens"),
    ],
)
def test_an_error_in_a_pipe_ends_it(quick_coe: Coe, script: str, said: str) -> None:
    result = quick_coe.run(*GREEDY, stdin=script)
    assert result.code in (2, 4)
    assert said in one_line(result.stderr)
    assert result.stdout == ""


def test_nothing_to_continue(quick_coe: Coe) -> None:
    result = quick_coe.run("chat", "-c", stdin="Hi\n")
    assert result.code == 2
    assert "no conversation to continue" in one_line(result.stderr)


def test_nothing_is_kept_when_it_is_off(quick_coe: Coe) -> None:
    quick_coe.run(*GREEDY, "--no-log", stdin="Hi\n").check()
    quick_coe.run(*GREEDY, stdin="Hi\n", COE_NO_LOG="1").check()
    own = quick_coe.config / "hardware_profiles.yaml"
    own.write_text("history: {enabled: false}\n")
    quick_coe.run(*GREEDY, stdin="Hi\n").check()
    own.unlink()
    # Measurements of memory are kept there, and say nothing of what was asked.
    kept = [path.name for path in (quick_coe.folder / "state").rglob("*") if path.is_file()]
    assert set(kept) <= {"calibration.jsonl"}


def test_an_empty_pipe(quick_coe: Coe) -> None:
    result = quick_coe.run(*GREEDY, stdin="\n  \n").check()
    assert (result.stdout, result.stderr) == ("", "")


# --- on a terminal


class Terminal:
    """coe chat under a pseudo terminal."""

    def __init__(self, coe: Coe, *arguments: str) -> None:
        import pty

        self.controller, terminal = pty.openpty()
        self.process: subprocess.Popen[bytes] = coe.start(
            *arguments, stdin=terminal, stdout=terminal, stderr=terminal, environment={"TERM": "xterm"}
        )
        os.close(terminal)
        self.text = ""

    def wait_for(self, part: str, within_s: float = 200) -> str:
        """What came up to and with ``part``."""
        deadline = time.monotonic() + within_s
        while part not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.controller], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.controller, 4096).decode("utf-8", "replace")
                except OSError:
                    break
        assert part in self.text, self.text
        before, _, self.text = self.text.partition(part)
        return before + part

    def type(self, text: str) -> None:
        os.write(self.controller, text.encode())


def _wait_until_idle(pid: int) -> None:
    """Wait until a process waits itself: one that only waits for a processor has another status."""
    process = psutil.Process(pid)
    looks: list[object] = []
    while len(looks) < 4 or len(set(looks[-4:])) > 1:
        looks = [*looks, process.cpu_times()] if process.status() == psutil.STATUS_SLEEPING else []
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_on_a_terminal(coe: Coe) -> None:
    chat = Terminal(coe, "chat", "-m", MODEL, "--temperature", "0")
    chat.wait_for("Ctrl-D leaves.")
    chat.wait_for("> ")
    chat.type(f"{ENDLESS}\n")
    chat.wait_for("loading")
    chat.wait_for("tokens/s")
    worker = workers_of(psutil.Process(chat.process.pid))[0]
    os.kill(chat.process.pid, signal.SIGINT)
    chat.wait_for("coe: stopped")
    chat.wait_for("> ")
    chat.type("half a li")
    chat.wait_for("half a li")
    _wait_until_idle(
        chat.process.pid
    )  # a signal between its read and its select is seen by readline at the next key only
    os.kill(chat.process.pid, signal.SIGINT)
    chat.wait_for("> ")
    chat.type("/stats\n")
    chat.wait_for("turns 1")
    chat.wait_for("> ")
    chat.type("/nonsense\n")
    chat.wait_for("there is no command /nonsense")
    chat.wait_for("> ")
    assert workers_of(psutil.Process(chat.process.pid)) == [worker], "Ctrl-C kept the model"
    chat.type("\x04")
    chat.process.wait(timeout=200)
    os.close(chat.controller)
    assert chat.process.returncode == 0
    eventually(lambda: is_gone(worker))
    (_, question, answer) = _messages(coe)
    assert question["content"] == ENDLESS
    assert answer["finish_reason"] == "cancelled" and answer["content"]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
@pytest.mark.parametrize("raw", [False, pytest.param(True, marks=pytest.mark.long)])
def test_an_answer_is_markdown_on_a_terminal_alone(bare_coe: Coe, raw: bool) -> None:
    write_saying_model(bare_coe.models / "md", ["**cer", "tainly** ", "not", " so"])
    chat = Terminal(bare_coe, "chat", "-m", "md", "--no-log", *(["--raw"] if raw else []))
    chat.wait_for("> ")
    chat.type("Hi\n/exit\n")
    shown = ""
    with contextlib.suppress(OSError):  # Linux ends a terminal that nobody writes to with EIO
        while part := os.read(chat.controller, 4096):
            shown += part.decode()
    os.close(chat.controller)
    assert chat.process.wait(timeout=200) == 0
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert ("**certainly** not so" in written) is raw and "certainly" in written
    assert bare_coe.run("chat", "-m", "md", "--no-log", stdin="Hi\n").check().stdout == "**certainly** not so\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_pasted_lines_are_one_question_and_a_full_context_says_what_empties_it(bare_coe: Coe) -> None:
    if "libedit" in (pytest.importorskip("readline").__doc__ or ""):
        pytest.skip("libedit does not know a paste")
    write_saying_model(bare_coe.models / "md", ["yes", " no"])
    chat = Terminal(bare_coe, "chat", "-m", "md")
    chat.wait_for("> ")
    chat.type("\x1b[200~one\ntwo\x1b[201~")
    chat.wait_for("two")
    chat.type("\n")
    chat.wait_for("yes no")
    chat.wait_for("> ")
    chat.type("long " * 600 + "\n")
    chat.wait_for("/clear forgets what was said")
    chat.wait_for("> ")
    chat.type("\x04")
    chat.process.wait(timeout=200)
    os.close(chat.controller)
    assert [message["content"] for message in _messages(bare_coe)][-2:] == ["one\ntwo", "yes no"]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_lines_are_remembered_for_the_next_session(quick_coe: Coe) -> None:
    pytest.importorskip("readline")
    chat = Terminal(quick_coe, "chat", "-m", MODEL)
    chat.wait_for("> ")
    chat.type("/system Be kind.\n")
    chat.wait_for("system prompt: Be kind.")
    chat.wait_for("> ")  # before it, the terminal is not readline's yet, and the end of the input would be lost
    chat.type("\x04")
    chat.process.wait(timeout=200)
    os.close(chat.controller)
    lines: Path = quick_coe.folder / "state" / "chat_lines"
    assert "/system Be kind." in lines.read_text()
    assert lines.stat().st_mode & 0o077 == 0
    chat = Terminal(quick_coe, "chat", "-m", MODEL)
    chat.wait_for("> ")
    chat.type("\x1b[A")
    chat.wait_for("/system Be kind.")
    chat.type("\n")
    chat.wait_for("system prompt: Be kind.")
    chat.type("/exit\n")
    chat.process.wait(timeout=200)
    os.close(chat.controller)
