"""Lists on narrow terminals: every number and name stays whole."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from conftest import REPOSITORY
from rich.color import ANSI_COLOR_NAMES, Color
from test_planner import made

from coe_cli.core.answers.conversations import Conversation, ConversationRow, LoggedMessage
from coe_cli.core.findings import Finding, Level
from coe_cli.core.memory.fit import ExpertFit, Fit, FitReport, How
from coe_cli.core.memory.planner import compare_row
from coe_cli.core.names import compared_sizes, share_words, size_words
from coe_cli.core.problem import Problem
from coe_cli.core.scheduling.college_status import CollegeStatus, ModelLine, PressureLine
from coe_cli.output.college_view import write_status
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.errors import warn_of
from coe_cli.output.experts_view import write_experts
from coe_cli.output.findings_view import write_findings
from coe_cli.output.fit_view import write_fit
from coe_cli.output.logs_view import write_conversation, write_conversations
from coe_cli.output.models_view import write_models
from coe_cli.output.plan_view import write_plan
from coe_cli.output.profile_view import write_profiles
from coe_cli.output.question import answer_to
from coe_cli.output.setup_view import write_setup
from coe_cli.runtime.folders import catalog_paths, folders, profile_paths
from coe_cli.runtime.own_experts import expert_cards
from coe_cli.runtime.planning.setup_plan import SetupModel, SetupPlan
from coe_cli.runtime.settings import load_catalog, load_profiles
from coe_cli.runtime.store.inventory import list_models


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def models(output: Output) -> None:
    write_models(output, list_models(load_catalog(catalog_paths()), folders().models), TableFormat.HUMAN)


def profiles(output: Output) -> None:
    write_profiles(output, load_profiles(profile_paths()), TableFormat.HUMAN)


def experts(output: Output) -> None:
    write_experts(output, expert_cards(load_catalog(catalog_paths())), TableFormat.HUMAN)


def fits(output: Output) -> None:
    ways: list[How] = ["together", "in turns", "no"]
    rows = [ExpertFit("sql_schema_architect", "DeepSeek-R1-Distill-Qwen-7B-DML", how, 131072, 5000, 12) for how in ways]
    fit = Fit("16 GB", 16384, 14745, "webgpu", None, 8192, 7900, rows)
    write_fit(output, FitReport([fit], []), TableFormat.HUMAN)


def setup(output: Output) -> None:
    sized = (
        "together",
        ["sql_schema_architect"] * 3,
        "cc-by-sa-4.0",
        4466.0,
        4978.0,
        False,
        "Q4_K_M",
        False,
    )
    models = [SetupModel("deepseek-r1-distill-qwen-7b-webgpu", *sized), SetupModel("smollm2-135m", *sized)]
    plan = SetupPlan(
        1, "AMD Radeon", 16384, 14745, "webgpu", "standard", None, "smollm2-135m", models, 9000, 9000, 90000, 12, []
    )
    write_setup(output, plan)


def conversations(output: Output) -> None:
    experts = "+".join(["general_reasoner"] * 9)
    rows = [ConversationRow(1234, 1.7e9, 1.7e9, "What is a mutex?", 56, "model", experts)]
    write_conversations(output, rows, as_json=False)


def college(output: Output) -> None:
    models = [
        ModelLine("DeepSeek-R1-Distill-Qwen-7B-DML", 7654, "ready", 1, 2, 3, 16384, 16500, 16600.0, None, 448),
        ModelLine("sqlcoder-7b-2-DML", None, "absent", 0, 2, 1, 8192, 8000, None, None, waits_for="memory"),
    ]
    level = PressureLine(0.5, "normal")
    status = CollegeStatus(1, 7, "http://127.0.0.1:1", "standard", 9.0, models, level, 1e4, 2e4, 4, ["taken out"])
    write_status(output, status, as_json=False)


def plans(output: Output) -> None:
    plan = made("compact", "sql_query", context=2048)
    write_plan(output, plan, TableFormat.HUMAN, None)
    write_plan(output, plan, TableFormat.HUMAN, [compare_row("exact", plan)])


def findings(output: Output) -> None:
    write_findings(output, [Finding("memory", Level.WARNING, "scarce " * 40 + "[b]", "close a program")])


def written(write: Callable[[Output], None], stdout: io.StringIO) -> str:
    write(Output(stdout=stdout, stderr=io.StringIO()))
    return re.sub(r"\x1b\[[0-9;]*m", "", stdout.getvalue())


def on_terminal(patch: pytest.MonkeyPatch, write: Callable[[Output], None], width: int) -> str:
    for name, value in (("COLUMNS", str(width)), ("TERM", "xterm-256color"), ("NO_COLOR", "1")):
        patch.setenv(name, value)
    text = written(write, Terminal())
    assert all(len(line) <= width for line in text.splitlines())
    return text


@pytest.mark.parametrize("width", [62, 80, 100, 140])
@pytest.mark.parametrize(
    ("write", "whole"),
    [
        (models, ["4.9 GB", "131,072", "524,288 B", "security_architect", "medical_expert"]),
        (profiles, ["performance", "46.9 GB", "16,384", "standard *"]),
        (experts, ["sql_schema_architect", "Qwen2.5-Coder-7B-DML", " no "]),
        (fits, ["together", "in turns", "131,072", "12 s"]),
        (conversations, ["1234", "2023-11-14 ", "56"]),
        (plans, ["sqlcoder-7b-2-DML", "sql_query", "16,384", "8.7 GB", "40 MB"]),
    ],
)
def test_figures_stay_whole(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[Output], None], whole: list[str], width: int
) -> None:
    text = on_terminal(monkeypatch, write, width)
    assert "…" not in text
    for words in whole:
        assert words in text, text


@pytest.mark.parametrize(
    ("write", "at_50", "at_200"),
    [
        (setup, ["deepseek-r1-distill", "cc-by-sa-4.0", "4.4 GB", "4.9 GB"], ["qwen-7b-webgpu", "for"]),
        (fits, ["sql_schema_architect"], ["DeepSeek-R1-Distill-Qwen-7B-DML", "4.9 GB"]),
        (conversations, ["What is a mutex?", "1234", "2023-11-14"], ["2023-11-14 22:13"[:14], "general_reasoner+gen"]),
        (models, ["DeepSeek-R1-Distill-Qwen-7B-DML", "general_reasoner"], ["524,288 B"]),
        (profiles, ["standard *", "performance", "31.2 GB", "16,384"], ["preload"]),
        (experts, ["sql_schema_architect", "Qwen2.5-Coder-7B-DML"], ["Database design"]),
        (plans, ["sqlcoder-7b-2-DML", "sql_query", "16,384", "8.7 GB", "40 MB"], ["KV cache", "activations"]),
        (college, ["sqlcoder-7b-2-DML", "1/2", "16.1 GB"], ["█", "83%", "16.2 GB", "1 for sqlcoder-7b-2-DML: memory"]),
    ],
)
def test_names_stay_at_50_columns_and_200_are_used(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[Output], None], at_50: list[str], at_200: list[str]
) -> None:
    for width, words in ((50, at_50), (200, [*at_50, *at_200])):
        text = on_terminal(monkeypatch, write, width)
        assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize(
    ("mb", "words"),
    [
        (0, "0 MB"),
        (94.4, "94 MB"),
        (1000, "1 GB"),
        (4978, "4.9 GB"),
        (16384, "16 GB"),
        (32000, "31.2 GB"),
        (2e5, "195 GB"),
    ],
)
def test_sizes_for_people_have_one_style(mb: float, words: str) -> None:
    assert size_words(mb) == words and size_words(-mb) == ("-" if mb else "") + words


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((16384, 8192), ["16 GB", "8 GB"]),
        ((16384, 16384), ["16 GB", "16 GB"]),
        ((16400, 16384), ["16,400 MB", "16,384 MB"]),
        ((16384, 640), ["16 GB", "640 MB"]),
    ],
)
def test_sizes_that_are_compared_are_told_apart(sizes: tuple[float, float], words: list[str]) -> None:
    assert compared_sizes(*sizes) == words


@pytest.mark.parametrize(("used", "whole", "words"), [(240, 800, "240 of 800 MB"), (240, 4000, "0.2 of 3.9 GB")])
def test_a_share_has_the_unit_of_the_whole(used: float, whole: float, words: str) -> None:
    assert share_words(used, whole) == words


def test_a_kept_answer_is_shown_as_markdown_and_a_question_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "## Locks\n\nA **mutual exclusion** lock lets one thread in.\n\n- `acquire`"
    said = [
        LoggedMessage("user", "# What **is** it?", 1.7e9, *[None] * 10),
        LoggedMessage("assistant", answer, 1.7e9, *[None] * 10),
    ]
    told = Conversation(1, 1.7e9, 1.7e9, said)
    text = on_terminal(monkeypatch, lambda output: write_conversation(output, told, as_json=False), 30)
    assert "# What **is** it?" in text and "\nLocks\n" in text and "• acquire" in text
    assert "mutual exclusion" in " ".join(text.split()) and "exclu\n" not in text
    piped = written(lambda output: write_conversation(output, told, as_json=False), io.StringIO())
    assert answer in piped


def warned(output: Output) -> None:
    problem = Problem("experts.haiku.model: no model is called `mine`", "Or import it: coe models import FILE")
    warn_of(output.stdout, {"experts.haiku": problem})


def asked(output: Output) -> None:
    answer_to(Output(stdout=output.stdout, stderr=output.stdout), "sql_query's model is not here. Install it? [q]uit:")


@pytest.mark.parametrize("write", [warned, asked])
def test_warnings_and_questions_keep_their_words_whole(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[Output], None]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    monkeypatch.setattr("coe_cli.output.errors._said", {})
    narrow = on_terminal(monkeypatch, write, 40)
    assert narrow.count("\n") >= 1 and narrow.split()[-1] in ("[q]uit:", "FILE")


@pytest.mark.parametrize("write", [models, profiles, experts, fits, setup, conversations, college, findings])
def test_a_pipe_has_plain_lines_that_are_never_cut(write: Callable[[Output], None]) -> None:
    lines = written(write, io.StringIO()).split("\n")
    assert lines[0].strip() and lines[-1] == "" and lines[-2].strip()
    assert [line for line in lines if line != line.rstrip() or "…" in line or "\x1b" in line] == []
    if write is findings:
        assert lines[0].endswith("scarce [b]") and lines[1].strip() == "→ close a program"


def test_colours_can_be_read_on_a_light_and_on_a_dark_terminal() -> None:
    """Six of the terminal's own are its theme's to choose; black, white and the bright ones suit one background alone."""
    used: set[str] = set()
    for path in (REPOSITORY / "coe_cli" / "output").glob("*.py"):
        used |= set(re.findall(r'"([a-z0-9_]+)"', path.read_text(encoding="utf-8"))) & set(ANSI_COLOR_NAMES)
    assert {"yellow", "grey50"} <= used
    for name in used:
        number, colour = ANSI_COLOR_NAMES[name], Color.parse(name).get_truecolor()
        light = sum(weight * (part / 255) ** 2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), colour, strict=True))
        assert number in range(1, 7) or min(1.05 / (light + 0.05), (light + 0.05) / 0.05) > 2.2, name
