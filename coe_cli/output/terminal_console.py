"""Rich's console, which draws with control characters of its own and lets none through that are in a text."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from coe_cli.output.terminal import for_terminal


class TerminalConsole(Console):
    """On a terminal, text is without the characters that drive it; in a pipe it is as it was."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See ``rich.console.Console.render``."""
        segments = super().render(renderable, options)
        if not self.is_terminal:
            return segments
        return (part if part.control else Segment(for_terminal(part.text), part.style) for part in segments)
