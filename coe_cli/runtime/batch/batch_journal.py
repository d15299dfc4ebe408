"""What of a batch is done, on disk: the results and the journal that says whose they are.

An entry with a row's line number, length and checksum goes into the journal first, then the row's bytes into the results.
A row is done if and only if its bytes are there. Both files only grow, so whatever a killed process left behind ends in
entries without their bytes: opening the batch again cuts that off and loses nothing. Errors are forgotten by writing both
files anew beside the old ones; the new journal's name is the moment from which they count.

Each entry has a checksum of itself, and of its bytes. Only what ends early can be a killed process's: any other difference,
and results that end before what was once safe on the disk, is somebody else's and is refused.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import shutil
import time
import zlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct, structs

from coe_cli.errors import CoeError, UsageError
from coe_cli.replacing import move, remove

JOURNAL_FORMAT = 2
"""2: checksums of whole entries, and how much is safe on the disk. Journals of another format are refused."""
_SYNC_EVERY_S = 1.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Header(Struct, frozen=True):
    """What the batch is about: the first line of its journal. ``options`` are those that change what is written."""

    input_sha256: str
    options: dict[str, str | int | float | bool | None]
    format: int = JOURNAL_FORMAT


class _Entry(Struct, frozen=True, omit_defaults=True):
    """A result: ``line`` of the input (from 1), its size and CRC-32, whether it is an answer; or which expert lines go to.

    ``synced``: so many bytes of the results are safe on the disk. ``check``: the CRC-32 of all the other fields.
    """

    line: int = 0
    bytes: int = 0
    crc32: int = 0
    ok: bool = True
    routed: dict[int, str] = {}
    synced: int = 0
    check: int = 0

    def written(self) -> builtins.bytes:
        """The entry as a line of the journal."""
        return _encode(structs.replace(self, check=self._crc())) + b"\n"

    @property
    def is_whole(self) -> bool:
        return self.check == self._crc()

    def _crc(self) -> int:
        return zlib.crc32(_encode(structs.replace(self, check=0)))


_encode = msgspec.json.Encoder().encode
_decode_entry = msgspec.json.Decoder(_Entry).decode
_decode_header = msgspec.json.Decoder(Header).decode


class Journal:
    """The results of one batch, open for more. ``lines``, ``starts`` and ``sizes`` are in the order of writing.

    ``ok`` has one byte for each of them: 1 for an answer, 0 for an error. Times and sizes are seconds and bytes.
    ``forgotten`` counts the errors that were taken out when it was opened.
    """

    lines: array[int]
    starts: array[int]
    sizes: array[int]
    ok: bytearray
    routed: dict[int, str]
    _journal: IO[bytes]
    _results: IO[bytes]
    _end: int
    _journal_end: int
    _unsynced: bool

    def __init__(self, path: Path, results: Path, header: Header, *, forget_errors: bool = False) -> None:
        """Open or begin a batch. ``forget_errors``: take the errors of earlier runs out, as if their rows had not been run.

        Raises:
            UsageError: the journal is another batch's, or the results were changed by somebody else.
            CoeError: the files cannot be read or written.
        """
        self.path, self.results_path = path, results
        self._new_journal, self._new_results = path.with_name(f"{path.name}.new"), path.with_name("results.new")
        self.forgotten = 0
        with self._explained():
            self._replace()
            self._open(header)
            if forget_errors and (errors := self.ok.count(0)):
                self._write_without_errors(header)
                self.close()
                self._replace()
                self._open(header)
                self.forgotten = errors

    def write(self, line: int, data: bytes, *, ok: bool) -> None:
        """Add the result of ``line``: whole lines of text.

        Raises:
            CoeError: the disk is full or fails; what was written before is safe.
        """
        entry = _Entry(line, len(data), zlib.crc32(data), ok)
        with self._explained():
            journal_end = _append(self._journal, self._journal_end, entry.written())
            end = _append(self._results, self._end, data)
            self._journal_end = journal_end
            self._note(entry, end)
            self._sync_now_and_then()

    def write_routes(self, routes: Mapping[int, str]) -> None:
        """Keep which expert each line goes to, so that no line is routed twice.

        Raises:
            CoeError: as ``write``.
        """
        with self._explained():
            self._journal_end = _append(self._journal, self._journal_end, _Entry(routed=dict(routes)).written())

    def read(self, position: int) -> bytes:
        """The bytes of one result."""
        with self._explained():
            self._results.seek(self.starts[position])
            return self._results.read(self.sizes[position])

    def sync(self) -> None:
        """Have everything on the disk itself.

        Raises:
            CoeError: as ``write``.
        """
        with self._explained():
            if self._unsynced:
                os.fsync(self._journal.fileno())
                os.fsync(self._results.fileno())
                self._journal_end = _append(self._journal, self._journal_end, _Entry(synced=self._end).written())
                self._unsynced, self._synced_at = False, time.monotonic()

    def close(self) -> None:
        """Safe to call more than once."""
        self._journal.close()
        self._results.close()

    def _open(self, header: Header) -> None:
        self.lines, self.starts, self.sizes, self.ok = array("Q"), array("Q"), array("L"), bytearray()
        self.routed = {}
        self._end = self._journal_end = 0
        self._synced_at = time.monotonic()
        self._unsynced = False
        self._journal = _open_unbuffered(self.path, 0o600)
        self._results = _open_unbuffered(self.results_path, 0o666)
        if not self._recover(header):
            self._results.truncate(0)
            self._journal.truncate(0)
            self._journal_end = _append(self._journal, 0, _encode(header) + b"\n")

    def _write_without_errors(self, header: Header) -> None:
        """Write both files anew; they count from the moment when the journal has its name."""
        part = self._new_journal.with_name(f"{self._new_journal.name}.part")
        with part.open("wb") as journal, self._new_results.open("wb") as results:
            part.chmod(0o600)
            shutil.copymode(self.results_path, self._new_results)
            journal.write(_encode(header) + b"\n")
            if self.routed:
                journal.write(_Entry(routed=self.routed).written())
            for position, (line, ok) in enumerate(zip(self.lines, self.ok, strict=True)):
                if ok:
                    data = self.read(position)
                    journal.write(_Entry(line, len(data), zlib.crc32(data)).written())
                    results.write(data)
            for file in (results, journal):
                file.flush()
                os.fsync(file.fileno())
        move(part, self._new_journal)

    def _replace(self) -> None:
        """Put new files in place of the old ones, the journal last; also what a killed process left of that."""
        if self._new_journal.exists():
            if self._new_results.exists():
                move(self._new_results, self.results_path)
            move(self._new_journal, self.path)
        else:
            remove(self._new_results)

    def _note(self, entry: _Entry, end: int) -> None:
        self.lines.append(entry.line)
        self.starts.append(self._end)
        self.sizes.append(entry.bytes)
        self.ok.append(entry.ok)
        self._end = end
        self._unsynced = True

    def _sync_now_and_then(self) -> None:
        if time.monotonic() - self._synced_at > _SYNC_EVERY_S:
            self.sync()

    def _recover(self, header: Header) -> bool:
        """Take over what an earlier run left; False where there is none."""
        with self.path.open("rb") as file:
            first = file.readline()
            if not first.endswith(b"\n"):
                if self._results.seek(0, os.SEEK_END):
                    raise UsageError(
                        f"{self.results_path} exists already and no batch of coe has begun it",
                        "Choose another output, or give --restart to write it anew.",
                    )
                return False
            self._check(header, first)
            self._journal_end = len(first)
            self._results.seek(0)
            with self.results_path.open("rb") as results:
                self._take_over(file, results)
        self._journal.truncate(self._journal_end)
        self._results.truncate(self._end)
        return True

    def _take_over(self, journal: IO[bytes], results: IO[bytes]) -> None:
        """Read entries and their bytes side by side, up to the first one whose bytes are not all there."""
        size, synced, torn = os.fstat(results.fileno()).st_size, 0, False
        for entry, after in self._entries(journal, self._journal_end):
            synced = max(synced, entry.synced)
            torn = torn or self._end + entry.bytes > size
            if torn:
                continue
            if entry.line:
                if zlib.crc32(results.read(entry.bytes)) != entry.crc32:
                    raise self._changed(f"the answer to line {entry.line}")
                self._note(entry, self._end + entry.bytes)
            self.routed.update(entry.routed)
            self._journal_end = after
        if size < synced:
            raise self._changed(f"it has {size} bytes where {synced} were written")
        if size > self._end and not torn:
            raise self._changed(
                f"{size - self._end} bytes were added after byte {self._end}", f"Cut it off at byte {self._end}"
            )
        self._unsynced = False

    def _changed(self, how: str, fix: str = "Put it back as it was") -> UsageError:
        return UsageError(
            f"{self.results_path} was changed since coe wrote it ({how})",
            f"{fix}, choose another output, or give --restart to write it anew.",
        )

    def _entries(self, journal: IO[bytes], at: int) -> Iterator[tuple[_Entry, int]]:
        """Whole entries with the position after each, up to a torn one."""
        for line in journal:
            at += len(line)
            if not line.endswith(b"\n"):
                return
            try:
                entry = _decode_entry(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                entry = None
            if entry is None or not entry.is_whole or entry.bytes < 0:
                raise UsageError(
                    f"{self.path} is damaged at byte {at - len(line)}", "Give --restart to write it all anew."
                )
            yield entry, at

    def _check(self, header: Header, first: bytes) -> None:
        try:
            known = _decode_header(first)
        except msgspec.MsgspecError:
            raise UsageError(
                f"{self.path} is not a journal of this version of coe",
                "Choose another output, or give --restart to write it anew.",
            ) from None
        if known.format != header.format:
            raise UsageError(
                f"{self.results_path.name} was begun by another version of coe (its journal has format {known.format},"
                f" and this one writes {header.format})",
                "Finish it with that version, choose another output, or give --restart to write it anew.",
            )
        changed = "the input has" if known.input_sha256 != header.input_sha256 else ""
        if not changed and known.options != header.options:
            names = sorted(k for k in known.options | header.options if known.options.get(k) != header.options.get(k))
            changed = f"the options have ({', '.join(names)})"
        if changed:
            raise UsageError(
                f"{self.results_path.name} belongs to an earlier batch and {changed} changed since",
                "Choose another output, go back to what it was, or give --restart to write it anew.",
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            safe = f"; {len(self.lines)} rows are safe in {self.results_path}" if self.lines else ""
            if error.errno in _FULL:
                raise CoeError(
                    f"the disk is full{safe}", "Make room, then run the same command: it goes on."
                ) from error
            raise CoeError(
                f"{self.results_path} or its journal cannot be used ({error.strerror or error}){safe}",
                "Check the folder, its owner and its disk, then run the same command: it goes on.",
            ) from error


def _open_unbuffered(path: Path, mode: int) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_BINARY", 0), mode), "r+b", buffering=0)


def _append(file: IO[bytes], end: int, data: bytes) -> int:
    """Write ``data`` at ``end`` and return the new end; what could not be written whole is cut off again."""
    file.seek(end)
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) or 0 :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise
    return end + len(data)
