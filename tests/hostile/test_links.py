"""Links in what `coe models pull file:…` is given: none is followed out of the folder, and none leads it in a circle."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model

from coe_cli.errors import ModelDamaged
from coe_cli.runtime.store.model_store import open_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
SECRET = "known to nobody else"


def to_file(folder: Path, outside: Path) -> None:
    (folder / "notes.txt").symlink_to(outside / "secret")


def relative(folder: Path, outside: Path) -> None:
    (folder / "notes.txt").symlink_to("../outside/secret")


def to_folder(folder: Path, outside: Path) -> None:
    (folder / "more").symlink_to(outside, target_is_directory=True)


def over_a_link(folder: Path, outside: Path) -> None:
    (folder / "b").symlink_to(outside / "secret")
    (folder / "a").symlink_to("b")


def to_nothing(folder: Path, outside: Path) -> None:
    (folder / "notes.txt").symlink_to(outside / "nothing")


def to_itself(folder: Path, outside: Path) -> None:
    (folder / "notes.txt").symlink_to("notes.txt")


def to_the_folder(folder: Path, outside: Path) -> None:
    (folder / "again").symlink_to(".", target_is_directory=True)


def to_a_device(folder: Path, outside: Path) -> None:
    (folder / "notes.txt").symlink_to("/dev/zero")


def fifo(folder: Path, outside: Path) -> None:
    os.mkfifo(folder / "notes.txt")


LINKS: dict[Callable[[Path, Path], None], str] = {
    to_file: "has a link out of its folder: 'notes.txt'",
    relative: "has a link out of its folder: 'notes.txt'",
    to_folder: "has a link out of its folder: 'more'",
    over_a_link: "has a link out of its folder",
    to_nothing: "has a link out of its folder: 'notes.txt'",
    to_itself: "notes.txt is not a regular file",
    to_the_folder: "has a link to a folder: 'again'",
    to_a_device: "has a link out of its folder: 'notes.txt'",
    fifo: "notes.txt is not a regular file",
}


@pytest.mark.parametrize("make", LINKS, ids=lambda make: make.__name__)
def test_a_source_with_such_a_link_is_refused(coe: Coe, tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    make(write_tiny_model(tmp_path / "given"), outside)
    done = coe("models", "pull", f"file:{tmp_path / 'given'}")
    assert done.code == 4 and LINKS[make] in done.stderr, done.stderr
    assert not (coe.models / "given").exists()
    assert not any(SECRET in path.read_text() for path in coe.models.rglob("*") if path.is_file())


def test_a_link_inside_of_the_folder_becomes_the_file_that_it_leads_to(coe: Coe, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "given")
    (folder / "data").mkdir()
    (folder / "tokenizer.json").rename(folder / "data" / "tokenizer")
    (folder / "tokenizer.json").symlink_to("data/tokenizer")
    assert coe("models", "pull", f"file:{folder}").code == 0
    copy = coe.models / "given" / "tokenizer.json"
    assert not copy.is_symlink() and copy.read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "genai_config.json", "model.onnx.data"])
def test_a_model_whose_file_leads_to_itself_is_damaged(tmp_path: Path, name: str) -> None:
    folder = write_tiny_model(tmp_path / "beast")
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    with pytest.raises(ModelDamaged):
        open_model("beast", folder)
