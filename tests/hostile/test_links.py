"""Links in what `coe models pull file:…` is given: none is followed out of the folder, and none leads it in a circle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model
from operating_system import make_fifo, make_link

from coe_cli.errors import ModelDamaged
from coe_cli.runtime.store.model_store import open_model

SECRET = "known to nobody else"


def to_file(folder: Path, outside: Path) -> None:
    make_link(folder / "notes.txt", outside / "secret")


def relative(folder: Path, outside: Path) -> None:
    make_link(folder / "notes.txt", "../outside/secret")


def to_folder(folder: Path, outside: Path) -> None:
    make_link(folder / "more", outside)


def over_a_link(folder: Path, outside: Path) -> None:
    make_link(folder / "b", outside / "secret")
    make_link(folder / "a", "b")


def to_nothing(folder: Path, outside: Path) -> None:
    make_link(folder / "notes.txt", outside / "nothing")


def to_itself(folder: Path, outside: Path) -> None:
    make_link(folder / "notes.txt", "notes.txt")


def to_the_folder(folder: Path, outside: Path) -> None:
    make_link(folder / "again", ".")


def to_a_device(folder: Path, outside: Path) -> None:
    make_link(folder / "notes.txt", "/dev/zero")


def fifo(folder: Path, outside: Path) -> None:
    make_fifo(folder / "notes.txt")


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


@pytest.mark.long
def test_a_link_inside_of_the_folder_becomes_the_file_that_it_leads_to(coe: Coe, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "given")
    (folder / "data").mkdir()
    (folder / "tokenizer.json").rename(folder / "data" / "tokenizer")
    make_link(folder / "tokenizer.json", "data/tokenizer")
    assert coe("models", "pull", f"file:{folder}").code == 0
    copy = coe.models / "given" / "tokenizer.json"
    assert not copy.is_symlink() and copy.read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "genai_config.json", "model.onnx.data"])
def test_a_model_whose_file_leads_to_itself_is_damaged(tmp_path: Path, name: str) -> None:
    folder = write_tiny_model(tmp_path / "beast")
    (folder / name).unlink()
    make_link(folder / name, name)
    with pytest.raises(ModelDamaged):
        open_model("beast", folder)
