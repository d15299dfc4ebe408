"""Files that are there as a whole or not at all, and models that share files by hard links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from operating_system import WINDOWS, make_link

from coe_cli.runtime.atomic_write import atomic_write, written_out
from coe_cli.runtime.own_settings import set_setting
from coe_cli.runtime.store.integrity import MANIFEST, read_manifest, write_manifest


def test_it_appears_with_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with atomic_write(path) as scratch:
        scratch.write_text("new")
        assert not path.exists() and scratch.suffix == ".json"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_breaks_off_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as scratch:
        scratch.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_the_user_has_named_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /dev/stdout is one, which `-o /dev/stdout` took the place of, and settings that are kept elsewhere."""
    kept, link = tmp_path / "kept.yaml", tmp_path / "hardware_profiles.yaml"
    kept.write_text("# mine\n")
    make_link(link, kept)
    monkeypatch.setenv("COE_CONFIG_DIR", str(tmp_path))
    assert set_setting("profile", "compact").path == link
    assert link.is_symlink() and "default_profile: compact" in kept.read_text()
    with written_out(link) as target:
        target.write_text("answer")
    assert link.is_symlink() and kept.read_text() == "answer"


@pytest.mark.skipif(WINDOWS, reason="a FIFO of POSIX systems")
def test_what_is_no_file_is_written_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with written_out(pipe) as target:
        assert target == pipe


def test_the_record_of_a_copy_by_hard_links_is_its_own(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (first / "model.onnx").write_bytes(b"graph")
    write_manifest(first, {"uri": "hf:someone/tiny"})
    for file in first.iterdir():
        os.link(file, second / file.name)
    write_manifest(second, {})
    found = read_manifest(first)
    assert found is not None and found["origin"] == {"uri": "hf:someone/tiny"}
    assert (first / MANIFEST).read_text() != (second / MANIFEST).read_text()
