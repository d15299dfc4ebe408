"""OpenAI's files and batches, kept under the state folder: what was uploaded, how far each batch is, and what came of it.

A batch is run by `coe batch` in a process of its own, which asks this college and ends with it; what it had done by then is in its
journal, so a batch goes on where the next college finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, structs

from coe_cli.core.names import size_words
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.package import PACKAGE_ROOT, python_environment
from coe_cli.replacing import remove, remove_folder
from coe_cli.runtime.atomic_write import atomic_write
from coe_cli.runtime.job_object import end_with_us, kill
from coe_cli.runtime.regular_file import read_regular
from coe_cli.runtime.server.http_errors import HttpError

MOST_FILES = 128
MOST_FILES_BYTES = 512 * 2**20
MOST_BATCHES = 64
_number = itertools.count()
_ID = re.compile(r"(file-|batch_)[0-9a-f]{24}")
_START = (
    f"import sys; sys.path.append({PACKAGE_ROOT!r}); from coe_cli.runtime.private_channel import die_with_parent;"
    " die_with_parent(); from coe_cli.__main__ import main; main()"
)
_LAST_WORDS = 1000
_MOST_BYTES = 2**20
"""Of what is kept of a file or a batch."""


class FileObject(Struct, frozen=True, kw_only=True):
    """As OpenAI has it; times are seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"] = "batch"
    status: Literal["processed"] = "processed"
    expires_at: None = None


