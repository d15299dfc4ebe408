"""Reads YAML files: profiles and catalog as this user has them, with what was read of them kept for the next start.

Reading the YAML costs more than all else that a listing does. What was read is kept in the cache folder and used again
while every file is the same by path, size and modification time, and coe is of the same version.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from coe_cli import __version__
from coe_cli.core.text_encoding import decode_text
from coe_cli.errors import ProfileInvalid, first_line
from coe_cli.runtime.atomic_write import atomic_write
from coe_cli.runtime.folders import catalog_paths, folders, own_catalog, own_profiles, profile_paths
from coe_cli.runtime.regular_file import read_regular

if TYPE_CHECKING:
    from coe_cli.core.documents import Document
    from coe_cli.core.hardware.profile import ProfileSet
    from coe_cli.core.layers import Layers
    from coe_cli.core.models.catalog import Catalog

T = TypeVar("T", bound=msgspec.Struct)
MAX_BYTES = 8 * 2**20
"""Of a YAML file; the shipped examples have half a megabyte."""
_TICK_NS = 50_000_000
"""More than a step of the clock that files are dated by: on Windows 15.6 ms."""


def read_document(path: Path) -> Document:
    """The YAML file ``path``.

    Raises:
        ProfileInvalid: it cannot be read, is not YAML, or writes a key twice.
    """
    from coe_cli.core.documents import Document

    try:
        text = decode_text(read_regular(path, MAX_BYTES))  # editors on Windows write a BOM, PowerShell UTF-16
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ProfileInvalid(f"{path}: cannot be read: {reason}", "Check the path and its permissions.") from None
    return Document(path, text)


def load_profiles(paths: list[Path], own: Path | None = None) -> ProfileSet:
    """Read profile files, the first one complete and each later one merged over those before it by key.

    A broken entry of the file ``own`` is left out (see ``build_layers``).

    Raises:
        ProfileInvalid: another file is unreadable or breaks the schema, or a threshold is out of order.
    """
    from coe_cli.core.hardware.profile import profiles_of

    return _load(paths, own, profiles_of)


def load_catalog(paths: list[Path], own: Path | None = None, on_disk: Collection[str] = ()) -> Catalog:
    """Read catalog files, merged as ``load_profiles`` does it; ``on_disk`` are the names of the models in the models folder.

    Raises:
        ProfileInvalid: another file than ``own`` is unreadable, breaks the schema, or names a model that does not exist.
    """
    from coe_cli.core.models.catalog import catalog_of

    return _load(paths, own, functools.partial(catalog_of, on_disk=on_disk))


def _load(paths: list[Path], own: Path | None, build: Callable[[Layers], T]) -> T:
    """What ``build`` makes of these files, with their ``paths`` and with the ``problems`` of the file ``own``."""
    from coe_cli.core.layers import build_layers
    from coe_cli.core.problem import Problem

    problems: dict[str, Problem] = {}
    documents: list[Document] = []
    for path in paths:
        try:
            documents.append(read_document(path))
        except ProfileInvalid as error:
            if path != own:
                raise
            problems[""] = Problem(error.message, error.hint)
    value, broken = build_layers(documents, own, build)
    return msgspec.structs.replace(value, paths=tuple(paths), problems=problems | broken)


def read_profiles(extra: Path | None = None) -> ProfileSet:
    """The profiles in force; ``extra`` wins over the user's file, that over the shipped one.

    Raises:
        ProfileInvalid: a file other than the user's is wrong; what is wrong in that one is among the ``problems``.
    """
    from coe_cli.core.hardware.profile import ProfileSet

    paths = profile_paths(extra)
    return _kept("profiles", paths, [], ProfileSet, lambda: load_profiles(paths, own_profiles()))


def read_catalog(extra: Path | None = None) -> Catalog:
    """The catalog in force; ``extra`` wins over the user's file, that over the shipped one.

    An expert may use any model of the models folder.

    Raises:
        ProfileInvalid: a file other than the user's is wrong; what is wrong in that one is among the ``problems``.
    """
    from coe_cli.core.models.catalog import Catalog
    from coe_cli.runtime.model_folder.on_disk import models_on_disk

    paths, on_disk = catalog_paths(extra), list(models_on_disk(folders().models))
    return _kept("catalog", paths, on_disk, Catalog, lambda: load_catalog(paths, own_catalog(), on_disk))


def settings_digest(profiles_file: Path | None, catalog_file: Path | None) -> str:
    """What tells one content of all profile and catalog files in force from another; '' where one cannot be read.

    The embedder that ``COE_EMBEDDER`` names belongs to it: a college routes by its own.
    """
    import hashlib

    digest = hashlib.sha256(os.environ.get("COE_EMBEDDER", "").encode("utf-8", "surrogateescape"))
    try:
        for path in (*profile_paths(profiles_file), *catalog_paths(catalog_file)):
            digest.update(hashlib.sha256(read_regular(path, MAX_BYTES)).digest())
    except OSError:
        return ""
    return digest.hexdigest()


def _kept(name: str, paths: list[Path], names: list[str], kind: type[T], load: Callable[[], T]) -> T:
    """What ``load`` gives for these files and ``names``, or has given before."""
    cache = folders().cache / f"{name}.msgpack"
    stamp = _stamp(paths, names)
    if stamp is not None:
        with contextlib.suppress(OSError, msgspec.MsgspecError, ValueError):
            mark, content = msgspec.msgpack.decode(cache.read_bytes(), type=tuple[str, msgspec.Raw])
            if mark == stamp:
                return msgspec.msgpack.decode(content, type=kind, dec_hook=_path)
    value = load()
    if stamp is not None and stamp == _stamp(paths, names):
        content = msgspec.Raw(msgspec.msgpack.encode(value, enc_hook=str))
        with contextlib.suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(cache) as scratch:
                scratch.write_bytes(msgspec.msgpack.encode((stamp, content)))
    return value


def _stamp(paths: list[Path], names: list[str]) -> str | None:
    """What tells one state of the files and names from another; None when a file is not there, or so new that
    it may be written once more without another time."""
    parts = [__version__, *names]
    try:
        for path in paths:
            facts = path.stat()
            if abs(time.time_ns() - facts.st_mtime_ns) < _TICK_NS:
                return None
            parts.append(f"{path.absolute()}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ino}")
    except OSError:
        return None
    return "\n".join(parts)


def _path(kind: type, value: str) -> Path:
    return Path(value)
