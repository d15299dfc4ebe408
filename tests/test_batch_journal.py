"""The journal and its results: whatever a killed process leaves behind, what is whole is kept and the rest is cut off."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coe_cli.errors import CoeError, UsageError
from coe_cli.runtime.batch.batch_journal import Header, Journal

HEADER = Header("00ff", {"keep_order": False})
ROWS = [
    (3, b'{"a":1}\n', True),
    (1, b'{"b":"\xc3\xa4"}\n', False),
    (2, b"{}\n", True),
    (9, b'{"long":"' + b"x" * 50 + b'"}\n', True),
]


def open_in(folder: Path, header: Header = HEADER) -> Journal:
    return Journal(folder / "journal", folder / "out", header)


def write_all(folder: Path) -> None:
    journal = open_in(folder)
    journal.write_routes({5: "e"})
    for line, data, ok in ROWS:
        journal.write(line, data, ok=ok)
    journal.write_routes({6: "f"})
    journal.close()


def test_everything_is_there_again(tmp_path: Path) -> None:
    write_all(tmp_path)
    journal = open_in(tmp_path)
    assert list(journal.lines) == [3, 1, 2, 9]
    assert list(journal.ok) == [1, 0, 1, 1]
    assert journal.routed == {5: "e", 6: "f"}
    assert [journal.read(position) for position in range(4)] == [data for _, data, _ in ROWS]
    journal.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_all(folder)
    return folder


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_torn_end_costs_only_what_was_not_whole(tmp_path: Path, whole: Path, data: st.DataObject) -> None:
    """The journal is cut anywhere; the results end anywhere up to what the journal knows, as its entries go first."""
    folder = tmp_path / "torn"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    entries, results = (whole / "journal").read_bytes(), (whole / "out").read_bytes()
    head = entries.index(b"\n") + 1
    cut = data.draw(st.integers(head, len(entries)))
    known = [json.loads(line) for line in entries[head:cut].split(b"\n")[:-1]]
    most = sum(entry.get("bytes", 0) for entry in known)
    kept = data.draw(st.integers(0, most))
    (folder / "journal").write_bytes(entries[:cut])
    (folder / "out").write_bytes(results[:kept])
    journal = open_in(folder)
    expected, size = [], 0
    for entry in known:
        if "bytes" in entry:
            size += entry["bytes"]
            if size > kept:
                break
            expected.append(entry["line"])
    assert list(journal.lines) == expected
    for line, row, ok in ROWS:
        if line not in expected:
            journal.write(line, row, ok=ok)
    journal.close()
    again = open_in(folder)
    assert sorted(again.lines) == [1, 2, 3, 9]
    again.close()
    assert sorted((folder / "out").read_bytes().splitlines()) == sorted(results.splitlines())


@pytest.mark.parametrize("kept_renames", range(4))
def test_errors_are_forgotten_wholly_or_not_at_all(
    tmp_path: Path, whole: Path, kept_renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before the first rename of a file, before the second …, or not at all."""
    folder = tmp_path / "batch"
    shutil.copytree(whole, folder)
    (folder / "out").chmod(0o640)
    real_replace = Path.replace
    renamed: list[Path] = []

    def replace(self: Path, target: Path) -> Path:
        if len(renamed) == kept_renames:
            raise KeyboardInterrupt
        renamed.append(target)
        return real_replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if kept_renames < 3:
            with pytest.raises(KeyboardInterrupt):
                Journal(folder / "journal", folder / "out", HEADER, forget_errors=True)
        else:
            journal = Journal(folder / "journal", folder / "out", HEADER, forget_errors=True)
            assert journal.forgotten == 1
            journal.close()
    journal = open_in(folder)
    kept = ROWS if kept_renames == 0 else [row for row in ROWS if row[2]]
    assert [journal.read(position) for position in range(len(journal.lines))] == [data for _, data, _ in kept]
    assert (list(journal.lines), list(journal.ok)) == ([row[0] for row in kept], [row[2] for row in kept])
    assert journal.routed == {5: "e", 6: "f"}
    journal.write(1, b"{}\n", ok=True)
    journal.close()
    assert (folder / "out").read_bytes() == b"".join(data for _, data, _ in kept) + b"{}\n"
    assert os.name == "nt" or oct((folder / "out").stat().st_mode & 0o777) == "0o640"
    Journal(folder / "journal", folder / "out", HEADER, forget_errors=True).close()


