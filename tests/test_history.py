"""The history: what is kept, who may read it, what goes first, and that it never costs an answer."""

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_cli.core.answers.conversations import Exchange
from coe_cli.core.hardware.profile import HistorySettings
from coe_cli.errors import CoeError, ProfileInvalid, UsageError
from coe_cli.runtime.conversation import history
from coe_cli.runtime.conversation.history_file import SCHEMA_VERSION, History
from coe_cli.runtime.folders import profile_paths
from coe_cli.runtime.settings import load_profiles

SETTINGS = HistorySettings()


def exchange(question: str = "Why?", answer: str = "Because.", **more: object) -> Exchange:
    return Exchange(question, answer, "m", **more)  # type: ignore[arg-type]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("COE_NO_LOG", raising=False)
    return tmp_path / "state"


@pytest.mark.skipif(sys.platform == "win32", reason="there such a folder is none")
def test_a_folder_that_cannot_be_looked_into_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that another user has made, with sudo; a name that is too long fails for root too."""
    monkeypatch.setenv("COE_STATE_DIR", str(tmp_path / ("x" * 300)))
    monkeypatch.delenv("COE_NO_LOG", raising=False)
    kept, warning = history.record(exchange(), SETTINGS)
    assert kept is None and warning is not None and "this answer is not kept" in warning
    with pytest.raises(CoeError, match="cannot be used"):
        history.last_conversation(SETTINGS)


def test_what_was_recorded_comes_back(tmp_path: Path) -> None:
    with History(tmp_path / "h.db") as file:
        first = file.record(
            exchange(
                "What is 2+2?", "4", expert="mathematician", system="Be brief.", prompt_tokens=9, first_token_s=0.5
            )
        )
        assert file.record(exchange("And 3+3?", "6", system="Be brief."), first) == first
    with History(tmp_path / "h.db") as file:
        found = file.last_conversation()
        assert found is not None and found.id == first
        assert found.chat() == [
            ("system", "Be brief."),
            ("user", "What is 2+2?"),
            ("assistant", "4"),
            ("user", "And 3+3?"),
            ("assistant", "6"),
        ]
        assert (found.messages[2].prompt_tokens, found.messages[2].first_token_s) == (9, 0.5)
        assert found.messages[2].expert == "mathematician" and found.expert is None
        (row,) = file.conversations()
        assert (row.title, row.questions, row.model) == ("What is 2+2?", 2, "m")


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("any") / "h.db"
    with History(path) as file:
        number = None
        for question, answer in pairs:
            number = file.record(exchange(question, answer), number)
        assert number is not None
        found = [content for _, content in file.conversation(number).chat()]
        assert found == [text for pair in pairs for text in pair]


@given(st.text(max_size=40))
def test_no_search_is_an_error(tmp_path_factory: pytest.TempPathFactory, words: str) -> None:
    with History(tmp_path_factory.mktemp("search") / "h.db") as file:
        file.record(exchange("a needle", "in a haystack"))
        file.search(words)


@pytest.mark.parametrize("with_fts", [True, False])
def test_search(tmp_path: Path, with_fts: bool) -> None:
    with History(tmp_path / "h.db") as file:
        file._has_fts = file._has_fts and with_fts
        wanted = file.record(exchange("How does a mutex work?", "One thread at a time: 100% sure."))
        gone = file.record(exchange("What is a Mutex good for?", "x" * 500))
        file.record(exchange("Something else", "entirely"))
        assert {match.conversation_id for match in file.search("mutex")} == {wanted, gone}
        assert [match.conversation_id for match in file.search("MUTEX work")] == [wanted]
        assert file.search("mutex elephants") == [] == file.search("  ")
        (match,) = file.search("100%")
        assert (match.conversation_id, match.role) == (wanted, "assistant")
        assert "100%" in match.excerpt
        file.remove(gone)
        assert {match.conversation_id for match in file.search("mutex")} == {wanted}


def test_the_oldest_go_first_and_the_newest_stays(tmp_path: Path) -> None:
    with History(tmp_path / "h.db", max_conversations=3) as file:
        ids = [file.record(exchange(f"question {n}")) for n in range(5)]
        assert [row.id for row in file.conversations()] == ids[:1:-1]
        file.record(exchange("more"), ids[2])
        file.record(exchange("new"))
        assert ids[2] in [row.id for row in file.conversations()], "it was added to"
        assert file.search("question") and len(file.search("question")) == 2
    with History(tmp_path / "h.db", max_bytes=1) as file:
        last = file.record(exchange("the last"))
        assert [row.id for row in file.conversations()] == [last]


def test_what_was_added_to_last_is_the_last_at_one_reading_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows' clock goes by 15.6 ms, and any clock may be set back."""
    monkeypatch.setattr("time.time", iter([5.0, 5.0, 5.0, 5.0, 1.0]).__next__)
    with History(tmp_path / "h.db", max_conversations=3) as file:
        ids = [file.record(exchange(f"question {n}")) for n in range(3)]
        file.record(exchange("more"), ids[0])
        assert [row.id for row in file.conversations()] == [ids[0], ids[2], ids[1]]
        assert (found := file.last_conversation()) is not None and found.id == ids[0]
        new = file.record(exchange("new"))
        assert [row.id for row in file.conversations()] == [new, ids[0], ids[2]]


