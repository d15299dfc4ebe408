"""A batch from its input to its output: look through it, settle who answers each row, run what is left, keep what is done."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from coe_cli.core.batch.batch_progress import EngineStatus, Pace, Progress, left_s
from coe_cli.errors import CoeError, Interrupted, UsageError
from coe_cli.interrupts import two_step_interrupt
from coe_cli.replacing import remove
from coe_cli.runtime.batch.batch_engine import Engine, RowResult, RowSource
from coe_cli.runtime.batch.batch_index import BatchIndex, InputFacts, Route, RowDefaults, RowHead, look_through
from coe_cli.runtime.batch.batch_journal import Header, Journal
from coe_cli.runtime.batch.batch_output import output_line
from coe_cli.runtime.batch.batch_spool import spool, spooled_again
from coe_cli.runtime.college.resolver import RequestResolver


@dataclass(frozen=True)
class BatchJob:
    """What to run. ``source`` and ``target`` are None for ``stdin`` and ``stdout``, or the process's own; ``again`` is the command that goes on with it."""

    source: Path | None
    target: Path | None
    defaults: RowDefaults
    keep_order: bool = False
    fail_fast: bool = False
    restart: bool = False
    retry_failed: bool = False
    again: str = "the same command"
    stdin: BinaryIO | None = None
    stdout: BinaryIO | None = None


class BatchView(Protocol):
    """Shows what a batch does."""

    def note(self, message: str) -> None: ...

    def reading(self, lines: int, total: int) -> None: ...

    def failed(self, line: int, message: str) -> None: ...

    def running(self, progress: Callable[[], Progress]) -> None:
        """From now on rows are run; ``progress`` may be called from any thread."""
        ...

    def advanced(self) -> None:
        """A row has ended."""
        ...


NewEngine = Callable[[RowSource], Engine]
"""Makes the engine for the rows that are left."""


def run_batch(
    job: BatchJob, resolver: RequestResolver, route: Route, new_engine: NewEngine, view: BatchView
) -> Progress:
    """Run what is not done yet of ``job`` and return the final counts.

    Raises:
        UsageError: input, output or an earlier batch's journal do not go together, or another batch holds the output.
        Interrupted: Ctrl-C; the running rows were finished, or dropped at the second one.
        CoeError: the disk fails, nothing can be run, or with ``fail_fast`` the first failed row.
    """
    with _workplace(job) as folder:
        try:
            source = job.source or spool(job.stdin or sys.stdin.buffer, folder / _SPOOL, job.target)
            return _Batch(job, folder, source, view).run(resolver, route, new_engine)
        except KeyboardInterrupt:
            raise Interrupted("stopped before the first row", _how_to_go_on(job, folder)) from None


