"""Text that can be given to a model: one check for every way in."""

from __future__ import annotations

from coe_cli.errors import UsageError

NUL_REASON = "has the character U+0000, at which the runtime would end the text"


def check_text(text: str, field: str) -> None:
    """
    Raises:
        UsageError: ``text`` has a character that no model can be given; the message names the ``field``.
    """
    if "\0" in text:
        raise UsageError(f"`{field}` {NUL_REASON}", "Remove it.")