def test_the_file_stays_below_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    with History(path, max_bytes=300_000) as file:
        for _ in range(60):
            file.record(exchange("long", "word " * 4000))
        assert 1 < len(file.conversations(100)) < 20
    assert path.stat().st_size < 600_000


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_only_the_owner_may_read(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        with History(tmp_path / "state" / "h.db") as file:
            file.record(exchange())
            names = sorted(path.name for path in (tmp_path / "state").iterdir())
            assert names == ["h.db", "h.db-shm", "h.db-wal"]
            for path in (tmp_path / "state").iterdir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    finally:
        os.umask(previous)


def test_what_was_removed_is_not_in_the_files_any_more(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    with History(path) as file:
        kept = file.record(exchange("kept question"))
        file.remove(file.record(exchange("Xyzzysecret", "plughsecret")))
        for part in tmp_path.iterdir():
            assert b"secret" not in part.read_bytes().lower(), part
        assert file.conversation(kept)
        assert file.clear() == 1
        for part in tmp_path.iterdir():
            assert b"kept question" not in part.read_bytes(), part
        assert file.last_conversation() is None and file.search("kept") == []


def test_unknown_conversations(tmp_path: Path) -> None:
    with History(tmp_path / "h.db") as file:
        with pytest.raises(UsageError, match="no conversation 7"):
            file.conversation(7)
        with pytest.raises(UsageError):
            file.remove(7)
        assert file.record(exchange(), 7) != 7, "a conversation that is gone is begun anew"


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(CoeError, match="newer"):
        History(path)


def test_an_index_that_is_missing_is_made(tmp_path: Path) -> None:
    """As when the file was written by a SQLite without FTS5."""
    path = tmp_path / "h.db"
    with History(path) as file:
        file.record(exchange("findable"))
        file._db.execute("DROP TABLE messages_fts")
    with History(path) as file:
        assert len(file.search("findable")) == 1


def test_many_writers_at_once(tmp_path: Path) -> None:
    def write(number: int) -> int:
        with History(tmp_path / "h.db") as file:
            return file.record(exchange(f"question {number}"))

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(write, range(24)))
    with History(tmp_path / "h.db") as file:
        assert len(set(ids)) == 24 == len(file.conversations(100))


@pytest.mark.long
def test_many_open_a_new_file_at_the_same_moment(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def write(path: Path) -> int:
        together.wait()
        with History(path) as file:
            return file.record(exchange("a question"))

    with ThreadPoolExecutor(8) as pool:
        for number in range(30):
            assert len(set(pool.map(write, [tmp_path / f"{number}.db"] * 8))) == 8


# --- whether it is kept


def test_record_and_continue(state: Path) -> None:
    first, warning = history.record(exchange("one"), SETTINGS)
    assert first is not None and warning is None
    assert history.record(exchange("two"), SETTINGS, conversation_id=first) == (first, None)
    assert [m.content for m in history.last_conversation(SETTINGS).messages if m.role == "user"] == ["one", "two"]


def test_nothing_to_continue(state: Path) -> None:
    with pytest.raises(UsageError, match="no conversation"):
        history.last_conversation(SETTINGS)
    assert not state.exists(), "looking makes no file"


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_the_environment_turns_it_off(state: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("COE_NO_LOG", value)
    assert history.record(exchange(), SETTINGS) == (None, None)
    assert not state.exists()
    monkeypatch.setenv("COE_NO_LOG", "0")
    assert history.record(exchange(), SETTINGS)[0] is not None


def test_flag_switch_and_profile_turn_it_off(state: Path) -> None:
    assert history.record(exchange(), SETTINGS, no_log=True) == (None, None)
    assert history.record(exchange(), HistorySettings(enabled=False)) == (None, None)
    assert not state.exists()
    history.switch_logging(False)
    assert history.record(exchange(), SETTINGS) == (None, None)
    history.switch_logging(True)
    assert history.record(exchange(), SETTINGS)[0] is not None


def test_a_damaged_file_costs_a_warning_and_no_answer(state: Path) -> None:
    state.mkdir()
    (state / "history.db").write_bytes(b"this is no database" * 100)
    number, warning = history.record(exchange(), SETTINGS)
    assert number is None
    assert warning is not None and "not kept" in warning and "Move the file away" in warning
    with pytest.raises(CoeError, match="history"):
        history.last_conversation(SETTINGS)


def test_the_key_of_the_profile_file(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("history: {enabled: false, max_conversations: 5}\n")
    assert load_profiles(profile_paths()).history == HistorySettings(enabled=True, max_conversations=1000)
    assert load_profiles(profile_paths(own)).history == HistorySettings(enabled=False, max_conversations=5)
    own.write_text("history:\n  max_conversations: 0\n")
    with pytest.raises(ProfileInvalid, match=r"own\.yaml:2: history\.max_conversations"):
        load_profiles(profile_paths(own))