class _Batch:
    """One run of a batch."""

    def __init__(self, job: BatchJob, folder: Path, source: Path, view: BatchView) -> None:
        self._job, self._folder, self._view = job, folder, view
        self._source = source
        self._facts: InputFacts = look_through(source)
        self._results: _Results = _Results(job, folder, self._facts)
        self._engine: Engine | None = None
        self._ignored: set[str] = set()
        self._answered_by: dict[str, None] = {}
        self._counting = threading.Lock()

    def run(self, resolver: RequestResolver, route: Route, new_engine: NewEngine) -> Progress:
        results = self._results
        if results.forgotten:
            rows = "1 row that failed is" if results.forgotten == 1 else f"{results.forgotten} rows that failed are"
            self._view.note(f"{rows} run again")
        with (
            contextlib.closing(results),
            contextlib.closing(BatchIndex(self._source, resolver, self._job.defaults)) as index,
        ):
            for unusable in index.build(results.is_done, results.routed, route, self):
                self._put(unusable.head, unusable.result)
            results.begin(index.lines)
            self._begin = time.monotonic()
            self._total, self._pace = len(index), Pace(self._begin, results.done)
            if index.remaining():
                self._engine = new_engine(index)
                with contextlib.closing(self._engine):
                    self._run(index, self._engine)
            progress = self.progress()
            results.sync()
        if progress.done == progress.total:
            remove(self._folder / _SPOOL)
        return progress

    def _run(self, index: BatchIndex, engine: Engine) -> None:
        self._view.running(self.progress)

        def stop() -> None:
            engine.stop()
            self._view.note("Ctrl-C: finishing the rows that are running; once more drops them")

        with two_step_interrupt(stop) as interrupt:
            try:
                for result in engine.run(index):
                    self._put(index.head(result.line), result)
                    self._view.advanced()
            except KeyboardInterrupt:
                interrupt.happened = True
        if interrupt.happened and self._results.done < self._total:
            self._results.sync()
            where = f" in {self._job.target}" if self._job.target else ""
            raise Interrupted(
                f"stopped: {self._results.done} of {self._total} rows are done{where}",
                _how_to_go_on(self._job, self._folder),
            )

    def _put(self, head: RowHead, result: RowResult) -> None:
        self._results.put(head.line, output_line(head, result), ok=result.failure is None)
        if result.answer is not None:
            self._answered_by[result.answer.model] = None
        if result.failure is None:
            return
        message = result.failure.message.removeprefix(f"line {head.line}: ")
        if self._job.fail_fast:
            self._results.sync()
            raise CoeError(f"line {head.line} failed: {message}", "Leave out --fail-fast to go on with the other rows.")
        self._view.failed(head.line, message)

    def progress(self) -> Progress:
        """As of now; from any thread."""
        now, results = time.monotonic(), self._results
        with self._counting:
            rate = self._pace.rows_per_s(now, results.done)
        status = self._engine.status() if self._engine is not None else EngineStatus()
        done, elapsed_s = results.done, now - self._begin
        return Progress(
            total=self._total,
            done=done,
            failed=results.failed,
            earlier=results.earlier,
            elapsed_s=elapsed_s,
            rows_per_s=rate,
            left_s=left_s(self._total, done, rate),
            tokens_per_s=status.completion_tokens / elapsed_s if status.completion_tokens and elapsed_s else None,
            answered_by=tuple(self._answered_by),
            engine=status,
        )

    # --- what the index tells

    def indexed(self, lines: int) -> None:
        self._view.reading(lines, self._facts.lines)

    def routed(self, routes: Mapping[int, str]) -> None:
        self._results.keep_routes(routes)

    def ignored(self, key: str, line: int) -> None:
        if key not in self._ignored and len(self._ignored) < 100:
            self._ignored.add(key)
            self._view.note(f"the key `{key}` means nothing to coe and is ignored (first in line {line})")


class _Results:
    """Where results go: the output itself, or with ``keep_order`` a file beside it that the output is made from."""

    def __init__(self, job: BatchJob, folder: Path, facts: InputFacts) -> None:
        self._stdout = (job.stdout or sys.stdout.buffer) if job.target is None else None
        self._target = job.target
        self.done = self.failed = self.earlier = 0
        self._journal: Journal | None = None
        self._ordered: _InOrder | None = None
        self._ordered_file: BinaryIO | None = None
        self.is_done = bytearray(facts.lines + 1)
        self._keep_order = job.keep_order
        if job.target is not None or job.keep_order:
            results = folder / _UNORDERED if job.keep_order else job.target
            assert results is not None
            options: dict[str, Any] = {"keep_order": job.keep_order}
            options |= {name: getattr(job.defaults, name) for name in job.defaults.__struct_fields__}
            if job.keep_order and job.target is not None:
                _refuse_foreign(job.target, folder / _JOURNAL)
            header = Header(facts.sha256, options)
            self._journal = Journal(folder / _JOURNAL, results, header, forget_errors=job.retry_failed)
            for line in self._journal.lines:
                self.is_done[line] = 1
            self.done = self.earlier = len(self._journal.lines)
            self.failed = self._journal.ok.count(0)

    @property
    def forgotten(self) -> int:
        return self._journal.forgotten if self._journal is not None else 0

    @property
    def routed(self) -> Mapping[int, str]:
        return self._journal.routed if self._journal is not None else {}

    def keep_routes(self, routes: Mapping[int, str]) -> None:
        if self._journal is not None:
            self._journal.write_routes(routes)

    def begin(self, lines: Sequence[int]) -> None:
        """All rows are known: ``lines`` in the input's order."""
        if not self._keep_order or self._journal is None:
            return
        if self._target is not None:
            if self._target.exists() and not self._journal.forgotten:  # rows that are run again were written otherwise
                with self._target.open("rb") as file:
                    _InOrder(lines, self._journal, _Same(file, self._target)).advance()
                    if file.read(1):
                        raise _changed(self._target)
            self._ordered_file = self._target.open("wb")
        self._ordered = _InOrder(lines, self._journal, self._write_out)
        self._ordered.advance()

    def put(self, line: int, data: bytes, *, ok: bool) -> None:
        if self._journal is not None:
            self._journal.write(line, data, ok=ok)
        else:
            self._write_out(data)
        self.done += 1
        self.failed += not ok
        if self._ordered is not None:
            self._ordered.advance()

    def _write_out(self, data: bytes) -> None:
        file = self._ordered_file or self._stdout
        assert file is not None
        try:
            file.write(data)
            file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CoeError(
                f"the output cannot be written: {error.strerror or error}", "Make room, then run the same command."
            ) from error

    def sync(self) -> None:
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
        if self._ordered_file is not None:
            self._ordered_file.close()


