"""What a process and its native libraries wrote to stderr, as lines of text, and which of them says why it ended.

On Windows ONNX Runtime writes its lines as UTF-16, with colours, among Python's UTF-8.
"""

from __future__ import annotations

import re

_UTF_16 = re.compile(rb"(?:[\x01-\xff]\x00|[\x00-\xff][\x01-\x06]){2,}")
"""Code units of the alphabets of Europe and the Near East; plain text has neither NUL nor these control characters."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NOISE = re.compile(
    r"\[[VIW]:[^\]]*\]"  # ONNX Runtime's severities below error
    r"|^(Failed to create DXGI factory|\s*warnings?\.warn\(|note: run with `RUST_BACKTRACE)"
    r"|\b\w*Warning: "
)


def decode_log(data: bytes) -> list[str]:
    """The lines in ``data``, a file's content or its end, without colours and empty lines."""
    text = _UTF_16.sub(_to_utf_8, data.lstrip(b"\0")).decode("utf-8", "replace")
    lines = (_COLOUR.sub("", line).replace("\0", "").rstrip() for line in text.splitlines())
    return [line for line in lines if line.strip()]


def cause_of_death(lines: list[str]) -> str:
    """The last line that is no mere warning, or an empty string."""
    return next((line.strip() for line in reversed(lines) if not _NOISE.search(line)), "")


def _to_utf_8(found: re.Match[bytes]) -> bytes:
    units = found.group()
    if b"\0" not in units:
        return units
    return units.decode("utf-16-le", "replace").encode("utf-8", "replace")
