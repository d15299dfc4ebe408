"""`coe models pull file:…` of archives, and what is in some of them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from model_store.conftest import Coe
from model_store.test_pull import assert_installed, assert_nothing, files_of, pull
from model_store.tiny_model import write_tiny_model


def archive_of(kind: str, members: dict[str, bytes], path: Path, link: str | None = None) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
            if link:
                info = zipfile.ZipInfo(link)
                info.external_attr = 0o120777 << 16
                packed.writestr(info, "/etc/passwd")
        return path
    with tarfile.open(path, "w:gz") as rolled:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            rolled.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            rolled.addfile(entry)
    return path


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("below", ["", "model/"])
def test_an_archive_of_a_model(coe: Coe, tmp_path: Path, kind: str, below: str) -> None:
    files = files_of(write_tiny_model(tmp_path / "source"))
    archive = archive_of(kind, {below + name: data for name, data in files.items()}, tmp_path / "tiny.zip")
    result = pull(coe, f"file:{archive}")
    assert result.code == 0, result.stderr
    assert_installed(coe, files)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../evil", "/tmp/coe-evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_members_that_climb_out(coe: Coe, tmp_path: Path, kind: str, name: str) -> None:
    files = files_of(write_tiny_model(tmp_path / "source"))
    result = pull(coe, f"file:{archive_of(kind, {**files, name: b'evil'}, tmp_path / 'tiny.zip')}")
    assert result.code == 4
    assert "outside of its archive" in result.stderr or "has no genai_config.json" in result.stderr
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/coe-evil").exists()
    assert_nothing(coe)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_archives(coe: Coe, tmp_path: Path, kind: str) -> None:
    files = files_of(write_tiny_model(tmp_path / "source"))
    result = pull(coe, f"file:{archive_of(kind, files, tmp_path / 'tiny.zip', link='secret.json')}")
    assert result.code == 4
    assert "has a link" in result.stderr
    assert_nothing(coe)
