"""Drafts while they are written: one panel an expert on a terminal, one line a finished draft elsewhere, JSON lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from coe_cli.core.routing.synthesis import Draft
from coe_cli.output.answer_sink import AnswerFormat
from coe_cli.output.console import Output
from coe_cli.output.terminal import for_terminal

if TYPE_CHECKING:
    from rich.console import Console

_FRAMES_PER_S = 6
_LEAST_WIDTH = 36
_LEAST_LINES = 1
_KEPT_CHARS = 4000


class DraftLines:
    """Each draft's end as a line on stderr, or as a JSON line on stdout where those are wanted."""

    def __init__(self, output: Output, output_format: AnswerFormat) -> None:
        self._output, self._format = output, output_format

    def phase(self, number: int, name: str, worker_pid: int) -> None:
        """Nothing is shown of a draft before its end."""

    def wrote(self, number: int, tokens: int) -> None:
        """Lines have no use for it."""

    def delta(self, number: int, text: str, *, is_thinking: bool) -> None:
        """Nothing is shown of a draft before its end."""

    def done(self, number: int, draft: Draft) -> None:
        """Say that a draft is there, or why not."""
        if self._format is AnswerFormat.JSONL:
            self._output.json_line({"type": "draft", **msgspec.to_builtins(draft)})
        elif self._format is AnswerFormat.HUMAN:
            self._output.note(summary(draft))


class DraftPanels(DraftLines):
    """A panel for each expert, side by side where there is room; gone at the end, when each draft's line is written."""

    def __init__(self, output: Output, experts: Sequence[tuple[str, str]]) -> None:
        """``experts`` are names and models, in the order of the jobs."""
        from coe_cli.output.display import Display

        super().__init__(output, AnswerFormat.HUMAN)
        self._panels = [_Panel(expert, model) for expert, model in experts]
        self._lock = threading.Lock()
        self._console = output.console(on_stderr=True)
        self._lines: list[str] = []
        self._display = Display(self._console, self._view, _FRAMES_PER_S)

    def phase(self, number: int, name: str, worker_pid: int) -> None:
        """The panel says what is being done."""
        with self._lock:
            self._panels[number].phase = name

    def wrote(self, number: int, tokens: int) -> None:
        """The panel counts them."""
        with self._lock:
            self._panels[number].wrote(tokens)

    def delta(self, number: int, text: str, *, is_thinking: bool) -> None:
        """The text grows in the panel; thoughts only change what the panel says is being done."""
        with self._lock:
            self._panels[number].add(text, is_thinking=is_thinking)

    def done(self, number: int, draft: Draft) -> None:
        """The panel stays until the last draft is there."""
        with self._lock:
            self._panels[number].end(draft)
        self._lines.append(summary(draft))

    def close(self) -> None:
        """Take the panels away and leave a line for each draft."""
        if self._display.is_shown:
            self._display.stop()
            for line in self._lines:
                self._output.note(line)

    def _view(self) -> Any:
        from rich.table import Table

        from coe_cli.output.display import view_width

        width, height = view_width(self._console), self._console.height
        columns = max(1, min(len(self._panels), width // _LEAST_WIDTH))
        rows = -(-len(self._panels) // columns)
        lines = max(_LEAST_LINES, height * 2 // 3 // rows - 2)
        grid = Table.grid(expand=True)
        for _ in range(columns):
            grid.add_column(ratio=1)
        with self._lock:
            shown = [panel.view(self._console, width // columns - 4, lines) for panel in self._panels]
        for start in range(0, len(shown), columns):
            row = shown[start : start + columns]
            grid.add_row(*row, *[""] * (columns - len(row)))
        return grid


class _Panel:
    """One expert's text so far, and what it is doing."""

    def __init__(self, expert: str, model: str) -> None:
        self._expert, self._model = expert, model
        self.phase = "starting"
        self._text, self._style = "", "cyan"
        self._tokens = self._first_tokens = 0
        self._begin = self._first_at = time.monotonic()
        self._end: float | None = None

    def wrote(self, tokens: int) -> None:
        if not self._tokens:
            self._first_at, self._first_tokens = time.monotonic(), tokens
        self._tokens += tokens

    def add(self, text: str, *, is_thinking: bool) -> None:
        self.phase = "thinking" if is_thinking else "writing"
        if not is_thinking:
            self._text = (self._text + for_terminal(text))[-_KEPT_CHARS:]

    def end(self, draft: Draft) -> None:
        self._end = time.monotonic()
        self.phase, self._style = ("done", "green") if draft.error is None else ("failed", "red")
        if draft.error is not None:
            self._text = for_terminal(draft.error.message)

    def view(self, console: Console, width: int, lines: int) -> Any:
        """The panel with the last ``lines`` lines of the text, ``width`` cells wide."""
        from rich.panel import Panel
        from rich.text import Text

        rows = [row.plain.rstrip() for row in Text(self._text).wrap(console, max(1, width))]
        rows = rows[-lines:] + [""] * (lines - len(rows))
        now = self._end or time.monotonic()
        parts = [f"{now - self._begin:.0f} s"]
        if self._tokens:
            parts.append(f"{self._tokens} tokens")
        if self._tokens > self._first_tokens and now > self._first_at:
            parts.append(f"{(self._tokens - self._first_tokens) / (now - self._first_at):.0f}/s")
        return Panel(
            Text("\n".join(rows), no_wrap=True, overflow="crop"),
            title=Text.assemble((self._expert, "bold"), " ", (self._model, "dim")),
            subtitle=Text.assemble((self.phase, self._style), " · ", " · ".join(parts)),
            title_align="left",
            subtitle_align="left",
        )


def summary(draft: Draft) -> str:
    """A draft in one line."""
    if draft.error is not None:
        return f"{draft.expert} ({draft.model}) failed: {draft.error.message}; going on without it"
    assert draft.usage is not None
    assert draft.timing is not None
    tokens = draft.usage.completion_tokens
    return f"{draft.expert} ({draft.model}): {tokens} tokens in {draft.timing.total_s:.1f} s"
