"""A file or folder that another program holds for a moment, as on Windows: coe tries again, and loses no finished work."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coe_cli import replacing
from coe_cli.replacing import move, when_free
from coe_cli.runtime.atomic_write import atomic_write
from coe_cli.runtime.server import pid_file
from coe_cli.runtime.server.discovery import CollegeState, read_state, write_state
from coe_cli.runtime.store import model_removal
from coe_cli.runtime.store.integrity import write_manifest
from coe_cli.runtime.store.model_removal import ModelInUse, check_replaceable
from coe_cli.runtime.store.model_store import InUse, put_in_place, take_finished
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model

ORIGIN = {"uri": "hf:someone/tiny"}


def refusal(winerror: int | None) -> PermissionError:
    error = PermissionError(13, "The process cannot access the file")
    if winerror is not None:
        error.winerror = winerror  # type: ignore[attr-defined]
    return error


def refusing(times: int, winerror: int | None = 32) -> Callable[[], str]:
    left = [times]

    def action() -> str:
        if left[0]:
            left[0] -= 1
            raise refusal(winerror)
        return "done"

    return action


@pytest.mark.parametrize("winerror", [5, 32, 33, 145, 303])
def test_what_is_held_for_a_moment_is_tried_again(winerror: int) -> None:
    assert when_free(refusing(3, winerror)) == "done"


def test_a_file_that_is_held_is_opened_again_on_windows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening gives Python no more than EACCES there; elsewhere that is the owner's will."""
    monkeypatch.setattr(replacing, "WINDOWS", False)
    with pytest.raises(PermissionError):
        when_free(refusing(1, None))
    monkeypatch.setattr(replacing, "WINDOWS", True)
    assert when_free(refusing(3, None)) == "done"


@pytest.mark.parametrize(("times", "winerror"), [(1, 19), (10**9, 32)])
def test_what_stays_refused_is_an_error(times: int, winerror: int | None) -> None:
    with pytest.raises(PermissionError):
        when_free(refusing(times, winerror))


def hold_each_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Every file and folder is held when it is first touched, as a virus scanner would; how often that was, by function."""
    refused: Counter[str] = Counter()
    seen: set[tuple[object, ...]] = set()

    def hold(name: str, error: int | None) -> None:
        real = getattr(os, name)

        def function(path: Any, *arguments: Any, **options: Any) -> Any:
            if (key := (name, str(path), *map(str, arguments))) in seen:
                return real(path, *arguments, **options)
            seen.add(key)
            refused[name] += 1
            raise refusal(error)

        monkeypatch.setattr(os, name, function)

    for name, error in {"replace": 5, "unlink": 32, "rmdir": 145}.items():
        hold(name, error)
    return refused


def test_a_model_is_pulled_twice_and_removed_while_its_files_are_held(
    coe: Coe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiny_model(tmp_path / "source" / "tiny")
    refused = hold_each_for_a_moment(monkeypatch)
    assert coe("models", "pull", f"file:{source}", "--as-is").code == 0
    assert coe("models", "pull", f"file:{source}", "--as-is", "--force").code == 0
    assert coe("models", "rm", "tiny").code == 0
    left = {path.name for path in coe.models.iterdir()} - {".tiny.lock"}
    assert left == set() and {*refused} == {"replace", "unlink", "rmdir"}


def test_what_one_process_reads_while_another_replaces_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = CollegeState(1, "127.0.0.1", 1, "t", "1", 1.0, "embedded", str(tmp_path))
    write_state(tmp_path, state)
    pid_file.write(tmp_path / pid_file.COLLEGE, os.getpid())
    monkeypatch.setattr(replacing, "WINDOWS", True)
    for read in (lambda: read_state(tmp_path), lambda: pid_file.read(tmp_path / pid_file.COLLEGE)):
        real, left = os.open, [2]

        def held(*arguments: Any, real: Any = real, left: list[int] = left, **options: Any) -> Any:
            if left[0]:
                left[0] -= 1
                raise refusal(None)
            return real(*arguments, **options)

        monkeypatch.setattr(os, "open", held)
        assert read() is not None and left == [0]
        monkeypatch.setattr(os, "open", real)


def test_a_folder_is_emptied_whoever_else_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a"
    (place / "b").mkdir(parents=True)
    real, errors = shutil.rmtree, [refusal(303), FileNotFoundError(2, "gone meanwhile")]

    def rmtree(path: Path, **options: Any) -> None:
        if errors:
            raise errors.pop()
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert list(replacing.empty_folder(place).iterdir()) == [] and not errors
    replacing.remove_folder(place)
    replacing.remove_folder(place)
    replacing.remove_folder(tmp_path / "none", ignore_errors=True)


class Held:
    """A path that nobody may rename or replace while it is held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.path: Path | None = path
        real = Path.replace

        def replace(source: Path, target: Path) -> Path:
            if self.path in (source, Path(target)):
                raise refusal(5)
            return real(source, target)

        monkeypatch.setattr(Path, "replace", replace)

    def free(self) -> None:
        self.path = None


def test_a_file_is_written_as_soon_as_its_reader_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    held = Held(monkeypatch, path)
    threading.Timer(0.1, held.free).start()
    with atomic_write(path) as scratch:
        scratch.write_text("new")
    assert path.read_text() == "new"


def folder(path: Path, content: str, origin: dict[str, Any] = ORIGIN) -> Path:
    path.mkdir(parents=True)
    (path / "model.onnx").write_text(content)
    write_manifest(path, origin)
    return path


def test_a_finished_model_waits_for_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, staging = folder(tmp_path / "tiny", "old"), tmp_path / ".partial-tiny"
    held = Held(monkeypatch, target)
    with pytest.raises(InUse, match="is ready, but its old folder is in use"):
        put_in_place(folder(staging / "model", "new"), target)
    assert (target / "model.onnx").read_text() == "old"
    with pytest.raises(InUse):
        take_finished(target, lambda origin: origin == ORIGIN)
    held.free()
    assert take_finished(target, lambda origin: origin == ORIGIN)
    assert (target / "model.onnx").read_text() == "new"
    assert not take_finished(target, lambda origin: True)
    assert [path.name for path in tmp_path.iterdir() if path != staging] == ["tiny"]


def test_a_finished_model_of_another_origin_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder(tmp_path / "tiny", "old")
    held = Held(monkeypatch, target)
    with pytest.raises(InUse):
        put_in_place(folder(tmp_path / ".partial-tiny" / "model", "new"), target)
    held.free()
    assert not take_finished(target, lambda origin: origin == {"uri": "hf:other"})
    assert (target / "model.onnx").read_text() == "old"
    assert not list(tmp_path.glob(".finished-*"))


def test_a_model_in_use_is_refused_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_removal, "models_in_use", lambda models_dir: {"tiny": [7]})
    monkeypatch.setattr(model_removal, "RENAMES_REFUSED", True)
    check_replaceable("tiny", tmp_path)  # it is not there yet
    folder(tmp_path / "tiny", "old")
    with pytest.raises(ModelInUse, match="in use by process 7"):
        check_replaceable("tiny", tmp_path)
    monkeypatch.setattr(model_removal, "RENAMES_REFUSED", False)
    check_replaceable("tiny", tmp_path)


def test_a_name_that_is_free_is_taken_at_once(tmp_path: Path) -> None:
    move(folder(tmp_path / "a", "x"), tmp_path / "b")
    assert (tmp_path / "b" / "model.onnx").read_text() == "x"
