"""coe on a terminal: what its user sees while it runs, and what is left on the screen."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Sequence

import pytest
from conftest import ENDLESS, MODEL, Coe, Result

from coe_cli.app import SHORT_HELP

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

import fcntl
import pty
import termios

import pyte

WIDTH, HEIGHT = 100, 30


class Terminal:
    """A process whose controlling terminal is a pseudo-terminal, and the screen that its output draws.

    ``types`` has patterns and the keys that are typed when each, in this order, has been seen; ``interrupt_at`` is such a pattern
    for Ctrl-C: the terminal echoes it and signals coe and its workers. A signal sent from here could be faster than the
    terminal, which discards what coe wrote before it came to the key.
    """

    def __init__(
        self,
        coe: Coe,
        *arguments: str,
        stdout: int | None = None,
        interrupt_at: str | None = None,
        types: Sequence[tuple[str, str]] = (),
        size: tuple[int, int] = (WIDTH, HEIGHT),
        command: list[str] | None = None,
        **environment: str,
    ) -> None:
        self._size = width, height = size
        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        environment = {"TERM": "xterm-256color", **environment}
        process = coe.start(
            *arguments,
            stdin=child,
            stdout=child if stdout is None else stdout,
            stderr=child,
            environment=environment,
            command=command,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)
        data, seen, waiting = b"", 0, [*types, *([(interrupt_at, "\x03")] if interrupt_at else [])]
        try:
            while part := os.read(parent, 65536):
                data += part
                if waiting and (match := re.compile(waiting[0][0].encode()).search(data, seen)):
                    seen = match.end()
                    os.write(parent, waiting.pop(0)[1].encode())
        except OSError:  # Linux ends a terminal that nobody writes to with EIO
            pass
        assert termios.tcgetattr(parent)[3] & termios.ECHO
        os.close(parent)
        self.code = process.wait(timeout=200)
        self.piped = process.stdout.read().decode() if process.stdout else ""
        self.raw = data.decode()

    @property
    def screen(self) -> list[str]:
        """Lines of the final screen."""
        screen = pyte.Screen(*self._size)
        pyte.Stream(screen).feed(self.raw)
        assert not screen.cursor.hidden
        return [line.rstrip() for line in screen.display]

    @property
    def scrollback(self) -> str:
        """What the user can scroll through at the end: the final screen and all lines above it."""
        screen = pyte.Screen(self._size[0], 1000)
        pyte.Stream(screen).feed(self.raw)
        return "\n".join(line.rstrip() for line in screen.display).strip("\n") + "\n"

    @property
    def seen(self) -> str:
        """All text that was ever on the screen."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw)


@pytest.fixture(scope="module")
def story(shared_coe: Coe) -> Terminal:
    return Terminal(shared_coe, "ask", "-m", MODEL, "--temperature", "0", "--max-tokens", "60", "Tell me a story.")


@pytest.fixture(scope="module")
def plain_story(shared_coe: Coe) -> Result:
    options = ("--temperature", "0", "--max-tokens", "60")
    return shared_coe.run("ask", "-m", MODEL, *options, "Tell me a story.").check()


def test_the_answer_stays_and_the_status_goes(story: Terminal, plain_story: Result) -> None:
    assert story.code == 0
    assert "".join("".join(story.screen).split()) == "".join(plain_story.stdout.split())


def test_the_status_showed_model_phases_rate_and_memory(story: Terminal) -> None:
    assert MODEL in story.seen
    assert "loading" in story.seen and "answering" in story.seen
    assert re.search(r"\d+ tokens · \d+ tokens/s", story.seen)
    assert re.search(r"0\.\d of 3\.9 GB normal", story.seen)


@pytest.mark.long
def test_with_stdout_in_a_pipe_the_terminal_is_left_empty(coe: Coe) -> None:
    terminal = Terminal(coe, "ask", "-m", MODEL, "The capital of France is", stdout=subprocess.PIPE)
    assert terminal.code == 0
    assert "Paris" in terminal.piped and "\x1b" not in terminal.piped
    assert not any(terminal.screen)
    assert "loading" in terminal.seen


