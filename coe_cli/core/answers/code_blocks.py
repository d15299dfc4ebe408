"""Fenced code blocks in an answer."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^ {0,3}(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})[^\n]*$", re.MULTILINE)


def last_code_block(text: str) -> str | None:
    """The content of the last fenced block without its fences; an unclosed block runs to the end. None: no block."""
    block: str | None = None
    at = 0
    while opening := _FENCE.search(text, at):
        fence = opening["fence"]
        start = min(opening.end() + 1, len(text))
        closing = re.compile(rf"^ {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t\r]*$", re.MULTILINE).search(
            text, start
        )
        block = text[start : closing.start()] if closing else text[start:]
        if closing is None:
            break
        at = closing.end()
    return block
