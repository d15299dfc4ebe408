"""What newcomers met: command lines and states that stood in their way, and what tells them now what to do.

Held elsewhere: numbers without bounds, words and letters (test_words), locales (test_encodings), models and entries of one's own
(test_layers, model_store/test_experts), who is asked and who answers (test_documented_questions, test_who_answers), what suits a
machine (test_setup, test_fit, test_vram_amounts), pictures and figures in the pages (model_store/test_docs), whole words and tables
(test_markdown_stream, test_narrow_tables), silence and plans taller than a screen (test_waits, test_first_minutes), who is connected to
(test_network).
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import MODEL, REPOSITORY, Coe
from model_store.tiny_model import write_tiny_model

from coe_cli.app import build_app, run
from coe_cli.commands.options import complete_installed
from coe_cli.core.answers.conversations import Exchange
from coe_cli.core.hardware.profile import HistorySettings
from coe_cli.output import question
from coe_cli.runtime.conversation import history

MET = {
    # A plan for several experts that do not fit together: two of them, and three.
    "vram plan -p compact -e python_backend,sql_query": (5, "in turns: each fits alone, and coe swaps them"),
    "vram plan -p compact -e python_backend,sql_query,math_expert": (5, "in turns: each fits alone"),
    # A budget that a computer of that size must not give away.
    "profile show standard": (0, "For integrated graphics a computer needs 64 GB: half of it stays the system's"),
    "vram plan --vram-mb 16G -e math_expert": (0, "fits"),
    # Models of the hub.
    "models pull https://huggingface.co/owner/repo": (4, "hf:owner/repo was skipped because HF_HUB_OFFLINE is set"),
    "models pull owner/repo": (4, "HF_HUB_OFFLINE"),
    "models pull --all": (2, "are more than 10 GB. Add --yes"),
    # Groups of commands alone, and another program's words.
    "models": (0, "Commands"),
    "logs": (0, "Commands"),
    "vram": (0, "Commands"),
    "config": (0, "Commands"),
    "help": (0, "Commands"),
    "version": (0, "coe "),
    "model": (2, "Did you mean `coe models`? See `coe --help`."),
    "What is a lock": (2, "Did you mean `coe ask What is a lock`? See `coe --help`."),
    "aks What is a lock": (2, "Did you mean `coe ask What is a lock`?"),
    "modles list": (2, "Did you mean `coe models list`?"),
    "chta -m small": (2, "Did you mean `coe chat -m small`?"),
    # What was dropped in silence.
    "profile check compact -p minimal": (2, "`compact` and -p minimal are two profiles. Give one of the two."),
    "batch --restart -": (2, "-o"),
    "ask -o nowhere/answer Hi": (1, "answer cannot be used: No such file or directory. Choose another place."),
    "serve --keep-alive=-5": (2, "Write 300, 30s, 5m, 1h or never."),
    # Somebody else's jargon.
    "ask --top-k many Hi": (2, "'many' is not a whole number"),
    "batch --engine ray --address nope -": (2, "HOST:PORT"),
    # Who there is.
    "experts list": (0, "sql_query"),
    "ask -e nobody Hi": (2, "See `coe experts list`."),
    "logs rm 7": (2, "7"),
    "completion zsh": (0, "#compdef coe"),
    "completion fish": (0, "complete --command coe --no-files"),
    "completion powershell": (0, "Register-ArgumentCompleter"),
}
"""Command line → exit code, and the words that say what to do."""


@pytest.fixture
def newcomer(bare_coe: Coe) -> Coe:
    write_tiny_model(bare_coe.models / MODEL)
    return bare_coe


@pytest.mark.parametrize("line", MET)
def test_what_stood_in_the_way_says_what_to_do(newcomer: Coe, line: str) -> None:
    code, words = MET[line]
    result = newcomer.run(*shlex.split(line))
    assert result.code == code, result.stderr
    assert words in " ".join((result.stdout + result.stderr).split())
    assert "Traceback" not in result.stderr and "docs/" not in result.stderr


def with_profiles(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Command lines of every command that takes a profile."""
    for name, child in getattr(command, "commands", {}).items():
        yield from with_profiles(child, (*words, name))
    if any("--profile" in parameter.opts for parameter in command.params):
        yield words


NEEDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("models", "import"): ("hf:a/b",),
    ("models", "show"): (MODEL,),
    ("models", "pull"): ("Qwen2.5-Math-7B-DML",),
    ("experts", "test"): ("sql_query", "Hi"),
    ("ask",): ("Hi",),
    ("route",): ("Hi",),
    ("batch",): ("-",),
}


@pytest.mark.parametrize("words", [*with_profiles(typer.main.get_command(build_app()))], ids=" ".join)
def test_the_variable_sets_the_profile_of_every_command(newcomer: Coe, words: tuple[str, ...]) -> None:
    if words == ("node",) and find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    if words == ("doctor",):  # which always runs, and says it
        assert "unknown profile `nope`" in newcomer.run("doctor", COE_PROFILE="nope").stdout
        return
    rows = '{"prompt": "Hi"}\n'
    result = newcomer.run(*words, *NEEDS.get(words, ()), stdin=rows, COE_PROFILE="nope", COE_NO_SERVE="0")
    assert result.code == 3 and "unknown profile `nope`" in result.stderr, result.stderr


def test_an_expert_whose_model_nobody_has_imported_says_how(newcomer: Coe) -> None:
    (newcomer.config / "experts.yaml").write_text("experts:\n  haiku: {model: mine, system_prompt: Write a haiku.}\n")
    result = newcomer.run("ask", "-e", "haiku", "Hi")
    assert (result.code, result.stdout) == (3, "") and "coe models import FILE --name mine" in result.stderr


def test_the_default_plan_speaks_of_no_guide(newcomer: Coe) -> None:
    plan = newcomer.run("vram", "plan", "-p", "compact").check()
    assert "guide" not in plan.stdout + plan.stderr


def test_completion_offers_what_is_there(newcomer: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COE_MODELS_DIR", str(newcomer.models))
    assert complete_installed("") == [MODEL]
    commands = typer.main.get_command(build_app()).commands["models"].commands  # type: ignore[attr-defined]
    for name in ("rm", "verify"):
        (argument,) = (each for each in commands[name].params if each.param_type_name == "argument")
        assert [item.value for item in argument.shell_complete(typer.Context(commands[name]), "")] == [MODEL]


def test_what_is_piped_through_x_without_a_block_ends_with_1(newcomer: Coe) -> None:
    result = newcomer.run("ask", "-m", MODEL, "-x", "--max-tokens", "1", "Hi")
    assert (result.code, result.stdout) == (1, "") and "Run it without -x to see the answer." in result.stderr


def test_a_terminal_is_asked_before_the_whole_history_goes(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exchange = Exchange("Hi", "Hello", "small", None, "cpu", "embedded", "", "stop", 1, 1, None, None, None)
    history.record(exchange, HistorySettings())
    monkeypatch.setattr(question, "is_interactive", lambda output: True)
    for said, code, left in (("n\n", 2, 1), ("", 2, 1), ("y\n", 0, 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        assert run(["logs", "rm", "--all"]) == code
        assert "Delete every conversation? [y/N]: " in capsys.readouterr().err
        assert run(["logs", "list", "--format", "json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["conversations"]) == left


def test_licences_and_changes_are_there_and_every_page_has_a_title_of_its_own() -> None:
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert (REPOSITORY / "CHANGELOG.md").exists()
    pages = [page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs").glob("*.md")]
    titles = Counter(re.findall(r"^# (.*)", page, re.M)[0] for page in pages)
    assert [title for title, count in titles.items() if count > 1] == []


def test_no_page_installs_what_is_not_published_without_saying_so() -> None:
    pages = [*(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "README.md"]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if "install" in line]
    assert [line for line in lines if "coe-cli[" in line and "of a published coe" not in line] == []


def test_figures_say_first_what_was_timed_and_what_was_not() -> None:
    _, first, *_ = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8").split("\n\n")
    assert first.startswith("Timed: ") and "Not timed: " in first
