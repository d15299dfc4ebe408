"""`coe logs`: what it prints, in which form, and what it deletes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import Coe, one_line

from coe_cli.core.answers.conversations import Exchange
from coe_cli.runtime.conversation.history_file import History


@pytest.fixture
def logged(bare_coe: Coe) -> Coe:
    """Two conversations, of two questions and of one."""
    with History(bare_coe.folder / "state" / "history.db") as file:
        first = file.record(
            Exchange("What is a mutex?", "A lock.", "qwen", expert="coder", system="Be brief.", completion_tokens=3)
        )
        file.record(Exchange("And a semaphore?", "A counter.", "qwen", expert="coder", system="Be brief."), first)
        file.record(Exchange("Name a\x1b[31m colour", "Red.", "smol"))
    return bare_coe


def test_list(logged: Coe) -> None:
    text = logged.run("logs", "list").check().stdout
    assert text.index("Name a") < text.index("What is a mutex?")
    assert "\x1b" not in text
    assert "coder" in text and "smol" in text


def test_list_keeps_numbers_and_times_beside_long_names(bare_coe: Coe) -> None:
    """`coe logs show` and `rm` take the number."""
    with History(bare_coe.folder / "state" / "history.db") as file:
        file.record(Exchange("What is a mutex?", "A lock.", "qwen", expert="+".join(["general_reasoner"] * 9)))
    text = bare_coe.run("logs", "list").check().stdout
    number, day, _time, questions, *_ = text.splitlines()[1].split()
    assert (number, questions) == ("1", "1") and len(day) == len("2026-11-25")
    names = "".join(text.replace("What is a mutex?", "").split())
    assert names.count("general_reasoner") == 9
    assert "What is a mutex?" in text


def test_list_as_json(logged: Coe) -> None:
    found = json.loads(logged.run("logs", "list", "--format", "json").check().stdout)
    assert found["schema_version"] == 1
    assert [set(row) for row in found["conversations"]] == [
        {"id", "started_at", "updated_at", "title", "questions", "model", "expert"}
    ] * 2
    assert [row["questions"] for row in found["conversations"]] == [1, 2]
    assert len(json.loads(logged.run("logs", "list", "-n", "1", "--format", "json").stdout)["conversations"]) == 1


def test_show(logged: Coe) -> None:
    text = logged.run("logs", "show", "1").check().stdout
    places = [
        text.index(part) for part in ("Be brief.", "What is a mutex?", "A lock.", "And a semaphore?", "A counter.")
    ]
    assert places == sorted(places)
    assert "--- coder (qwen), " in text
    assert "Red." in logged.run("logs", "show").check().stdout, "the last one without a number"


def test_show_as_json(logged: Coe) -> None:
    found = json.loads(logged.run("logs", "show", "1", "--format", "json").check().stdout)
    messages = found["conversation"]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert set(messages[0]) == {
        "role",
        "content",
        "created_at",
        "model",
        "expert",
        "provider",
        "profile",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "load_s",
        "first_token_s",
        "decode_s",
    }
    assert messages[2]["completion_tokens"] == 3


def test_search(logged: Coe) -> None:
    line = one_line(logged.run("logs", "search", "semaphore").check().stdout)
    assert line.startswith("1 ") and "And a semaphore?" in line
    found = json.loads(logged.run("logs", "search", "lock", "--format", "json").check().stdout)
    assert [match["role"] for match in found["matches"]] == ["assistant"]
    none = logged.run("logs", "search", "nothing").check()
    assert none.stdout == "" and "nothing found" in one_line(none.stderr)


def test_delete(logged: Coe) -> None:
    assert "deleted conversation 1" in logged.run("logs", "rm", "1").check().stderr
    assert logged.run("logs", "show", "1").code == 2
    assert logged.run("logs", "rm", "1").code == 2
    assert "deleted 1 conversation" in logged.run("logs", "rm", "--all").check().stderr
    assert json.loads(logged.run("logs", "list", "--format", "json").stdout)["conversations"] == []
    for path in (logged.folder / "state").iterdir():
        assert b"semaphore" not in path.read_bytes()


@pytest.mark.parametrize("arguments", [("rm",), ("rm", "1", "--all"), ("show", "99"), ("rm", "99")])
def test_mistakes(logged: Coe, arguments: tuple[str, ...]) -> None:
    result = logged.run("logs", *arguments)
    assert (result.code, result.stdout) == (2, "")
    one_line(result.stderr)


def test_nothing_kept_yet(bare_coe: Coe) -> None:
    result = bare_coe.run("logs", "show")
    assert result.code == 2
    assert "no conversation has been kept" in one_line(result.stderr)


def test_off_and_on(bare_coe: Coe) -> None:
    marker: Path = bare_coe.folder / "state" / "history.off"
    bare_coe.run("logs", "off").check()
    assert marker.exists()
    bare_coe.run("logs", "on").check()
    assert not marker.exists()


def test_a_damaged_file_is_one_line(bare_coe: Coe) -> None:
    state = bare_coe.folder / "state"
    os.makedirs(state)  # noqa: PTH103
    (state / "history.db").write_bytes(b"nonsense" * 1000)
    result = bare_coe.run("logs", "list")
    assert result.code == 1
    assert "Move the file away" in one_line(result.stderr)
