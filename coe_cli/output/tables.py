"""Tables and lines for people: how columns, levels and marks look in every command.

``write_table`` and ``write_line`` use Rich on a terminal alone: in a pipe its import would cost more than all else that a
listing does.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.table import Table

    from coe_cli.output.console import Output

LEVEL_STYLE: Final = {"normal": "green", "elevated": "yellow", "high": "dark_orange", "critical": "red"}
"""Colours of the pressure levels."""
MARK_STYLE: Final = {"ok": "green", "warning": "yellow", "error": "red"}
"""Colours of a finding's mark."""

_WIDE: Final = 110

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


def folded(title: str = "", max_width: int | None = None) -> Column:
    """A column of words that wraps when the terminal is narrow, or beyond ``max_width`` cells."""
    return title, {"overflow": "fold", "max_width": max_width}


def is_narrow(output: Output) -> bool:
    """Whether stdout is a terminal on which a wide table would be unreadable."""
    return output.stdout.isatty() and shutil.get_terminal_size().columns < _WIDE


def table(*columns: Column, ruled: bool = False, head: bool = True, tight: bool = False) -> Table:
    """An empty table; ``ruled`` draws a line under the titles, a ``tight`` one has one space between columns, not two.

    Where no column is ``folded``, those of words are: Rich would cut every column, short ones too, to make room for a long one.
    """
    from rich import box
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD if ruled else None,
        pad_edge=False,
        show_header=head,
        padding=(0, 1, 0, 0) if tight else (0, 1),
    )
    folds = any("overflow" in options for _, options in columns)
    for title, options in columns:
        made.add_column(title, **(options if folds or "justify" in options else {"overflow": "fold"}))
    return made


def write_table(
    output: Output,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    styles: Sequence[str] = (),
    ruled: bool = False,
    tight: bool = False,
) -> None:
    """``rows`` on stdout, each in its style; in a pipe as aligned text that is never cut.

    A ``ruled`` table has an empty line before and after it.
    """
    if output.stdout.isatty():
        shown = table(*columns, ruled=ruled, tight=tight)
        for number_of_row, row in enumerate(rows):
            shown.add_row(*row, style=styles[number_of_row] if styles else "")
        output.rich(shown)
        return
    lines = [[title for title, _ in columns], *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    to_right = [options.get("justify") == "right" for _, options in columns]
    edge = "\n" if ruled else ""
    output.stdout.write(edge)
    for line in lines:
        cells = (
            cell.rjust(width) if right_side else cell.ljust(width)
            for cell, width, right_side in zip(line, widths, to_right, strict=True)
        )
        output.stdout.write("  ".join(cells).rstrip() + "\n")
    output.stdout.write(edge)


def write_line(output: Output, *parts: str | tuple[str, str]) -> None:
    """One line on stdout of texts, some with a style; in a pipe without."""
    if output.stdout.isatty():
        from rich.text import Text

        output.rich(Text.assemble(*parts))
    else:
        output.stdout.write("".join(part if isinstance(part, str) else part[0] for part in parts) + "\n")
