"""What the user is told, and asked, before models are fetched: licences, and how much it is."""

from __future__ import annotations

from typing import Final

from coe_cli.errors import UsageError
from coe_cli.output.console import Output
from coe_cli.output.question import agrees, is_interactive
from coe_cli.runtime.store.install import Request

ASK_ABOVE_MB: Final = 10_000
"""About 10 GB."""


def agree_to_fetch(requests: list[Request], output: Output, *, yes: bool) -> None:
    """Say each model's licence and size; above 10 GB in all ask on a terminal.

    Raises:
        UsageError: the user says no, or there is nobody to ask and ``yes`` is not given.
    """
    total_mb = 0.0
    for request in requests:
        mb = (
            request.entry.download_mb
            if request.entry
            else max((s.size_mb or 0.0 for s in request.sources), default=0.0)
        )
        total_mb += mb
        licence = (request.entry.licence if request.entry else "") or "unknown; see where it comes from"
        size = f", {mb:,.0f} MB" if mb else ""
        output.note(f"{request.name}: licence {licence}{size}")
    if total_mb <= ASK_ABOVE_MB or yes:
        return
    words = f"{len(requests)} models, {total_mb / 1000:.0f} GB in all"
    if not is_interactive(output):
        raise UsageError(f"{words}, are more than 10 GB", "Add --yes, or name fewer models.")
    if not agrees(output, f"{words}. Fetch them?", without_terminal=False):
        raise UsageError("nothing was fetched", "Name fewer models.")
