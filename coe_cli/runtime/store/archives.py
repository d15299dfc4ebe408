"""Unpack a folder out of a .zip (a wheel is one) or .tar archive; nothing ever lands outside of the destination."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from coe_cli.core.source_uri import check_member
from coe_cli.errors import UsageError
from coe_cli.runtime.store.source_errors import SourceFailed, first_line

_CHUNK_BYTES = 2**20


def is_archive(path: Path) -> bool:
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def unpack(archive: Path, member: str | None, destination: Path) -> None:
    """Unpack the file or folder ``member``, or everything, into the empty folder ``destination``.

    Raises:
        SourceFailed: it is damaged, has no such member, or a member is a link, absolute or climbs out with `..`.
    """
    found = False
    try:
        for name, stream in _members(archive):
            inside = _below(name, member)
            if inside is None:
                continue
            found = True
            target = destination / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_BYTES)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        NotImplementedError,
        FileExistsError,
        RuntimeError,
    ) as error:
        raise SourceFailed(f"came damaged: {first_line(error)}") from error
    if not found:
        raise SourceFailed(f"has no file or folder {member}" if member else "is empty")


def _below(name: str, member: str | None) -> str | None:
    """Where ``name`` goes below the destination when ``member`` is unpacked, or None when it is not part of it."""
    if member is None:
        return name
    if name == member:
        return name.rsplit("/", 1)[-1]
    return name.removeprefix(member + "/") if name.startswith(member + "/") else None


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if info.is_dir():
                    continue
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise SourceFailed(f"has a link in its archive: {info.filename!r}")
                with packed.open(info) as stream:
                    yield _checked(info.filename), stream
        return
    with tarfile.open(archive) as rolled:
        for entry in rolled:
            if entry.isdir():
                continue
            if not entry.isfile():
                raise SourceFailed(f"has a link or a device in its archive: {entry.name!r}")
            content = rolled.extractfile(entry)
            assert content is not None
            with content:
                yield _checked(entry.name.removeprefix("./")), content


def _checked(name: str) -> str:
    try:
        return check_member(name)
    except UsageError:
        raise SourceFailed(f"has a path outside of its archive: {name!r}") from None