class RequestCounts(Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


Status = Literal["validating", "in_progress", "completed", "failed", "cancelling", "cancelled"]


class BatchObject(Struct, frozen=True, kw_only=True):
    """As OpenAI has it; times are seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    errors: dict[str, Any] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    expires_at: None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return self.status in ("validating", "in_progress", "cancelling")


class BatchStore:
    """Files and batches in ``folder``; ``options`` are those of `coe batch` that the college was started with.

    Its methods look into small files and are called from the loop of the college, of which one batch is run at a time.
    """

    def __init__(self, folder: Path, options: list[str]) -> None:
        self._folder, self._options = folder, options
        self._task: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._running_id: str | None = None

    # --- files

    def add(self, content: bytes, filename: str, purpose: Literal["batch", "batch_output"] = "batch") -> FileObject:
        """Keep a file.

        Raises:
            HttpError: there are too many, or they are too large together (400).
        """
        known = self.files()
        if len(known) >= MOST_FILES or sum(each.bytes for each in known) + len(content) > MOST_FILES_BYTES:
            most = f"{MOST_FILES} files of {size_words(MOST_FILES_BYTES / BYTES_PER_MB)} together"
            raise HttpError(400, f"there are {most} at most", "Delete some.", code="too_many_files", param="file")
        made = FileObject(
            id=_new_id("file-"), bytes=len(content), created_at=_now(), filename=filename, purpose=purpose
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(made.id, "jsonl").write_bytes(content)
        self._keep(made)
        return made

    def files(self) -> list[FileObject]:
        """All of them, the newest first."""
        return self._all("file-", FileObject)

    def file(self, file_id: str, param: str = "file_id") -> FileObject:
        """
        Raises:
            HttpError: there is none (404).
        """
        found: FileObject = self._read(file_id, "file-", FileObject, param)
        return found

    def content(self, file_id: str) -> Path:
        """
        Raises:
            HttpError: there is none (404).
        """
        return self._path(self.file(file_id).id, "jsonl")

    def delete(self, file_id: str) -> None:
        """
        Raises:
            HttpError: there is none (404), or a batch reads it (400).
        """
        self.file(file_id)
        if any(batch.open and batch.input_file_id == file_id for batch in self._all("batch_", BatchObject)):
            raise HttpError(400, "a batch that has not ended reads it", "Cancel the batch.", param="file_id")
        for ending in ("json", "jsonl"):
            remove(self._path(file_id, ending))

    # --- batches

    def create(
        self, input_file_id: str, endpoint: str, completion_window: str, metadata: dict[str, str] | None
    ) -> BatchObject:
        """Begin a batch; the oldest that has ended goes where there are too many.

        Raises:
            HttpError: there is no such file (404), or too many batches wait (400).
        """
        self.file(input_file_id, "input_file_id")
        known = self._all("batch_", BatchObject)
        if len(known) >= MOST_BATCHES:
            ended = [each for each in known if not each.open]
            if not ended:
                raise HttpError(400, f"{MOST_BATCHES} batches have not ended", "Wait.", code="too_many_batches")
            remove(self._path(ended[-1].id, "json"))
        with self._path(input_file_id, "jsonl").open("rb") as file:
            total = sum(bool(line.strip()) for line in file)
        made = BatchObject(
            id=_new_id("batch_"),
            endpoint=endpoint,
            input_file_id=input_file_id,
            completion_window=completion_window,
            created_at=_now(),
            request_counts=RequestCounts(total),
            metadata=metadata,
        )
        self._keep(made)
        self.go_on()
        return made

    def batches(self) -> list[BatchObject]:
        """All of them, the newest first; what a college before this one left open goes on."""
        self.go_on()
        return [self._counted(each) for each in self._all("batch_", BatchObject)]

    def batch(self, batch_id: str) -> BatchObject:
        """
        Raises:
            HttpError: there is none (404).
        """
        self.go_on()
        return self._counted(self._read(batch_id, "batch_", BatchObject, "batch_id"))

    def cancel(self, batch_id: str) -> BatchObject:
        """End a batch; what it has answered by then is kept.

        Raises:
            HttpError: there is none (404), or it has ended (409).
        """
        batch = self._read(batch_id, "batch_", BatchObject, "batch_id")
        if not batch.open:
            raise HttpError(409, f"the batch has ended: {batch.status}", code="batch_ended", param="batch_id")
        batch = structs.replace(batch, status="cancelling", cancelling_at=_now())
        self._keep(batch)
        if self._running_id == batch_id and self._process is not None:
            kill(self._process)
        self.go_on()
        return self._counted(batch)

    def go_on(self) -> None:
        """Run the oldest batch that has not ended, if none runs."""
        if self._task is not None and not self._task.done():
            return
        waiting = [each for each in reversed(self._all("batch_", BatchObject)) if each.open]
        self._task = asyncio.ensure_future(self._run(waiting[0])) if waiting else None

    async def _run(self, batch: BatchObject) -> None:
        self._running_id = batch.id
        batch = self._read(batch.id, "batch_", BatchObject, "batch_id")
        with tempfile.TemporaryFile() as errors:
            if batch.status != "cancelling":
                self._keep(structs.replace(batch, status="in_progress", in_progress_at=batch.in_progress_at or _now()))
                source, answers = self._path(batch.input_file_id, "jsonl"), self._answers(batch)
                answers.parent.mkdir(exist_ok=True)
                command = ["batch", str(source), "-o", str(answers), "-q", "--no-pull", *self._options]
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env=python_environment(COE_NO_SERVE="0"),
                )
                end_with_us(self._process.pid)
                try:
                    await asyncio.to_thread(self._process.wait)
                finally:
                    kill(self._process)
            errors.seek(0)
            words = errors.read().decode("utf-8", "replace").strip()[-_LAST_WORDS:]
        self._process = self._running_id = None
        self._end(batch.id, words)
        self._task = None
        self.go_on()

    def _end(self, batch_id: str, words: str) -> None:
        """Write down how a batch has ended, with its answers and its errors as files."""
        batch = self._read(batch_id, "batch_", BatchObject, "batch_id")
        found = self._rows(batch)
        batch = _counted(batch, found)
        ids: dict[bool, str | None] = {True: None, False: None}
        for good, name in ((True, "output"), (False, "errors")):
            if found[good]:
                content = b"".join(found[good])
                try:
                    ids[good] = self.add(content, f"{batch.id}_{name}.jsonl", "batch_output").id
                except HttpError as error:
                    words = error.message
        counts, now = batch.request_counts, _now()
        batch = structs.replace(batch, output_file_id=ids[True], error_file_id=ids[False])
        if batch.status == "cancelling":
            batch = structs.replace(batch, status="cancelled", cancelled_at=now)
        elif counts.completed + counts.failed == counts.total and counts.total:
            batch = structs.replace(batch, status="completed", completed_at=now)
        else:
            told = {"code": "batch_failed", "message": words or "nothing could be run", "param": None, "line": None}
            batch = structs.replace(batch, status="failed", failed_at=now, errors={"object": "list", "data": [told]})
        self._keep(batch)
        remove_folder(self._answers(batch).parent, ignore_errors=True)

    def _counted(self, batch: BatchObject) -> BatchObject:
        """As far as it is by now."""
        return _counted(batch, self._rows(batch)) if batch.open else batch

    def _rows(self, batch: BatchObject) -> dict[bool, list[bytes]]:
        """What is written by now: answers under True, errors under False."""
        found: dict[bool, list[bytes]] = {True: [], False: []}
        with contextlib.suppress(OSError), self._answers(batch).open("rb") as file:
            for line in file:
                found[line.rstrip().endswith(b'"error":null}')].append(line)
        return found

    # --- on the disk

    def _answers(self, batch: BatchObject) -> Path:
        return self._folder / f"{batch.id}.run" / "answers.jsonl"

    def _path(self, name: str, ending: str) -> Path:
        return self._folder / f"{name}.{ending}"

    def _keep(self, made: FileObject | BatchObject) -> None:
        with atomic_write(self._path(made.id, "json")) as scratch:
            scratch.write_bytes(msgspec.json.encode(made))

    def _read(self, name: str, prefix: str, kind: type[Any], param: str) -> Any:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            if name.startswith(prefix) and _ID.fullmatch(name):
                return msgspec.json.decode(read_regular(self._path(name, "json"), _MOST_BYTES), type=kind)
        which = "batches" if param == "batch_id" else "files"
        raise HttpError(404, f"there is no `{name[:64]}`", f"See /v1/{which}.", code="not_found", param=param)

    def _all(self, prefix: str, kind: type[Any]) -> list[Any]:
        found = []
        for path in self._folder.glob(f"{prefix}*.json"):
            with contextlib.suppress(HttpError):
                found.append(self._read(path.stem, prefix, kind, ""))
        return sorted(found, key=lambda each: (each.created_at, each.id), reverse=True)


def _counted(batch: BatchObject, rows: dict[bool, list[bytes]]) -> BatchObject:
    return structs.replace(
        batch, request_counts=RequestCounts(batch.request_counts.total, len(rows[True]), len(rows[False]))
    )


def _new_id(prefix: str) -> str:
    """A name that sorts behind all earlier ones: many are made in a second, and some at one reading of the clock."""
    return f"{prefix}{time.time_ns():016x}{next(_number) % 2**32:08x}"


def _now() -> int:
    return int(time.time())
