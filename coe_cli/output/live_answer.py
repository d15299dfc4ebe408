"""The live view of `coe ask` on a terminal: the answer above, one status line below it that vanishes at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.cells import chop_cells
from rich.console import Group
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from coe_cli.core.answers.answer import Answer
from coe_cli.output.answer_sink import AnswerSink
from coe_cli.output.console import Output
from coe_cli.output.display import Display
from coe_cli.output.tables import LEVEL_STYLE
from coe_cli.output.terminal import for_terminal

_FRAMES_PER_S = 6

UsageSampler = Callable[[int], tuple[float, float, str] | None]
"""Worker's process id → (MB in use, budget in MB, pressure level), or None where it is not known."""


class LiveAnswerSink(AnswerSink):
    """Complete lines go to the terminal for good; the line in progress and the status are redrawn below them."""

    def __init__(self, output: Output, model: str, sample: UsageSampler, *, show_thinking: bool) -> None:
        super().__init__(output, show_thinking=show_thinking)
        self._model, self._sample = model, sample
        self._phase, self._pid = "starting", 0
        self._tokens = 0
        self._begin = self._first_at = time.monotonic()
        self._line, self._style = "", ""
        self._to_stdout = output.stdout.isatty()
        self._console = output.console(on_stderr=True)
        self._spinner = Spinner("dots")
        self._display = Display(self._console, self._view, _FRAMES_PER_S)

    def phase(self, name: str, worker_pid: int) -> None:
        self._phase, self._pid = name, worker_pid

    def wrote(self, tokens: int) -> None:
        if not self._tokens:
            self._first_at = time.monotonic()
        self._tokens += tokens

    def piece(self, text: str, *, is_thinking: bool) -> None:
        self._phase = "thinking" if is_thinking else "answering"
        if is_thinking:
            if self._show_thinking:
                self._append(text, style="dim")
        elif self._to_stdout:
            self._wrote = True
            self._append(text)
        else:
            super().piece(text, is_thinking=False)

    def finish(self, answer: Answer) -> None:
        self.close()
        if not self._to_stdout:
            super().finish(answer)

    def close(self) -> None:
        if self._display.is_shown:
            self._display.stop()
            if self._line:
                self._console.print(Text(self._line, style=self._style), soft_wrap=True)
                self._line = ""

    def _append(self, text: str, style: str = "") -> None:
        if style != self._style and self._line:
            self._display.print(Text(self._line, style=self._style))
            self._line = ""
        self._style = style
        *complete, self._line = (self._line + for_terminal(text)).split("\n")
        for line in complete:
            self._display.print(Text(line, style=style))
        rows = chop_cells(self._line, self._console.width)
        room = max(3, self._console.height // 2)
        if len(rows) > room:
            self._display.print(Text("".join(rows[:-1]), style=style))
            self._line = rows[-1]

    def _view(self) -> Group:
        rows = chop_cells(self._line, self._console.width) if self._line else []
        # as wide as the terminal, where the line will be whole
        return Group(*(Text(row, self._style, no_wrap=True, overflow="ignore") for row in rows), self._status())

    def _status(self) -> Table:
        now = time.monotonic()
        elapsed = now - self._begin
        parts = [f"{elapsed:.0f} s"]
        if self._tokens:
            parts.append(f"{self._tokens} tokens")
        if self._tokens > 1 and now > self._first_at:
            parts.append(f"{(self._tokens - 1) / (now - self._first_at):.0f} tokens/s")
        line = Text.assemble((self._model, "bold"), " ", (self._phase, "cyan"), " · ", " · ".join(parts))
        memory = self._sample(self._pid) if self._pid else None
        if memory is not None:
            used_mb, budget_mb, level = memory
            line.append(f" · {used_mb:.0f} of {budget_mb:.0f} MB ")
            line.append(level, style=LEVEL_STYLE.get(level, ""))
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self._spinner, line)
        return grid
