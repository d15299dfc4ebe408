"""Tables for people: how columns, levels and marks look in every command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.table import Table

LEVEL_STYLE: Final = {"normal": "green", "elevated": "yellow", "high": "dark_orange", "critical": "red"}
"""Colours of the pressure levels."""
MARK_STYLE: Final = {"ok": "green", "warning": "yellow", "error": "red"}
"""Colours of a finding's mark."""

Column = tuple[str, dict[str, Any]]


def left(title: str = "") -> Column:
    """A column of words, one line each."""
    return title, {"no_wrap": True}


def right(title: str) -> Column:
    """A column of numbers, one line each."""
    return title, {"justify": "right", "no_wrap": True}


def number(title: str) -> Column:
    """A column of numbers under a title that wraps when the terminal is narrow."""
    return title, {"justify": "right"}


def folded(title: str = "") -> Column:
    """A column of words that wraps when the terminal is narrow."""
    return title, {"overflow": "fold"}


def table(*columns: Column, ruled: bool = False, head: bool = True, tight: bool = False) -> Table:
    """An empty table; ``ruled`` draws a line under the titles, a ``tight`` one has one space between columns, not two."""
    from rich import box
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD if ruled else None,
        pad_edge=False,
        show_header=head,
        padding=(0, 1, 0, 0) if tight else (0, 1),
    )
    for title, options in columns:
        made.add_column(title, **options)
    return made
