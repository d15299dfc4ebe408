"""What the user is told besides a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct


class Note(Struct, frozen=True):
    """A sentence and what it is about.

    ``fallback``, ``provider``, ``context``, ``memory``: how an answer differs from what was asked for. ``routing``: what
    ``Resolved.routing`` says too. ``progress``: what takes a while now. ``warning``: what goes on, but not as it should.
    """

    kind: Literal["fallback", "provider", "context", "memory", "routing", "progress", "warning"]
    text: str

    @property
    def line(self) -> str:
        """As it is printed."""
        return f"warning: {self.text}" if self.kind == "warning" else self.text


class Progress(Note, frozen=True, kw_only=True):
    """What takes a while now, told again as it goes on: ``done`` of ``total`` bytes, where they are known."""

    kind: Literal["progress"] = "progress"
    done: float = 0.0
    total: float | None = None


def in_lines(write: Callable[[str], None]) -> Callable[[Note], None]:
    """A listener that writes each line once, however often what it is about goes on."""
    written: set[str] = set()

    def tell(note: Note) -> None:
        if note.line not in written:
            written.add(note.line)
            write(note.line)

    return tell
