"""Write docs/screen.svg: what `coe vram plan` shows in a terminal, run for this and photographed with Rich.

    python docs/make_screen.py

The command runs in a terminal of its own (POSIX) with an empty models folder, so that the picture is the same everywhere.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

COMMAND = ("vram", "plan", "-p", "standard", "--compare")
COLUMNS = 120
TARGET = Path(__file__).with_name("screen.svg")


def terminal_output(arguments: tuple[str, ...], columns: int) -> str:
    """What coe writes to a terminal of ``columns`` columns, with its escape sequences."""
    root = str(Path(__file__).resolve().parents[1])
    with tempfile.TemporaryDirectory() as empty:
        folders = {f"COE_{name}_DIR": empty for name in ("MODELS", "CONFIG", "STATE", "CACHE")}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COE_", "COLUMNS", "LINES"))}
        terminal, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", "coe_cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=inner,
            stderr=inner,
            env=kept | folders | {"PYTHONPATH": root, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )
        os.close(inner)
        written = b""
        while True:
            try:
                part = os.read(terminal, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            written += part
        os.close(terminal)
        if process.wait() != 0:
            raise SystemExit(written.decode())
    return written.decode().replace("\r\n", "\n")


def picture(text: str, title: str, columns: int) -> str:
    """``text`` as SVG, without the font that Rich would fetch from the network."""
    from rich.console import Console
    from rich.text import Text

    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=columns, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(text.strip("\n")))
        svg = console.export_svg(title=title, unique_id="coe")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return re.sub(r"[ \t]+$", "", svg.replace("Fira Code, monospace", "monospace"), flags=re.MULTILINE).rstrip() + "\n"


def main() -> None:
    command = f"coe {' '.join(COMMAND)}"
    text = f"$ {command}\n{terminal_output(COMMAND, COLUMNS)}"
    TARGET.write_text(picture(text, command, COLUMNS), encoding="utf-8")
    sys.stderr.write(f"{TARGET} is written\n")


if __name__ == "__main__":
    main()
