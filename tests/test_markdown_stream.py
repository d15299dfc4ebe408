"""Markdown on a terminal while it is written: words whole, nothing swallowed, the same whatever the pieces are."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from coe_cli.output.markdown_stream import MarkdownStream

ANSWER = """\
# Deadlock, **briefly**

Processes that wait for each other, so that none of them ever goes on; see <b>tags</b>, &lt; and \\(x^2\\).
A second line.

1. Mutual exclusion with a rather long text that is wrapped below its number and not below the margin
2. Hold and `wait`

```python
def f(x):
    return x + 1  # a comment that is longer than the line of a narrow terminal, and stays one line for whoever copies it
```
The end: 2 < 3."""


def shown(text: str, width: int, pieces: int = 7, room: int = 8, colour: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None)
    emit: Any = lambda row: console.print(row, soft_wrap=True)  # noqa: E731
    stream = MarkdownStream(console, width, room, emit)
    for start in range(0, len(text), pieces):
        stream.feed(text[start : start + pieces])
        assert len(stream.rows()) <= room + 3
    stream.end()
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


@pytest.mark.parametrize("width", [50, 80, 200])
def test_no_word_is_broken_and_none_is_lost(width: int) -> None:
    lines = shown(ANSWER, width).splitlines()
    prose = [line for line in lines if "return x" not in line]
    assert max(map(len, prose)) <= min(width, 100)
    written = set(re.sub(r"[#*`]|^python$|\\d\\. ", " ", ANSWER, flags=re.MULTILINE).split()) - {"1.", "2.", "python"}
    assert written <= set(" ".join(lines).split())
    assert any(line.endswith("whoever copies it") and line.startswith("    return") for line in lines)


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_the_pieces_do_not_matter(pieces: int) -> None:
    assert shown(ANSWER, 80, pieces, room=60) == shown(ANSWER, 80, 7, room=60)


def test_code_and_headings_have_colours_or_none() -> None:
    assert "\x1b[34mdef" in shown(ANSWER, 80, colour=True) and "\x1b" not in shown(ANSWER, 80)


@given(st.text(alphabet="ab *_`#-1.|>~\n[]()<&\\\\", max_size=80))
def test_letters_are_never_swallowed(text: str) -> None:
    fences = re.findall(r"^\\s*(?:`{3,}|~{3,})\\s*([\\w+#.-]*)[^`\\n]*$", text, flags=re.MULTILINE)
    if not fences:
        assert re.sub("[^ab]", "", shown(text, 80)) == re.sub("[^ab]", "", text)
