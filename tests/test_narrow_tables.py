"""Lists on narrow terminals: every number and name stays whole."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest

from coe_cli.core.answers.conversations import ConversationRow
from coe_cli.core.hardware.profile import load_profiles
from coe_cli.core.memory.fit import ExpertFit, Fit, FitReport, How
from coe_cli.core.models.catalog import load_catalog
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.experts_view import write_experts
from coe_cli.output.fit_view import write_fit
from coe_cli.output.logs_view import write_conversations
from coe_cli.output.models_view import write_models
from coe_cli.output.profile_view import write_profiles
from coe_cli.runtime.folders import catalog_paths, folders, profile_paths
from coe_cli.runtime.own_experts import expert_cards
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


def conversations(output: Output) -> None:
    experts = "+".join(["general_reasoner"] * 9)
    rows = [ConversationRow(1234, 1.7e9, 1.7e9, "What is a mutex?", 56, "model", experts)]
    write_conversations(output, rows, as_json=False)


@pytest.mark.parametrize("width", [62, 80, 100, 140])
@pytest.mark.parametrize(
    ("write", "whole"),
    [
        (models, ["5000 MB", "131072", "524288 B", "security_architect", "medical_expert"]),
        (profiles, ["performance", "48,000", "16,384", "standard *"]),
        (experts, ["sql_schema_architect", "Qwen2.5-Coder-7B-DML", " no "]),
        (fits, ["together", "in turns", "131,072", "12 s"]),
        (conversations, ["1234", "2023-11-14 ", "56"]),
    ],
)
def test_figures_stay_whole(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[Output], None], whole: list[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    write(Output(stdout=terminal, stderr=io.StringIO()))
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for words in whole:
        assert words in text, text
