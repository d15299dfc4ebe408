"""The live view of `coe ask` on a terminal: the answer above, one status line below it that vanishes at the end."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable

from rich.console import Group
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from coe_cli.core.names import share_words
from coe_cli.output.answer_sink import AnswerSink
from coe_cli.output.console import Output
from coe_cli.output.display import Display, view_width
from coe_cli.output.markdown_stream import MarkdownStream
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
        self._thought, self._thinks = "", False
        self._to_stdout = output.stdout.isatty()
        self._console = output.console(on_stderr=True)
        self._spinner = Spinner("dots")
        self._room = max(3, self._console.height // 2)
        self._answer = MarkdownStream(
            self._console, view_width(self._console), self._room, lambda row: self._display.print(row)
        )
        # While the model loads: a tenth of a second that the first word need not wait for.
        threading.Thread(target=importlib.import_module, args=("rich.markdown",), daemon=True).start()
        self._display = Display(self._console, self._view, _FRAMES_PER_S)

    def phase(self, name: str, worker_pid: int) -> None:
        self._phase, self._pid = name, worker_pid

    def wrote(self, tokens: int) -> None:
        if not self._tokens:
            self._first_at = time.monotonic()
        self._tokens += tokens

    def delta(self, text: str, *, is_thinking: bool) -> None:
        self._phase = "thinking" if is_thinking else "answering"
        if is_thinking:
            if self._show_thinking:
                self._append(text, is_thinking=True)
        elif self._to_stdout:
            self._wrote = True
            self._append(text, is_thinking=False)
        else:
            super().delta(text, is_thinking=False)

    def close(self) -> None:
        if self._display.is_shown:
            self._end_text()
            self._display.stop()

    def _append(self, text: str, *, is_thinking: bool) -> None:
        if is_thinking != self._thinks:
            self._end_text()
        self._thinks = is_thinking
        text = for_terminal(text)
        if not is_thinking:
            self._answer.feed(text)
            return
        *complete, self._thought = (self._thought + text).split("\n")
        for line in complete:
            self._display.print(Text(line, style="dim"))

    def _end_text(self) -> None:
        self._answer.end()
        if self._thought:
            self._display.print(Text(self._thought, style="dim"))
            self._thought = ""

    def _view(self) -> Group:
        rows = [Text(self._thought, style="dim")] if self._thought else self._answer.rows()[-self._room :]
        return Group(*rows, self._status())

    def _status(self) -> Table:
        now = time.monotonic()
        seconds, tokens, rate = f"{now - self._begin:.0f} s", f"{self._tokens} tokens", ""
        if self._tokens > 1 and now > self._first_at:
            rate = f"{(self._tokens - 1) / (now - self._first_at):.0f} tokens/s"
        counts = (seconds, tokens if self._tokens else "", rate)
        memory = self._sample(self._pid) if self._pid else None
        share, level = ("", "") if memory is None else (share_words(*memory[:2]), memory[2])
        head = Text.assemble((self._model, "bold"), " ", (self._phase, "cyan"))
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self._spinner, status_line(head, counts, share, level, view_width(self._console) - 2))
        return grid


def status_line(head: Text, counts: tuple[str, str, str], share: str, level: str, width: int) -> Text:
    """``head``, and behind it as much as fits into ``width`` cells: seconds, tokens, their rate, memory and its pressure."""
    memory = share if level == "normal" else level
    for tail in ((*counts, f"{share} ", level), (*counts, memory), counts, counts[:2], counts[1:2], ()):
        line = head.copy()
        for part in filter(str.strip, tail):
            line.append("" if line.plain.endswith(" ") else " · ").append(part, LEVEL_STYLE.get(part, ""))
        if line.cell_len <= width:
            break
    return line
