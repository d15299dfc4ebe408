"""Lists on narrow terminals: every number and name stays whole."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest

from coe_cli.core.answers.conversations import ConversationRow
from coe_cli.core.hardware.profile import load_profiles
from coe_cli.core.models.catalog import load_catalog
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.logs_view import write_conversations
from coe_cli.output.models_view import write_models
from coe_cli.output.profile_view import write_profiles
from coe_cli.runtime.folders import catalog_paths, folders, profile_paths
from coe_cli.runtime.store.inventory import list_models


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def models(output: Output) -> None:
    write_models(output, list_models(load_catalog(catalog_paths()), folders().models), TableFormat.HUMAN)


def profiles(output: Output) -> None:
    write_profiles(output, load_profiles(profile_paths()), TableFormat.HUMAN)


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