@pytest.mark.long
def test_no_colour_when_the_user_wants_none(coe: Coe) -> None:
    terminal = Terminal(coe, "ask", "-m", MODEL, "--max-tokens", "8", "The capital of France is", NO_COLOR="1")
    assert terminal.code == 0
    assert not re.search(r"\x1b\[(\d+;)*3\d(;\d+)*m", terminal.raw)


@pytest.mark.parametrize(
    "options",
    [("--no-live",), *(pytest.param(("--format", name), marks=pytest.mark.long) for name in ("quiet", "json"))],
)
def test_no_live_view_where_it_is_not_wanted(coe: Coe, options: tuple[str, ...]) -> None:
    terminal = Terminal(coe, "ask", "-m", MODEL, "--max-tokens", "8", *options, "The capital of France is")
    assert terminal.code == 0
    assert "\x1b" not in terminal.raw
    assert "Paris" in terminal.raw


def test_an_error_leaves_the_message_alone(coe: Coe) -> None:
    terminal = Terminal(coe, "ask", "-m", "smolm2-135m", "Hi")
    assert terminal.code == 4
    assert " ".join(terminal.screen).split()[:3] == ["coe:", "unknown", "model"]


def test_what_is_typed_while_chat_answers_waits_for_its_end(coe: Coe) -> None:
    typed = (("leaves", "Tell me a story.\n"), ("answering", "/stats\n"), ("turns 1", "/quit\n"))
    chat = Terminal(coe, "chat", "-m", MODEL, "--temperature", "0", "--max-tokens", "60", types=typed, size=(60, 30))
    assert chat.code == 0
    lines = chat.scrollback.splitlines()
    assert not any("answering" in line for line in lines), lines
    assert "> /stats" in lines and lines[-1] == "> /quit"


@pytest.mark.parametrize("command", ["ask", "ps"])
def test_what_is_typed_into_a_live_view_disturbs_no_line(coe: Coe, command: str) -> None:
    line = ("ask", "-m", MODEL, ENDLESS) if command == "ask" else ("ps", "--watch")
    if command == "ps":
        coe.run("serve").check()
    shown = "answering" if command == "ask" else "pressure"
    terminal = Terminal(coe, *line, types=((shown, "typed ahead\n"),), interrupt_at=shown)
    assert terminal.code == 130
    assert "typed ahead" not in terminal.raw and terminal.scrollback.count(shown) == (command == "ps")


SHELL = """
import os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while os.WIFSTOPPED(status := os.waitpid(child, os.WUNTRACED)[1]):
    os.tcsetpgrp(0, os.getpid())
    echo = bool(termios.tcgetattr(0)[3] & termios.ECHO)
    while (line := input(f"stopped, echo {echo}> ")) != "fg":
        if line == "bg":
            os.killpg(child, signal.SIGCONT)
    os.tcsetpgrp(0, child)
    os.killpg(child, signal.SIGCONT)
os.tcsetpgrp(0, os.getpid())
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A shell with one job, in a process group of its own."""


@pytest.mark.parametrize("way", ["ask", "chat"])
def test_a_stopped_view_gives_the_terminal_back_and_takes_it_again(coe: Coe, way: str) -> None:
    question = (ENDLESS,) if way == "ask" else ()
    command = [sys.executable, "-c", SHELL, *coe.command(way, "-m", MODEL, *question)]
    asks = () if way == "ask" else (("leaves", f"{ENDLESS}\n"),)
    stops = (("answering", "\x1a"), (r"stopped, echo \w+> ", "ls\n"), (r"stopped, echo \w+> ", "fg\n"))
    behind = ((r"stopped, echo \w+> ", "bg\n"), (r"stopped, echo \w+> ", "fg\n"))
    typed = (*asks, *stops, stops[0], *behind, ("answering", "typed ahead"))
    ends = () if way == "ask" else ((">", "\x15/quit\n"),)
    terminal = Terminal(coe, command=command, types=(*typed, ("answering", "\x03"), *ends))
    assert terminal.code == (130 if way == "ask" else 0), terminal.raw
    before = terminal.raw.partition("stopped, echo")[0]
    assert "echo False" not in terminal.raw
    assert before.rindex("\x1b[?25h") > before.rindex("\x1b[?25l"), "the cursor is shown"
    assert terminal.raw.count("> fg") == 2 and "> ls" in terminal.raw, "the shell's user sees what is typed"
    in_background = terminal.raw.partition("> bg")[2].partition("> fg")[0]
    assert in_background and "answering" not in in_background and "\x1b[?25l" not in in_background
    assert way == "chat" or "typed ahead" not in terminal.raw
    assert "answering" not in terminal.scrollback


