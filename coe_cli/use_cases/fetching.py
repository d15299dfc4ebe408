"""What the user is told, and asked, before models are fetched: licences, and how much it is."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Final

from coe_cli.core.models.source_uri import HubSource, parse_uri
from coe_cli.core.names import size_words
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.errors import UsageError
from coe_cli.output.console import Output
from coe_cli.output.progress_view import ProgressView
from coe_cli.output.question import agrees, is_interactive
from coe_cli.runtime.folders import folders
from coe_cli.runtime.store.hub import list_files
from coe_cli.runtime.store.install import Request
from coe_cli.runtime.store.pull import pull
from coe_cli.runtime.store.source_errors import SourceFailed

ASK_ABOVE_MB: Final = 10_000
"""About 10 GB."""


def size_mb(request: Request) -> float:
    """What is fetched, as far as it is known beforehand; else 0."""
    if request.entry is not None:
        return request.entry.download_mb
    return max((source.size_mb or 0.0 for source in request.sources), default=0.0)


def agree_to_fetch(requests: list[Request], output: Output, *, yes: bool, listed: bool = False) -> None:
    """Say each model's licence and size; above 10 GB in all ask on a terminal.

    ``listed``: the user has seen and agreed to what the catalog says, so only what the hub has to say is new.

    Raises:
        UsageError: the user says no, or there is nobody to ask and ``yes`` is not given.
    """
    total_mb = 0.0
    for request in requests:
        mb = size_mb(request)
        total_mb += mb
        if listed and request.entry is not None and request.entry.verified:
            continue
        size = f", {size_words(mb)}" if mb else ""
        with output.waiting(f"asking the hub for the licence of {request.name}"):
            licence = licence_of(request)
        output.note(f"{request.name}: licence {licence}{size}")
    if total_mb <= ASK_ABOVE_MB or yes:
        return
    words = f"{len(requests)} models, {size_words(total_mb)} in all"
    if not is_interactive(output):
        raise UsageError(f"{words}, are more than 10 GB", "Add --yes, or name fewer models.")
    if not agrees(output, f"{words}. Fetch them?", without_terminal=False):
        raise UsageError("nothing was fetched", "Name fewer models.")


def licence_of(request: Request) -> str:
    """What is known of the licence. Of an entry that nobody has looked at yet the hub is asked, which wins where it answers."""
    entry = request.entry
    known = (entry.licence if entry else "") or "unknown; see where it comes from"
    if entry is None or entry.verified:
        return known
    told, source = None, parse_uri(request.sources[0].uri)
    with suppress(SourceFailed):
        told = list_files(source).licence if isinstance(source, HubSource) else None
    if told is None:
        return f"{known} (not checked: the hub does not say)"
    return told if told.lower() == entry.licence.lower() else f"{told}, as the hub says (the catalog: {known})"


def fetch_requests(
    requests: list[Request],
    output: Output,
    *,
    force: bool = False,
    as_is: bool = False,
    yes: bool = True,
    listed: bool = False,
) -> None:
    """Fetch models two at a time, with a bar for each and one for all; ``yes`` and ``listed`` as of ``agree_to_fetch``.

    Raises:
        UsageError: the user says no to more than 10 GB, or there is nobody to ask and ``yes`` is not given.
        CoeError: as ``store.pull``.
    """
    models_dir = folders().models
    missing = [request for request in requests if force or not (models_dir / request.name).exists()]
    agree_to_fetch([request for request in missing if not request.is_local], output, yes=yes, listed=listed)
    total_bytes = sum(map(size_mb, missing)) * BYTES_PER_MB
    work = "converting" if all(request.is_local and request.recipe for request in requests) else "fetching"
    title = f"{work} {', '.join(request.name for request in requests)}"
    with ProgressView(output, title, works=len(requests), total_bytes=total_bytes) as view:
        progress_of = view.row if len(requests) > 1 else lambda name: nullcontext(view)
        pull(requests, models_dir, progress_of, view.note, force=force, as_is=as_is)
