"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write beside ``path`` (with its suffix), which takes the place of ``path`` when the block ends.

    When it does not end, ``path`` is as it was. Hard links to what was there before keep that.
    """
    scratch = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        yield scratch
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
