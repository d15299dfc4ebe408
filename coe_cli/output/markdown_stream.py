"""An answer in Markdown as rows of a terminal while it is written: words are kept whole, code keeps its lines and has colours.

A block (paragraph, list, table) is drawn again as it grows and printed for good when it ends, or row by row where it is
long. Nothing of an answer is swallowed: HTML, entities, escapes and line breaks stay as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PROSE_WIDTH: Final = 100
"""Cells of a line of prose at most: longer ones are hard to read."""
_AS_WRITTEN: Final = (
    "html_block",
    "html_inline",
    "entity",
    "escape",
    "autolink",
    "image",
    "reference",
    "lheading",
    "code",
)
_FENCE: Final = re.compile(r"\s*(?P<marks>`{3,}|~{3,})\s*(?P<language>[\w+#.-]*)[^`]*$")
_HEADING: Final = re.compile(r"#{1,6}\s+(?P<title>.*?)\s*#*")
_STYLES: Final = {
    "markdown.code": "cyan",
    "markdown.code_block": "",
    "markdown.item.bullet": "cyan",
    "markdown.item.number": "cyan",
}
"""Rich's own have a black background, which a light terminal shows as a bar."""


class MarkdownStream:
    """``feed`` it text; it hands finished rows to ``emit``, and ``rows`` has those that may still change."""

    def __init__(self, console: Console, width: int, room: int, emit: Callable[[RenderableType], None]) -> None:
        """``width`` cells; a block of more than ``room`` rows is emitted before it ends."""
        self._console, self._width, self._room, self._emit = console, width, room, emit
        self._block, self._line, self._emitted = "", "", 0
        self._fence, self._language = "", ""

    def feed(self, text: str) -> None:
        *complete, rest = (self._line + text).split("\n")
        for line in complete:
            self._take(line)
        self._line = rest
        if complete and len(rows := self._all_rows()) - self._emitted > self._room:
            self._emit_rows(rows[:-2])

    def rows(self) -> list[RenderableType]:
        """The rows of the block that is being written."""
        return self._all_rows()[self._emitted :]

    def end(self) -> None:
        """Nothing more comes, or something else comes between."""
        self._block, self._line = self._block + self._line, ""
        self._end_block()
        self._fence = ""

    def _take(self, line: str) -> None:
        self._line = ""
        if self._fence:
            if re.fullmatch(rf"\s*{re.escape(self._fence[0])}{{{len(self._fence)},}}\s*", line):
                self._end_block()
                self._fence = ""
            else:
                self._block += line + "\n"
        elif match := _FENCE.match(line):
            self._end_block()
            self._fence, self._language = match["marks"], match["language"]
        elif match := _HEADING.fullmatch(line):
            self._end_block()
            self._emit(Text(match["title"].replace("**", ""), style="bold"))
        elif line.strip():
            self._block += line + "\n"
        else:
            self._end_block()
            self._emit(Text())

    def _end_block(self) -> None:
        self._emit_rows(self._all_rows())
        self._block, self._emitted = "", 0

    def _emit_rows(self, rows: list[RenderableType]) -> None:
        for row in rows[self._emitted :]:
            self._emit(row)
        self._emitted = max(self._emitted, len(rows))

    def _all_rows(self) -> list[RenderableType]:
        text = self._block + self._line
        if not text.strip():
            return []
        if self._fence:
            from rich.syntax import Syntax

            code = Syntax("", self._language or "text", theme="ansi_light").highlight(text.removesuffix("\n"))
            return list(code.split("\n", allow_blank=True))
        from rich.segment import SegmentLines
        from rich.theme import Theme

        with self._console.use_theme(Theme(_STYLES)):
            options = self._console.options.update(width=min(self._width, PROSE_WIDTH))
            lines = self._console.render_lines(_markdown(text), options, pad=False)
        words = [number for number, line in enumerate(lines) if any(part.text.strip() for part in line)]
        return [SegmentLines([line], new_lines=True) for line in lines[words[0] : words[-1] + 1]] if words else []


def write_markdown(console: Console, text: str) -> None:
    """A text that is complete."""
    stream = MarkdownStream(console, console.width, len(text), lambda row: console.print(row, soft_wrap=True))
    stream.feed(text)
    stream.end()


def _markdown(text: str) -> Any:
    from markdown_it import MarkdownIt
    from rich.markdown import Markdown

    shown = Markdown("", hyperlinks=False, inline_code_theme=None)
    parser = MarkdownIt().enable("table").enable("strikethrough").disable(list(_AS_WRITTEN))
    shown.parsed = parser.parse(text.rstrip("\n").replace("\n", "  \n"))
    return shown
