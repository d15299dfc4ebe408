"""Limits that a process sets itself before it runs what others wrote: how much memory, and no longer than its parent."""

from __future__ import annotations

import sys

from coe_cli.runtime.job_object import bound_by_job

MEMORY_MB = 1536
"""Of 2²⁰ bytes. A tokenizer of 256,000 tokens takes 300, the ids of a long text a tenth of that."""


def bound_memory() -> None:
    """Let no allocation pass ``MEMORY_MB``: Python raises MemoryError there, other code ends the process."""
    if sys.platform == "win32":
        bound_by_job(MEMORY_MB * 2**20)
        return
    import resource

    for name in ("RLIMIT_DATA", "RLIMIT_AS"):
        limit = getattr(resource, name, None)
        if limit is None:
            continue
        size = (MEMORY_MB if name == "RLIMIT_DATA" else 4 * MEMORY_MB) * 2**20
        try:
            resource.setrlimit(limit, (size, size))
        except (ValueError, OSError):  # macOS takes neither; a lower limit of the user's stays
            continue
