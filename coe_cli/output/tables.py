"""Tables and lines for people: how columns, levels and marks look in every command.

``write_table`` and ``write_line`` use Rich on a terminal alone: in a pipe its import would cost more than all else that a
listing does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from itertools import zip_longest
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
Part = str | tuple[str, str]
"""A text, or one with its style."""
Cell = str | Sequence[Part]


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


def columns_of(output: Output) -> int | None:
    """Columns of the terminal that stdout is; None where it is none and nothing need be left out."""
    return shutil.get_terminal_size().columns if output.stdout.isatty() else None


def is_narrow(output: Output, below: int = _WIDE) -> bool:
    """Whether stdout is a terminal on which a wide table would be unreadable."""
    return (columns_of(output) or below) < below


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
    rows: Sequence[Sequence[Cell]],
    *,
    styles: Sequence[str] = (),
    ruled: bool = False,
    tight: bool = False,
) -> None:
    """``rows`` on stdout, each in its style; in a pipe as aligned text that is never cut, without an empty line or trailing blanks.

    On a terminal a ``ruled`` table has an empty line before and after it. Columns without titles have no head.
    """
    head = any(title for title, _ in columns)
    if output.stdout.isatty():
        from rich.text import Text

        shown = table(*columns, ruled=ruled, head=head, tight=tight)
        for number_of_row, row in enumerate(rows):
            cells = [Text.assemble(cell) if isinstance(cell, str) else Text.assemble(*cell) for cell in row]
            shown.add_row(*cells, style=styles[number_of_row] if styles else "")
        output.rich(shown)
        return
    lines = [[_plain([cell] if isinstance(cell, str) else cell) for cell in row] for row in rows]
    lines = [*([[title for title, _ in columns]] if head else []), *lines]
    parts = [line for row in lines for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")]
    widths = [max(map(len, column)) for column in zip(*parts, strict=True)]
    to_right = [options.get("justify") == "right" for _, options in columns]
    for line in parts:
        cells_of_line = (
            cell.rjust(width) if right_side else cell.ljust(width)
            for cell, width, right_side in zip(line, widths, to_right, strict=True)
        )
        output.stdout.write("  ".join(cells_of_line).rstrip() + "\n")


def write_line(output: Output, *parts: Part) -> None:
    """One line on stdout of texts, some with a style; in a pipe without."""
    if output.stdout.isatty():
        from rich.text import Text

        output.rich(Text.assemble(*parts))
    else:
        output.stdout.write(_plain(parts) + "\n")


def _plain(parts: Iterable[Part]) -> str:
    return "".join(part if isinstance(part, str) else part[0] for part in parts)
