"""What starting coe costs: `--help`, `models list`, `vram plan` and the way to the first token, each beside a bare script.

Usage: python benchmarks/startup.py [ROUNDS]   (the embedded model must be there: coe models pull smollm2-135m)
"""

from __future__ import annotations

import sys
from functools import partial

from pairs import COE, COLUMNS, MODEL, ROOT, alternate, first_byte_s, print_table, wall_s

from coe_cli.runtime.folders import folders

PROMPT = "Name three colours."


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    imports = [sys.executable, "-c", "import typer, rich, rich.table, rich.console"]
    imports_yaml = [sys.executable, "-c", "import typer, rich, yaml"]
    model_dir = str(folders().models / MODEL)
    bare = [sys.executable, str(ROOT / "benchmarks" / "bare_oga.py"), model_dir, PROMPT, "8"]
    ask = [*COE, "ask", "--no-serve", "--no-log", "-m", MODEL, "--max-tokens", "8", "-s", "", PROMPT]
    rows = []
    for name, arguments, beside in (
        ("--help", ["--help"], imports),
        ("models list", ["models", "list"], imports),
        ("vram plan", ["vram", "plan"], imports_yaml),
    ):
        pair = alternate(partial(wall_s, [*COE, *arguments]), partial(wall_s, beside), rounds)
        rows.append(pair.cells(f"`{name}`", "s", "≤ 1.5"))
    pair = alternate(lambda: first_byte_s(ask), lambda: first_byte_s(bare), rounds)
    rows.append(pair.cells("`ask`, start to first token", "s", "≤ 1.25"))
    print_table(COLUMNS, rows)


if __name__ == "__main__":
    main()
