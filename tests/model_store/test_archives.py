"""`coe models pull file:…` of archives, and what is in some of them."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import shutil
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from coe_cli.errors import DiskFull
from coe_cli.runtime.store import archives
from coe_cli.runtime.store.archives import is_archive, unpack
from coe_cli.runtime.store.source_errors import SourceFailed
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


# --- what an archive says of itself is not believed


def bomb_zip(path: Path) -> Path:
    """A hundred thousandth of what it unpacks to."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("model.onnx.data", "w") as member:
        for _ in range(8):
            member.write(bytes(2**20))
    return path


def bomb_tar(path: Path) -> Path:
    class Zeros(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    with tarfile.open(path, "w:gz", compresslevel=1) as rolled:
        entry = tarfile.TarInfo("model.onnx.data")
        entry.size = 8 * 2**20
        rolled.addfile(entry, Zeros())
    return path


def lying_zip(path: Path) -> Path:
    """More is in the member than its header says."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("genai_config.json", b"x" * 1000)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<I", 1000), struct.pack("<I", 10)))
    return path


def endless_zip(path: Path) -> Path:
    """Sizes of 2^60 in zip64 records."""
    with zipfile.ZipFile(path, "w") as packed, packed.open("model.onnx", "w", force_zip64=True) as member:
        member.write(b"x" * 1000)
    raw = path.read_bytes()
    at = raw.rindex(b"PK\x01\x02")
    name, extra = b"model.onnx", struct.pack("<HHQ", 1, 8, 2**60)
    entry = bytearray(raw[at : at + 46])
    entry[24:28] = b"\xff" * 4
    entry[28:34] = struct.pack("<HHH", len(name), len(extra), 0)
    central = bytes(entry) + name + extra
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(central), at, 0)
    path.write_bytes(raw[:at] + central + end)
    return path


def many_members(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(101):
            packed.writestr(zipfile.ZipInfo(f"{number}"), b"")
    return path


def long_list(path: Path) -> Path:
    """A list of contents of 9 MB, which would be read whole."""
    central = bytes(9 * 2**20)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(central), 0, 0)
    path.write_bytes(central + end)
    return path


def long_header(path: Path) -> Path:
    """A tar member whose extended header has a gigabyte: a reader takes it whole."""
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, 2**30
    with gzip.open(path, "wb") as file:
        file.write(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(2**20))
    return path


def twice(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed.writestr("a", b"1")
        packed.writestr("a", b"2")
    return path


def file_and_folder(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a", b"1")
        packed.writestr("a/b", b"2")
    return path


def other_method(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("genai_config.json", b"{}" * 1000)
    return path


def hungry_xz(path: Path) -> Path:
    """It says that it takes 3 GB to unpack."""
    raw = bytearray(lzma.compress(tarfile.TarInfo("a").tobuf()))
    assert raw[14] == 0x21  # a block's header: size, flags, LZMA2, 1, dictionary, padding, CRC-32
    raw[16] = 39
    end = 12 + (raw[12] + 1) * 4
    raw[end - 4 : end] = struct.pack("<I", zlib.crc32(raw[12 : end - 4]))
    path.write_bytes(raw)
    return path


def cut(kind: str, at: float) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        archive_of(kind, {"model.onnx": os.urandom(20_000), "genai_config.json": b"{}" * 500}, path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * at)])
        return path

    return make


def flipped(path: Path) -> Path:
    """Bytes in the middle of a packed member are others."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("model.onnx", os.urandom(2000).hex())
    raw = bytearray(path.read_bytes())
    raw[200:400] = b"\xff" * 200
    path.write_bytes(raw)
    return path


def sparse(path: Path) -> Path:
    entry = tarfile.TarInfo("a")
    entry.type = tarfile.GNUTYPE_SPARSE
    path.write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return path


def long_name(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as rolled:
        rolled.addfile(tarfile.TarInfo("a/" * 600 + "b"))
    return path


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "bomb": (bomb_zip, "would unpack to more than"),
    "rolled bomb": (bomb_tar, "unpack"),
    "more than it says": (lying_zip, "came damaged"),
    "sizes of 2^60": (endless_zip, "would unpack to more than"),
    "many files": (many_members, "more than 100 files"),
    "long list": (long_list, "came damaged: it has a header of"),
    "twice": (twice, "twice in its archive"),
    "file and folder": (file_and_folder, "needs a folder"),
    "another method": (other_method, "packed in a way"),
    "flipped": (flipped, "came damaged"),
    "sparse": (sparse, "a link or a device"),
    "long name": (long_name, "has a name that is none"),
    **{f"{kind} cut at {at}": (cut(kind, at), "came damaged") for kind in ("tar",) for at in (0.5, 0.9)},
}


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bombs of a few megabytes are enough."""
    monkeypatch.setattr(archives, "SPARE_BYTES", 2**20)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 100)


@pytest.mark.parametrize("animal", HOSTILE)
@pytest.mark.usefixtures("small_bounds")
def test_hostile_archives_leave_nothing(tmp_path: Path, animal: str) -> None:
    make, says = HOSTILE[animal]
    path, target = make(tmp_path / "archive"), tmp_path / "target"
    rooms: list[int] = []
    assert is_archive(path)
    with pytest.raises(SourceFailed, match=says):
        unpack(path, None, target, rooms.append)
    assert not target.exists()


@pytest.mark.parametrize("make", [long_header, hungry_xz])
def test_what_is_not_even_looked_into(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "archive")
    tracemalloc.start()
    assert not is_archive(path)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()


@pytest.mark.usefixtures("small_bounds")
def test_a_hostile_archive_is_refused_by_pull_and_leaves_nothing(coe: Coe, tmp_path: Path) -> None:
    result = pull(coe, f"file:{bomb_zip(tmp_path / 'tiny.zip')}")
    assert result.code == 4 and "would unpack to more than" in result.stderr
    assert_nothing(coe)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_room_for_all_of_it_is_asked_for_before_anything_is_written(tmp_path: Path, kind: str) -> None:
    path, target = archive_of(kind, {"m/a": b"1" * 1000, "m/b": b"2" * 500, "c": b"3"}, tmp_path / "a"), tmp_path / "t"
    rooms: list[int] = []

    def refuse(needed: int) -> None:
        assert not target.exists()
        rooms.append(needed)
        raise DiskFull("no room", "")

    for member in (None, "m", "m/b"):
        with pytest.raises(DiskFull):
            unpack(path, member, target, refuse)
    assert rooms == [1501, 1500, 500]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive_of("zip", {"a": b"1", "b": b"2"}, tmp_path / "a.zip")
    copy = shutil.copyfileobj

    def full_at_the_second(source: IO[bytes], target: IO[bytes], size: int) -> None:
        if target.name.endswith("b"):
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target, size)

    monkeypatch.setattr(shutil, "copyfileobj", full_at_the_second)
    with pytest.raises(OSError, match="No space"):
        unpack(path, None, tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_kind_of_tar_is_read(tmp_path: Path, mode: Any) -> None:
    content = {"m/a": os.urandom(300_000), "m/b/c": b"2"}
    with tarfile.open(tmp_path / "a", mode) as rolled:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            rolled.addfile(entry, io.BytesIO(data))
    assert is_archive(tmp_path / "a")
    unpack(tmp_path / "a", "m", tmp_path / "t")
    assert (tmp_path / "t" / "a").read_bytes() == content["m/a"]
    assert (tmp_path / "t" / "b" / "c").read_bytes() == b"2"
