"""The streams of one command: results on stdout, everything else on stderr, in the format that was asked for."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TextIO

from coe_cli.output.terminal import guarded, raw, wrapped

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


_WIDTH_IN_A_PIPE = 160
_PATIENCE_S = 1.0


class TableFormat(StrEnum):
    """Formats of commands that print a table."""

    HUMAN = "human"
    JSON = "json"
    CSV = "csv"
    MD = "md"


class ReportFormat(StrEnum):
    """Formats of commands that report on one thing."""

    HUMAN = "human"
    JSON = "json"


@dataclass
class Output:
    """Where a command writes. Tests replace the streams."""

    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)

    def __post_init__(self) -> None:
        self.stdout, self.stderr = guarded(self.stdout), guarded(self.stderr)

    def json(self, value: Any) -> None:
        """One JSON document on stdout; structs become objects."""
        import json

        import msgspec

        self.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=msgspec.to_builtins) + "\n")

    def json_line(self, value: Any) -> None:
        """One JSON object on a line of its own on stdout, at once."""
        import msgspec

        self.stdout.write(msgspec.json.encode(value).decode() + "\n")
        self.stdout.flush()

    def rich(self, renderable: RenderableType) -> None:
        """A Rich renderable on stdout; plain text when stdout is not a terminal."""
        self.console().print(renderable)

    def emit(
        self,
        output_format: TableFormat,
        document: Any,
        header: Sequence[str],
        rows: Iterable[Sequence[Any]],
        human: Callable[[], None],
    ) -> None:
        """A result on stdout: ``document`` as JSON, ``header`` and ``rows`` as CSV or Markdown, else what ``human`` writes.

        In a cell None is empty, and a list has spaces between its parts.
        """
        if output_format is TableFormat.HUMAN:
            return human()
        if output_format is TableFormat.JSON:
            return self.json(document)
        cells = [[_cell(value) for value in row] for row in rows]
        if output_format is TableFormat.CSV:
            import csv
            import io

            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(cells)
            self.stdout.write(buffer.getvalue())
            return None
        lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in cells)]
        return self.stdout.writelines(f"| {' | '.join(line)} |\n" for line in lines)

    def note(self, message: str) -> None:
        """One line on stderr, on a terminal as many as its words need."""
        self.stderr.write(wrapped(f"coe: {message}", self.stderr) + "\n")
        self.stderr.flush()

    def notes(self, messages: Iterable[str]) -> None:
        for message in messages:
            self.note(message)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Says on stderr what is waited for, if that takes longer than a second (``COE_PATIENCE_S``)."""
        wait = Wait(self)
        wait.begin(what)
        try:
            yield
        finally:
            wait.end()

    def console(self, *, on_stderr: bool = False) -> Console:
        from coe_cli.output.terminal_console import TerminalConsole

        stream = self.stderr if on_stderr else self.stdout
        width = None if stream.isatty() else _WIDTH_IN_A_PIPE
        return TerminalConsole(file=raw(stream), highlight=False, width=width)


class Wait:
    """One wait after the other; each that lasts is said. ``is_told`` false: on a terminal alone."""

    is_told = True

    def __init__(self, output: Output) -> None:
        self._output = output
        self._timer: threading.Timer | None = None

    def begin(self, what: str) -> None:
        self.end()
        if not self.is_told and not self._output.stderr.isatty():
            return
        try:
            patience_s = float(os.environ.get("COE_PATIENCE_S") or _PATIENCE_S)
        except ValueError:
            patience_s = _PATIENCE_S
        if patience_s <= 0:
            self._output.note(what)
            return
        self._timer = threading.Timer(patience_s, self._output.note, [what])
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(value) if isinstance(value, list) else str(value)
