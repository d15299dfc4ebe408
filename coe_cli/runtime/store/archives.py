"""Unpack a folder out of a .zip (a wheel is one) or .tar archive; nothing ever lands outside of the destination.

What an archive says of itself is not believed: members are counted and their sizes summed before anything is written,
and no more is unpacked than was said.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, NamedTuple

from coe_cli.core.models.source_uri import check_member
from coe_cli.errors import UsageError, first_line
from coe_cli.replacing import remove_folder
from coe_cli.runtime.regular_file import open_regular
from coe_cli.runtime.store.bounded_stream import BoundedStream, Readable, TooLarge, XzStream
from coe_cli.runtime.store.source_errors import SourceFailed

MAX_MEMBERS: Final = 20_000
MAX_NAME_BYTES: Final = 1024
MAX_RATIO: Final = 100
"""Weights hardly shrink, and text shrinks tenfold."""
SPARE_BYTES: Final = 64 * 2**20
"""So much may be unpacked of an archive however small it is."""
_MAX_LIST_BYTES: Final = 8 * 2**20
"""Of the list of contents of a zip, which is read whole."""
_MAX_HEADER_BYTES: Final = 2**14
"""Of one member of a tar; searching a long header takes some versions of Python hours."""
_CHUNK_BYTES: Final = _MAX_HEADER_BYTES
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    TooLarge,
)


class _Member(NamedTuple):
    name: str
    size: int
    stream: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    if not path.is_file():
        return False
    if zipfile.is_zipfile(path):
        return True
    try:
        with _tar(path) as rolled:
            return rolled.next() is not None
    except (OSError, *_DAMAGED):
        return False


def unpack(
    archive: Path, member: str | None, destination: Path, check_room: Callable[[int], None] = lambda needed: None
) -> None:
    """Unpack the file or folder ``member``, or everything, into the folder ``destination``, which must not exist.

    ``check_room`` is told how many bytes will be written. After a failure nothing is left of it.

    Raises:
        SourceFailed: it is damaged, has no such member, holds more than an archive of its size can, or a member is a link,
            absolute, climbs out with `..` or is there twice.
        OSError: this machine's fault.
    """
    try:
        check_room(_look_through(archive, member))
        for inside, found in _wanted(archive, member):
            target = destination / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with found.stream() as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
                if file.tell() != found.size:
                    raise SourceFailed(f"came damaged: {found.name!r} has not the size that the archive says")
    except (*_DAMAGED, FileExistsError) as error:
        remove_folder(destination, ignore_errors=True)
        raise SourceFailed(f"came damaged: {first_line(error)}") from error
    except BaseException:
        remove_folder(destination, ignore_errors=True)
        raise


def _look_through(archive: Path, member: str | None) -> int:
    """How many bytes will be unpacked; nothing is."""
    limit, total = most_bytes(archive), 0
    names: set[str] = set()
    for inside, found in _wanted(archive, member):
        total += found.size
        if total > limit:
            raise SourceFailed(f"would unpack to more than {limit} bytes, which no model of its size does")
        if inside in names:
            raise SourceFailed(f"has {inside!r} twice in its archive")
        names.add(inside)
    for name in names:
        parts = name.split("/")
        if any("/".join(parts[:count]) in names for count in range(1, len(parts))):
            raise SourceFailed(f"has a file where {name!r} needs a folder in its archive")
    if not names:
        raise SourceFailed(f"has no file or folder {member}" if member else "is empty")
    return total


def most_bytes(archive: Path) -> int:
    """How many bytes an archive of this size may unpack to."""
    return archive.stat().st_size * MAX_RATIO + SPARE_BYTES


def _wanted(archive: Path, member: str | None) -> Iterator[tuple[str, _Member]]:
    for found in _members(archive):
        inside = _below(found.name, member)
        if inside is not None:
            yield inside, found


def _below(name: str, member: str | None) -> str | None:
    """Where ``name`` goes below the destination when ``member`` is unpacked, or None when it is not part of it."""
    if member is None:
        return name
    if name == member:
        return name.rsplit("/", 1)[-1]
    return name.removeprefix(member + "/") if name.startswith(member + "/") else None


def _members(archive: Path) -> Iterator[_Member]:
    """The files of an archive, in its order; each is read before the next one is asked for."""
    for count, found in enumerate(_all_of_zip(archive) if zipfile.is_zipfile(archive) else _all_of_tar(archive)):
        if count >= MAX_MEMBERS:
            raise SourceFailed(f"has more than {MAX_MEMBERS} files in its archive")
        if found is not None:
            yield found


def _all_of_zip(archive: Path) -> Iterator[_Member | None]:
    with _zip(archive) as opened:
        yield from (_zipped(opened, entry) for entry in opened.infolist())


def _all_of_tar(archive: Path) -> Iterator[_Member | None]:
    with _tar(archive) as opened:
        yield from (_rolled(opened, entry) for entry in opened)


def _zipped(opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member | None:
    if entry.is_dir():
        return None
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise SourceFailed(f"has a link in its archive: {entry.filename[:80]!r}")
    if entry.compress_type not in _METHODS:
        raise SourceFailed(f"is packed in a way that coe does not read (method {entry.compress_type})")
    return _Member(_checked(entry.filename), entry.file_size, lambda: opened.open(entry))


def _rolled(opened: tarfile.TarFile, entry: tarfile.TarInfo) -> _Member | None:
    if entry.isdir():
        return None
    if not entry.isfile() or entry.issparse():
        raise SourceFailed(f"has a link or a device in its archive: {entry.name[:80]!r}")

    def stream() -> IO[bytes]:
        content = opened.extractfile(entry)
        assert content is not None
        return content

    return _Member(_checked(entry.name.removeprefix("./")), entry.size, stream)


def _checked(name: str) -> str:
    try:
        if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES or not name.isprintable():
            raise SourceFailed(f"has a name that is none in its archive: {name[:80]!r}")
        return check_member(name)
    except UsageError:
        raise SourceFailed(f"has a path outside of its archive: {name[:80]!r}") from None


@contextmanager
def _zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    with open_regular(archive) as file, zipfile.ZipFile(BoundedStream(file, None, _MAX_LIST_BYTES)) as opened:
        yield opened


@contextmanager
def _tar(archive: Path) -> Iterator[tarfile.TarFile]:
    with open_regular(archive) as file:
        head = file.read(6)
        file.seek(0)
        source: Readable
        if head.startswith(b"\x1f\x8b"):
            source = gzip.GzipFile(fileobj=file)
        elif head.startswith(b"BZh"):
            source = bz2.BZ2File(file)
        elif head == b"\xfd7zXZ\x00":
            source = XzStream(file)
        else:
            source = file
        limit = None if source is file else most_bytes(archive) + MAX_MEMBERS * 4 * tarfile.BLOCKSIZE
        with tarfile.open(fileobj=BoundedStream(source, limit, _MAX_HEADER_BYTES), mode="r:") as opened:
            yield opened