def test_a_process_killed_before_its_header_leaves_a_new_batch(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b'{"input_sha')
    open_in(tmp_path).close()
    write_all(tmp_path)


def test_results_that_somebody_changed_are_not_thrown_away(tmp_path: Path) -> None:
    write_all(tmp_path)
    text = (tmp_path / "out").read_bytes()
    changed = text.replace(b'"a":1', b'"a":2')
    (tmp_path / "out").write_bytes(changed)
    with pytest.raises(UsageError, match=r"was changed since coe wrote it \(the answer to line 3\)"):
        open_in(tmp_path)
    assert (tmp_path / "out").read_bytes() == changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text + b'{"mine":1}\n', r"11 bytes were added after byte .* Cut it off at byte"),
        (lambda text: b"", "it has 0 bytes where"),
        (lambda text: text[:-1], "bytes where"),
        (lambda text: text.decode().encode("utf-16"), "the answer to line 3"),
        (lambda text: text.replace(b"\n", b"\r\n"), "the answer to line 3"),
        (lambda text: b"\xef\xbb\xbf" + text, "the answer to line 3"),
        (lambda text: text.replace(b"xx}", b"yy}").replace(b'xx"', b'yy"'), "the answer to line 9"),
    ],
    ids=["a line added", "emptied", "cut", "re-encoded", "other line ends", "a mark before it", "the last answer"],
)
def test_an_output_that_others_touched_is_refused_and_left_as_it_is(
    tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    write_all(tmp_path)
    journal = open_in(tmp_path)
    journal.write(4, b"{}\n", ok=True)
    journal.sync()
    journal.close()
    changed = change((tmp_path / "out").read_bytes())
    (tmp_path / "out").write_bytes(changed)
    entries = (tmp_path / "journal").read_bytes()
    with pytest.raises(UsageError) as refused:
        open_in(tmp_path)
    assert re.search(said, f"{refused.value.message} {refused.value.hint}")
    assert (tmp_path / "out").read_bytes() == changed and (tmp_path / "journal").read_bytes() == entries


_CHANGES = {"line": 7, "bytes": 1, "crc32": 5, "ok": False, "routed": {"5": "z"}, "synced": 3, "check": 1}


@pytest.mark.parametrize("key", list(_CHANGES))
@pytest.mark.parametrize("more", [0, 1000])
def test_a_changed_field_of_any_entry_is_found(tmp_path: Path, key: str, more: int) -> None:
    write_all(tmp_path)
    head, *entries = (tmp_path / "journal").read_bytes().splitlines(keepends=True)
    for number, entry in enumerate(entries):
        fields = json.loads(entry)
        value = _CHANGES[key]
        fields[key] = fields[key] + more if more and isinstance(fields.get(key), int) else value
        if fields == json.loads(entry):
            continue
        changed = [*entries[:number], json.dumps(fields).encode() + b"\n", *entries[number + 1 :]]
        (tmp_path / "journal").write_bytes(head + b"".join(changed))
        with pytest.raises(UsageError, match="is damaged at byte"):
            open_in(tmp_path)


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path)
    content = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(content.replace(b'"line":1', b'"line"#1'))
    with pytest.raises(UsageError, match="is damaged at byte"):
        open_in(tmp_path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (Header("1234", {"keep_order": False}), "the input has changed"),
        (Header("00ff", {"keep_order": True}), r"the options have \(keep_order\) changed"),
        (Header("00ff", {"keep_order": False}, format=1), r"another version of coe \(its journal has format 2"),
    ],
)
def test_another_batch_is_refused(tmp_path: Path, header: Header, reason: str) -> None:
    write_all(tmp_path)
    with pytest.raises(UsageError, match=reason):
        open_in(tmp_path, header)


def test_a_file_that_is_no_batch_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious\n")
    with pytest.raises(UsageError, match="exists already"):
        open_in(tmp_path)
    assert (tmp_path / "out").read_text() == "precious\n"


def test_a_folder_in_its_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CoeError, match="cannot be used"):
        open_in(tmp_path)