def test_a_terminal_that_only_writes_on_is_told_in_lines(bare_coe: Coe) -> None:
    terminal = Terminal(bare_coe, "models", "pull", MODEL, TERM="dumb")
    assert f"coe: fetching {MODEL}" in terminal.raw and "\x1b" not in terminal.raw


def test_the_short_help_keeps_its_words_whole_on_a_narrow_terminal(coe: Coe) -> None:
    lines = Terminal(coe, size=(50, 30)).scrollback.splitlines()
    assert "  coe chat                       a conversation" in lines and "" in lines
    assert " ".join(SHORT_HELP.split()) == " ".join(" ".join(lines).split())


def test_help_on_a_terminal_is_plain(coe: Coe) -> None:
    raw = Terminal(coe, "--help").raw
    assert "Commands:" in raw
    assert "\x1b[" not in raw


@pytest.mark.long
def test_an_interrupted_benchmark_leaves_only_its_rows(coe: Coe) -> None:
    """The echo of ^C at the end of a full line would wrap, and the bar above it would stay."""
    options = ("--prompt-tokens", "16,2000", "--gen-tokens", "4", "-r", "1", "--warm-up", "0")
    terminal = Terminal(coe, "bench", MODEL, *options, interrupt_at="prompt 2000")
    assert terminal.code == 130
    assert "━" in terminal.seen and not any("━" in line for line in terminal.screen)
    rows = [line for line in terminal.screen if "█" in line]
    assert len(rows) == 1 and rows[0].split()[0] == "16"


@pytest.mark.long
@pytest.mark.parametrize("width", [44, 60])
def test_an_interrupted_answer_stays_as_far_as_it_came(coe: Coe, width: int) -> None:
    """Where the status reaches to the edge, the echo of ^C would wrap."""
    question = ("ask", "-m", MODEL, "--temperature", "0", "--max-tokens", "400", ENDLESS)
    terminal = Terminal(coe, *question, interrupt_at=r"[1-9]\d\D{1,30}tokens", size=(width, HEIGHT))
    assert terminal.code == 130
    left = "".join("".join(terminal.screen).split())
    assert left
    enough = str(len(left))  # a token has at least one character
    assert "".join(coe.run(*question, "--max-tokens", enough).check().stdout.split()).startswith(left)


@pytest.mark.long
def test_panels_of_many_experts_fit_a_small_terminal(coe: Coe) -> None:
    names = ("math_expert", "sql_query", "python_backend")
    size = (40, 12)
    terminal = Terminal(
        coe, "ask", "-m", MODEL, "--experts", ",".join(names), "--max-tokens", "8", "Count to three.", size=size
    )
    assert terminal.code == 0, terminal.raw
    assert "..." not in terminal.seen.split("coe: math_expert")[0], "Rich's mark of a view that is too high"
    assert all(f"╭─ {name} " in terminal.seen for name in names)


@pytest.mark.long
def test_each_expert_has_a_panel_and_one_line_stays_of_it(coe: Coe) -> None:
    names = ("math_expert", "sql_query")
    terminal = Terminal(
        coe, "ask", "-m", MODEL, "--experts", ",".join(names), "--max-tokens", "24", "Count from one to twenty."
    )
    assert terminal.code == 0, terminal.raw
    assert all(f"╭─ {name} {MODEL} " in terminal.seen for name in names), "a panel each"
    assert "writing · " in terminal.seen
    kept = "\n".join(terminal.screen)
    assert "╭" not in kept and "╰" not in kept, "the panels are gone"
    assert all(f"coe: {name} ({MODEL}): " in kept for name in names)
