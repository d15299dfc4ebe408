"""In the worker: the folder that ONNX Runtime GenAI is given, so that it reads what was checked and nothing else.

OGA reads ``genai_config.json`` itself. So a model is shown to it through a folder of this process's own, with the checked
configuration, copies of the tokenizer's files, and one link to the model's folder, through which graphs and weights are
read. The folder lives as long as the process, since OGA reads ``tokenizer.json`` again for each grammar; what killed
processes leave is removed by those that come after them.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import IO

from coe_cli.core.models.genai_config import GENAI_CONFIG, GenaiConfig
from coe_cli.errors import CoeError
from coe_cli.replacing import remove_folder
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.model_ends import with_ends
from coe_cli.runtime.model_folder.model_files import MAX_TOKENIZER_BYTES, check_safe, read_config, tokenizer_files
from coe_cli.runtime.regular_file import read_regular

_LINK = "files"
_LOCK = ".lock"
_MIN_AGE_S = 60.0
_held: list[IO[bytes]] = []
"""Locks of this process's folders; the system frees them when it ends, however it ends."""


def private_folder(model_folder: Path) -> tuple[Path, GenaiConfig]:
    """A folder through which OGA may read the model in ``model_folder``, and the configuration that is in it.

    Raises:
        ModelDamaged: the model asks for something that is not allowed.
        CoeError: the folder cannot be made.
    """
    name = model_folder.name
    config = read_config(name, model_folder)
    check_safe(name, model_folder, config)
    config = with_ends(model_folder, config)
    try:
        own = _new_folder(name)
        for file in tokenizer_files(name, model_folder):
            copy = own / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(read_regular(model_folder / file, MAX_TOKENIZER_BYTES))
        (own / GENAI_CONFIG).write_text(config.with_files_below(_LINK), encoding="utf-8")
        target = model_folder.resolve()
        linked = _linked(own / _LINK, target) or _linked_file_by_file(own / _LINK, target)
        if not linked and config.content == config.written:
            return model_folder, config  # nothing was dropped, so OGA reads the same there
    except OSError as error:
        raise CoeError(
            f"the folder to load `{name}` from cannot be written: {error.strerror or error}",
            "Make room, or set COE_CACHE_DIR to a folder that can be written.",
        ) from None
    return own, config


def _new_folder(name: str) -> Path:
    """An empty folder that is this process's own, in coe's cache or else where the system keeps temporary files."""
    place = folders().cache / "loaded"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_left_over(place)
        own = place / f"{name}-{uuid.uuid4().hex[:12]}"
        own.mkdir(mode=0o700)
    except OSError:
        own = Path(tempfile.mkdtemp(prefix="coe-"))
    _hold(own)
    return own


def _linked(link: Path, target: Path) -> bool:
    """Make a link that reads as ``target``: on Windows a junction, which needs no privilege but NTFS."""
    if sys.platform != "win32":
        link.symlink_to(target, target_is_directory=True)
        return True
    import _winapi

    with contextlib.suppress(OSError):
        _winapi.CreateJunction(str(target), str(link))
    if (link / GENAI_CONFIG).is_file():
        return True
    with contextlib.suppress(OSError):
        link.rmdir()  # made, but not as a link: not every file system has junctions
    return False


def _linked_file_by_file(link: Path, target: Path) -> bool:
    """The same by hard links, where folders cannot be linked; not from one disk to another."""
    try:
        for file in target.rglob("*"):
            if file.is_file() and not file.is_symlink():
                place = link / file.relative_to(target)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.hardlink_to(file)
    except OSError:
        remove_folder(link, ignore_errors=True)
        return False
    return True


def _hold(own: Path) -> None:
    """Lock a folder for as long as this process lives."""
    lock = (own / _LOCK).open("xb")
    _lock(lock)
    _held.append(lock)


def _remove_left_over(place: Path) -> None:
    """Remove the folders of processes that have ended; one that is being made has no lock yet."""
    for folder in place.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < _MIN_AGE_S:
                continue
            with (folder / _LOCK).open("r+b") as lock:
                _lock(lock)
                with contextlib.suppress(OSError):  # it is a folder of hard links
                    (folder / _LINK).unlink(missing_ok=True)
            remove_folder(folder)


def _lock(file: IO[bytes]) -> None:
    """Take a file's lock, or raise OSError where another process has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
