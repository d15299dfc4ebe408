"""Questions typed or piped line by line: continued lines, blocks in triple quotes, and the lines of earlier sessions."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from coe_cli.runtime.atomic_write import make_private

_BLOCK = '"""'
_HISTORY_LINES = 1000


class QuestionReader:
    """Reads from stdin. On a terminal with a prompt, line editing and the arrow keys (readline, where Python has it).

    ``history_path`` keeps the lines for the next session, readable by the owner only; None keeps nothing.
    """

    def __init__(self, history_path: Path | None = None) -> None:
        self.interactive = sys.stdin is not None and sys.stdin.isatty()
        self._history_path = history_path
        self._readline: Any = None
        if self.interactive:
            self._open_line_editor()

    def read(self) -> str | None:
        """The next question without its marks; None at the end of the input.

        Raises:
            KeyboardInterrupt: Ctrl-C; what had been typed is dropped.
        """
        line = self._line("> ")
        if line is None:
            return None
        if line.lstrip().startswith(_BLOCK):
            return self._block(line.lstrip().removeprefix(_BLOCK))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            more = self._line(". ")
            if more is None:
                break
            lines.append(more)
        return "\n".join(lines)

    def close(self) -> None:
        """Keep the lines for the next session, as far as that is possible."""
        if self._readline is None or self._history_path is None:
            return
        with contextlib.suppress(OSError):
            make_private(self._history_path)
            self._readline.set_history_length(_HISTORY_LINES)
            self._readline.write_history_file(str(self._history_path))

    def _block(self, first: str) -> str:
        lines = [first] if first else []
        line: str | None = first
        while line is not None and not line.rstrip().endswith(_BLOCK):
            line = self._line(". ")
            if line is not None:
                lines.append(line)
        if lines:
            lines[-1] = lines[-1].rstrip().removesuffix(_BLOCK)
        return "\n".join(lines)

    def _line(self, prompt: str) -> str | None:
        if not self.interactive:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        try:
            return input(prompt)
        except EOFError:
            return None

    def _open_line_editor(self) -> None:
        try:
            import readline
        except ImportError:  # Windows: the console edits lines and keeps them itself
            return
        self._readline = readline
        readline.parse_and_bind(
            "set enable-bracketed-paste on"
        )  # Python turns it off: each pasted line would be a question
        if self._history_path is not None:
            with contextlib.suppress(OSError):
                readline.read_history_file(str(self._history_path))
