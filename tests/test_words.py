"""What people type: other programs' words, questions without quotes, letters of options, settings, completion scripts."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import typer
from conftest import MODEL, Coe, Result, one_line

from coe_cli.app import build_app, run
from coe_cli.core.answers.conversations import Exchange
from coe_cli.core.batch.batch_rows import InvalidRow, parse_line
from coe_cli.core.hardware.profile import PROFILE_KEYS, HistorySettings
from coe_cli.core.models.source_uri import as_hub_uri
from coe_cli.runtime.conversation import history

WRONG = {
    "run qwen": (2, "`coe ask -m qwen` or `coe chat -m qwen`"),
    "pull smollm2-135m": (2, "`coe models pull smollm2-135m`"),
    "list": (2, "`coe models list`"),
    "rm a b": (2, "`coe models rm a b`"),
    "status": (2, "`coe ps`"),
    "model": (2, "Did you mean `coe models`?"),
    "aks Hi": (2, "`coe ask Hi`"),
    "xyzzy": (2, "See `coe --help`"),
    "-q": (2, "No such option"),
    "ask": (2, "there is no question"),
    "ask --max-tokens x Hi": (2, "'x' is not a whole number"),
    "ask --temperature x Hi": (2, "'x' is not a number"),
    "ask --top-p nan Hi": (2, "it is not a number"),
    "batch --temperature nan -": (2, "it is not a number"),
    "ask --max-tokens 99999999999999999999 Hi": (2, "--max-tokens"),
    "chat --max-tokens 99999999999999999999": (2, "--max-tokens"),
    "batch --max-tokens 99999999999999999999 -": (2, "--max-tokens"),
    "ask --top-k 99999999999999999999 --temperature 1 Hi": (2, "--top-k"),
    "ask --no-serve --seed 99999999999999999999999 Hi": (2, "--seed"),
    "logs show 99999999999999999999999": (2, "99999999999999999999999"),
    "logs rm 99999999999999999999999": (2, "99999999999999999999999"),
    "ask ''": (2, "there is no question"),
    "ask -": (2, "coe ask What is a deadlock"),
    "route": (2, "there is no question"),
    "route ''": (2, "there is no question"),
    "route -": (2, "coe route How do I join two tables"),
    "experts test general_reasoner": (2, "coe experts test general_reasoner"),
    "experts test general_reasoner ' '": (2, "there is no question"),
    "models pull --all": (2, "Add --yes"),
    "models pull Qwen/nothing": (4, "Qwen/nothing"),
    "models rm nothing": (4, "See `coe models list`"),
    "models verify nothing": (4, "See `coe models list`"),
    "profile show nothing": (3, "unknown profile `nothing`"),
    "vram plan --vram-mb lots": (2, "Write 16G"),
    "serve --foreground --host 0.0.0.0": (2, "COE_API_KEY"),
    "ask -x --format json Hi": (2, "-x"),
    "ask -m smollm2-135m --no-synthesis Hi": (2, "--no-synthesis"),
    "ask -e nobody Hi": (2, "unknown expert `nobody`"),
    "ask --experts nobody Hi": (2, "unknown expert `nobody`"),
    "experts show nobody": (2, "See `coe experts list`"),
    "ask --experts nobody,math_expert Hi": (2, "See `coe experts list`"),
    "vram plan -e ,": (2, "see `coe experts list`"),
    "ask -m nothing Hi": (4, "unknown model `nothing`"),
    "ask -p nothing Hi": (3, "unknown profile `nothing`"),
    "models pull": (2, "no model is named"),
    "models pull --all smollm2-135m": (2, "Leave out the names"),
    "models pull --all -p embedded": (2, "Leave out the names"),
    "profile check compact -p minimal": (2, "two profiles"),
    "batch --restart -": (2, "-o"),
    "batch --engine ray --address nope -": (2, "HOST:PORT"),
    "batch nofile.jsonl": (2, "nofile.jsonl does not exist"),
    "config set max_answer_tokens many": (3, "got `str`; the file is as it was. Give another value."),
    "config set -- max_answer_tokens -5": (3, ">= 1; the file is as it was. Give another value."),
    "config set max_answer_tokens -5": (2, "No such option: -5. Write -- before it: coe config set -- …"),
    "logs show -1": (2, "No such option: -1. Write -- before it: coe logs show -- …"),
    "config get nothing": (2, "there is no setting `nothing`"),
    "config set profile nothing": (3, "no profile is called `nothing`"),
    "completion tcsh": (2, "'bash', 'zsh', 'fish', 'powershell'"),
    "config set expert nobody": (3, "no expert is called `nobody`"),
    "config list": (2, "`coe config` has get, set, edit, path"),
    "models lst": (2, "Did you mean 'list'?"),
    "config edit": (2, "coe config set KEY VALUE"),
    "experts edit nobody": (2, "unknown expert `nobody`"),
    "experts add a/b -m smollm2-135m": (2, "cannot be the name of an expert"),
    "serve --keep-alive=-5": (2, "300, 30s, 5m, 1h or never"),
    "fit 24G+": (2, "coe fit 24G+24G"),
    "fit RTX 9999": (2, "no card called `RTX 9999`"),
    "vram plan -e nobody": (2, "unknown expert `nobody`"),
}


Here = Callable[..., Result]


@pytest.fixture
def here(bare_coe: Coe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """coe in this process, which is much faster, with nothing on stdin."""
    for name, value in bare_coe.environment.items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> Result:
        with open(os.devnull) as nothing:  # noqa: PTH123
            monkeypatch.setattr(sys, "stdin", nothing)
            code = run(list(arguments))
        return Result(*capsys.readouterr(), code)

    return call


@pytest.mark.parametrize("typed", WRONG)
def test_wrong_usage_says_what_to_do(here: Here, typed: str) -> None:
    """The documented exit code, nothing on stdout, a last line that says what is meant or allowed."""
    if typed == "config edit" and sys.platform == "win32":
        pytest.skip("Notepad needs no terminal")
    code, words = WRONG[typed]
    result = here(*shlex.split(typed))
    assert (result.code, result.stdout) == (code, ""), result.stderr
    last = result.stderr.splitlines()[-1]
    said = json.loads(last)["error"] if last.startswith("{") else {"message": last, "hint": ""}
    assert words in f"{said['message']} {said['hint']}"


def test_a_question_without_a_command(bare_coe: Coe) -> None:
    assert "coe ask" in one_line(bare_coe.run("What is a deadlock?").stderr)


@pytest.mark.parametrize(
    "arguments", [(), ("help",), ("version",), ("models",), ("help", "ask"), ("completion", "zsh")]
)
def test_what_only_tells_is_no_error(bare_coe: Coe, arguments: tuple[str, ...]) -> None:
    result = bare_coe.run(*arguments).check()
    assert result.stdout and not result.stderr


def test_bare_coe_is_short(bare_coe: Coe) -> None:
    lines = bare_coe.run().check().stdout.splitlines()
    assert len(lines) < 16 and all(len(line) <= 100 for line in lines)
    assert "coe ask What is a deadlock" in "\n".join(lines)


def test_a_letter_and_a_name_mean_one_thing_everywhere() -> None:
    long_of, helps = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)

    def visit(command: Any) -> None:
        for child in getattr(command, "commands", {}).values():
            visit(child)
        for parameter in getattr(command, "params", []):
            if parameter.param_type_name == "option" and not parameter.hidden:
                for short in (name for name in parameter.opts if re.fullmatch("-[a-zA-Z]", name)):
                    long_of[short].add(next(name for name in parameter.opts if name.startswith("--")))
                if {"--catalog", "--profiles"} & set(parameter.opts):
                    helps[parameter.opts[0]].add(inspect.cleandoc(parameter.help))

    visit(typer.main.get_command(build_app()))
    assert {short: names for short, names in long_of.items() if len(names) > 1} == {}
    assert set(helps) == {"--catalog", "--profiles"} and all(len(texts) == 1 for texts in helps.values())


def test_help_says_ranges_in_words(here: Here) -> None:
    """Of every option that takes a number, and on what there is, as a complaint does."""
    helps: dict[str, str] = {}

    def visit(command: Any, *path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            visit(child, *path, name)
        if any(hasattr(parameter.type, "clamp") for parameter in command.params):
            helps[" ".join(path)] = " ".join(here(*path, "--help").check().stdout.split())

    visit(typer.main.get_command(build_app()))
    assert {"ask", "vram plan", "logs list", "node"} <= set(helps)
    assert [name for name, text in helps.items() if re.search(r"range|[<=]x", text, re.IGNORECASE)] == []
    assert "<whole number>" in helps["ask"] or "WHOLE NUMBER" in helps["ask"]
    for words in ("[1 or more]", "[0 to 2]", "[default: 600.0; 0.1 or more]"):
        assert words in helps["ask"]
    assert "[1 to 65,535]" in helps["node"]
    assert "3.5 is not in the range 0 to 2" in one_line(here("ask", "--temperature", "3.5", "Hi").stderr)
    assert "0 is not in the range 1 to 2,147,483,647" in one_line(here("ask", "--max-tokens", "0", "Hi").stderr)


def test_questions_in_words_from_a_file_and_into_one(answered: Coe) -> None:
    options = ("ask", "-m", MODEL, "--temperature", "0", "--max-tokens", "8", "--no-log")
    quoted = answered.run(*options, "What is a deadlock").check().stdout
    assert answered.run(*options, "-", stdin="What is a deadlock").check().stdout == quoted
    target = answered.folder / "answer.txt"
    result = answered.run(*options, "-o", "answer.txt", "-q", "--", "What", "is", "a", "deadlock").check()
    assert (result.stdout, result.stderr, target.read_text()) == ("", "", quoted)
    answered.run("ask", "-m", "nothing", "-o", "answer.txt", "Hi")
    assert target.read_text() == quoted, "a question that failed leaves the file as it was"


@pytest.mark.parametrize(
    ("typed", "uri"),
    [
        ("owner/repo", "hf:owner/repo"),
        ("https://huggingface.co/owner/repo", "hf:owner/repo"),
        ("huggingface.co/owner/repo/", "hf:owner/repo"),
        ("https://huggingface.co/owner/repo/tree/main/cpu/int4", "hf:owner/repo/cpu/int4"),
        ("https://huggingface.co/owner/repo/blob/v1/a.gguf?download=true", "hf:owner/repo@v1/a.gguf"),
        ("smollm2-135m", "smollm2-135m"),
        ("./folder/model", "./folder/model"),
        ("file:a/b", "file:a/b"),
        ("hf:owner/repo", "hf:owner/repo"),
    ],
)
def test_addresses_of_the_hub(typed: str, uri: str) -> None:
    assert as_hub_uri(typed) == uri


def test_settings_are_written_into_the_users_yaml(bare_coe: Coe, here: Here) -> None:
    file = bare_coe.config / "hardware_profiles.yaml"
    file.write_text("# mine\nrouting:\n  two_experts: false  # one is enough\n")
    for key, value in (("profile", "compact"), ("fallback", "true"), ("max-answer-tokens", "2048"), ("model", MODEL)):
        assert key == "model" or here("config", "get", key).stdout != f"{value}\n"
        here("config", "set", key, value).check()
        assert here("config", "get", key).check().stdout == f"{value}\n"
    assert "# mine" in file.read_text() and "# one is enough" in file.read_text()
    assert json.loads(here("profile", "show", "--format", "json").stdout)["profile"]["name"] == "compact"
    before = file.read_bytes()
    assert here("config", "set", "profiles.compact.max_answer_tokens", "many").code == 3
    assert file.read_bytes() == before
    here("config", "set", "profile", "null").check()
    assert here("config", "get", "profile").stdout == "standard\n"
    assert set(json.loads(here("config", "get", "--format", "json").stdout)) == {
        "routing.two_experts",
        "profiles.compact.fallback",
        "profiles.compact.max_answer_tokens",
        "default_model",
    }
    assert here("config", "path").check().stdout.splitlines()[0] == str(file)


def test_every_key_of_a_profile_is_a_setting(here: Here) -> None:
    here("config", "set", "profile", "compact").check()
    for key in PROFILE_KEYS:
        of_profile = here("config", "get", f"profiles.compact.{key}").check().stdout
        assert here("config", "get", key).check().stdout == of_profile
    here("config", "set", "model-keep-alive", "90").check()
    assert json.loads(here("profile", "show", "--format", "json").stdout)["profile"]["model_keep_alive_s"] == 90


@pytest.mark.parametrize("arguments", [("profile", "show"), ("profile", "list"), ("route", "--no-pull", "Hi")])
def test_the_variable_of_the_profile_counts_everywhere(bare_coe: Coe, arguments: tuple[str, ...]) -> None:
    result = bare_coe.run(*arguments, COE_PROFILE="nope")
    assert result.code == 3 and "unknown profile `nope`" in result.stderr


@pytest.mark.parametrize(
    ("row", "words"),
    [(b"\xff\xfe\x80\n", "not UTF-8"), (b'{"promt": "x"}\n', '{"prompt": …}'), (b"{\n", "not JSON")],
)
def test_rows_of_a_batch_that_are_none(row: bytes, words: str) -> None:
    with pytest.raises(InvalidRow) as found:
        parse_line(row, 3)
    assert words in f"{found.value.message} {found.value.hint}" and "line 3" in found.value.message


def test_the_history_names_model_and_expert(here: Here) -> None:
    exchange = Exchange("Hi", "Hello", "small", "sql_query", "cpu", "embedded", "", "stop", 1, 1, None, None, None)
    history.record(exchange, HistorySettings())
    assert "sql_query (small)" in here("logs", "list").stdout
    assert "--- sql_query (small)," in here("logs", "show").stdout


def test_a_broken_entry_that_is_needed_is_told_once(bare_coe: Coe) -> None:
    (bare_coe.config / "hardware_profiles.yaml").write_text("profiles:\n  mine: {vram_budget_mb: lots}\n")
    result = bare_coe.run("profile", "show", "mine")
    assert result.code == 3
    assert result.stderr.count("max_concurrent_slots` is missing") == 1
    assert result.stderr.splitlines()[-1].startswith("coe: profiles.mine, which is left out, is needed here. Add ")


def test_each_line_of_one_process_warns_of_a_broken_entry(bare_coe: Coe, here: Here) -> None:
    (bare_coe.config / "hardware_profiles.yaml").write_text("profiles:\n  mine: {vram_budget_mb: lots}\n")
    first, second = here("profile", "list"), here("profile", "list")
    assert "max_concurrent_slots` is missing" in first.stderr
    assert second == first


def test_the_default_expert_answers_where_nobody_is_named(quick_coe: Coe) -> None:
    assert quick_coe.run("config", "get", "expert").check().stdout == "null\n"
    quick_coe.run("config", "set", "expert", "math_expert").check()
    brief = ("--format", "json", "--max-tokens", "1", "--fallback")
    for options, expert in (((), "math_expert"), (("-e", "sql_query"), "sql_query"), (("-m", MODEL), None)):
        answered = quick_coe.run("ask", *options, *brief, "Hi", COE_NO_ROUTE="0", COE_PROFILE="embedded").check()
        assert json.loads(answered.stdout)["expert"] == expert