class _InOrder:
    """Gives results out in the input's order, each as soon as all before it are there."""

    def __init__(self, lines: Sequence[int], journal: Journal, write: Callable[[bytes], None]) -> None:
        self._lines, self._journal, self._write = lines, journal, write
        self._position_of = array("q", [-1]) * len(lines)
        self._known = self._next = 0

    def advance(self) -> None:
        """Take note of what the journal has got, and write what is next."""
        journal = self._journal
        while self._known < len(journal.lines):
            self._position_of[bisect_left(self._lines, journal.lines[self._known])] = self._known
            self._known += 1
        while self._next < len(self._lines) and (position := self._position_of[self._next]) >= 0:
            self._write(journal.read(position))
            self._next += 1


_JOURNAL, _UNORDERED, _SPOOL, _LOCK = "journal.jsonl", "results.jsonl", "input.jsonl", "lock"


@contextlib.contextmanager
def _workplace(job: BatchJob) -> Iterator[Path]:
    """The folder beside the output for journal and lock, which is held; a temporary one where the output is a stream."""
    if job.target is None:
        with tempfile.TemporaryDirectory(prefix="coe-batch-", ignore_cleanup_errors=True) as scratch:
            yield Path(scratch)
        return
    import filelock

    folder = job.target.with_name(job.target.name + ".batch")
    try:
        folder.mkdir(exist_ok=True)
        lock = filelock.FileLock(folder / _LOCK)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(
            f"another `coe batch` is writing to {job.target}", "Wait for it, end it, or choose another output."
        ) from None
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be used for the journal: {error.strerror or error}", "Choose an output elsewhere."
        ) from None
    try:
        if job.restart:
            for name in (_JOURNAL, f"{_JOURNAL}.new", _UNORDERED, _SPOOL):
                remove(folder / name)
            with contextlib.suppress(FileNotFoundError), job.target.open("r+b") as old:
                old.truncate(0)
        yield folder
    finally:
        lock.release()


class _Same:
    """Compares what was written earlier with what would be written now; a write that was cut short is no difference."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path

    def __call__(self, data: bytes) -> None:
        """
        Raises:
            UsageError: the file has something else there.
        """
        found = self._file.read(len(data))
        if found and not (data.startswith(found) and (len(found) == len(data) or not self._file.read(1))):
            raise _changed(self._path)


def _changed(path: Path) -> UsageError:
    return UsageError(
        f"{path} was changed since coe wrote it",
        "Name another output to keep what is in it, or give --restart to write it anew.",
    )


def _refuse_foreign(target: Path, journal: Path) -> None:
    if not journal.exists() and target.exists() and target.stat().st_size:
        raise UsageError(
            f"{target} exists already and no batch of coe has begun it",
            "Choose another output, or give --restart to write it anew.",
        )


def _how_to_go_on(job: BatchJob, folder: Path) -> str:
    if job.target is None:
        return "Give -o FILE the next time: then the same command goes on where it was stopped."
    if job.source is None:
        return f"Go on with: {spooled_again(folder / _SPOOL, job.target)}"
    return f"Go on with: {job.again}"
