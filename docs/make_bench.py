"""Write what docs/ shows of the published run of `coe bench`, docs/bench.json: a sample, a table, and a picture.

    python docs/make_bench.py

``coe bench smollm2-135m --prompt-tokens 16,512,2048 --depth 0,1024,3072 --save docs/bench.json`` makes another run.
"""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PICTURE = DOCS / "bench.svg"
COLUMNS = 92
_SHOWN = (
    "prompt",
    "depth",
    "first token s",
    "prefill tokens/s",
    "decode tokens/s",
    "of bandwidth",
    "peak MB",
    "plan MB",
)


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def pages() -> dict[Path, str]:
    """The pages that show the run, as they ought to be."""
    sample, table = DOCS / "bench.md", DOCS / "performance.md"
    return {
        sample: _between(sample, "<!-- the published run -->\n", f"```text\n{shown('human')}```\n"),
        table: _between(table, "<!-- the table of the published run -->\n", _columns(shown("md"))),
    }


def shown(output_format: str) -> str:
    """The run as a terminal shows it, without colours, or as Markdown."""
    from coe_cli.core.bench.bench_rows import decode_report
    from coe_cli.output.bench_view import BenchFormat, write_report
    from coe_cli.output.console import Output

    os.environ.update(COLUMNS=str(COLUMNS), NO_COLOR="1", TERM="xterm-256color")
    screen = _Screen()
    report = decode_report((DOCS / "bench.json").read_bytes())
    write_report(Output(stdout=screen, stderr=io.StringIO()), report, BenchFormat(output_format))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    return "\n".join(line.rstrip() for line in plain.strip("\n").splitlines()) + "\n"


def draw(path: Path) -> None:
    """The picture, the same whenever it is drawn."""
    import matplotlib

    from coe_cli.core.bench.bench_rows import decode_report
    from coe_cli.output.bench_plot import draw as draw_report

    os.environ["SOURCE_DATE_EPOCH"] = "0"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "coe"}):
        draw_report(decode_report((DOCS / "bench.json").read_bytes()), path)
    path.write_text(re.sub(r"[ \t]+$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8")


def _columns(table: str) -> str:
    """Those columns of a Markdown table that differ from row to row."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    places = [rows[0].index(name) for name in _SHOWN]
    return "".join(f"| {' | '.join(row[place] for place in places)} |\n" for row in rows)


def _between(page: Path, start: str, text: str) -> str:
    """The page with ``text`` between the mark and the next empty line."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(start)
    return before + mark + text + rest[re.search(r"```\n(?=\n)|(?<=\|\n)(?=\n)", rest).end() :]  # type: ignore[union-attr]


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
    draw(PICTURE)
    sys.stderr.write("docs/bench.md, docs/performance.md and docs/bench.svg are written\n")
