"""The stderr of a child process, in a temporary file that lives as long as it is needed, and what it says of the end."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import IO

from coe_cli.core.native_log import cause_of_death, decode_log
from coe_cli.core.process_exit import ProcessExit, explain_exit

_TAIL_BYTES = 4000


class ProcessLog:
    """Give ``file`` to the process as its stderr."""

    def __init__(self) -> None:
        self.file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process

    def tail(self) -> list[str]:
        """The last lines that the process has written so far."""
        try:
            # A descriptor of its own does not help: its position is the one at which the process writes on.
            size = os.fstat(self.file.fileno()).st_size
            begin = max(0, size - _TAIL_BYTES)
            if sys.platform == "win32":
                before = self.file.seek(0, os.SEEK_CUR)
                self.file.seek(begin)
                data = self.file.read(size - begin)
                self.file.seek(before)
            else:
                data = os.pread(self.file.fileno(), size - begin, begin)
        except (OSError, ValueError):
            return []
        return decode_log(data)

    def explain(self, code: int) -> tuple[ProcessExit, str]:
        """How a process that ended with ``code`` ended, and its last words on the matter, which may be empty."""
        words = cause_of_death(self.tail())
        return explain_exit(code, windows=sys.platform == "win32", silent=not words), words

    def close(self) -> None:
        self.file.close()
