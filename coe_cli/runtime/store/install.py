"""Install a model: fetch, convert where needed, check, and put in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from coe_cli.core.findings import Level
from coe_cli.core.importing.encodings import Precision
from coe_cli.core.models.catalog import Catalog, ModelEntry, Source
from coe_cli.core.models.graph_check import problem_findings
from coe_cli.core.models.model_name import check_name
from coe_cli.core.models.model_spec import BYTES_PER_MB, GENAI_CONFIG, ModelSpec
from coe_cli.core.models.source_uri import as_hub_uri, default_name, is_uri, parse_uri
from coe_cli.errors import ModelDamaged, ModelMissing
from coe_cli.replacing import empty_folder, remove, remove_folder
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.graph_files import check_model
from coe_cli.runtime.model_folder.model_ends import end_finding
from coe_cli.runtime.model_folder.model_files import read_config
from coe_cli.runtime.model_folder.on_disk import models_on_disk, spec_from_folder
from coe_cli.runtime.progress import OnProgress, Step, size_of
from coe_cli.runtime.store.golden_answer import forget
from coe_cli.runtime.store.integrity import MANIFEST, check_files, write_manifest
from coe_cli.runtime.store.model_removal import check_replaceable
from coe_cli.runtime.store.model_store import (
    check_room,
    discard,
    open_model,
    put_in_place,
    staging_folder,
    take_finished,
    writing,
)
from coe_cli.runtime.store.sources import Arrival, fetch

_GGUF_AND_RESULT = 2.5
"""An import needs the source and the result side by side; the result is at most 1.15 times a 4-bit file on the CPU, more
on a GPU, where the embedding is in fp16."""
_SPARE = 1.05
_DECISIVE = ("graph", "config", "external data")
"""Checks that a model must pass to be installed at all; `coe models verify` makes the others too."""

_one_conversion = threading.Lock()


class Recipe(Struct, frozen=True):
    """What a source is converted to. ``paged``: for continuous batching."""

    provider: str
    precision: Precision = "int4"
    paged: bool = False

    def origin(self) -> dict[str, str]:
        """What a manifest says of it."""
        return {"provider": self.provider, "precision": self.precision} | ({"paged": "yes"} if self.paged else {})


class Request(Struct, frozen=True):
    """What to install: a model of the catalog, or one from an address (then ``entry`` is None), which a ``recipe`` converts."""

    name: str
    sources: list[Source]
    entry: ModelEntry | None = None
    recipe: Recipe | None = None

    @property
    def conversion(self) -> Recipe | None:
        """How what arrives is converted; None where it is a model in OGA layout."""
        if self.entry is not None and self.entry.format == "gguf":
            return Recipe(self.entry.provider)
        return self.recipe

    @property
    def is_local(self) -> bool:
        """Whether all that it takes lies on this machine."""
        return all(source.uri.startswith("file:") for source in self.sources)

    def made(self, origin: Mapping[str, object]) -> bool:
        """Whether a manifest's ``origin`` is that of a model which this request made."""
        recipe = self.recipe.origin() if self.recipe else {}
        return any(origin.get("uri") == source.uri for source in self.sources) and recipe.items() <= origin.items()

    @property
    def needed_mb(self) -> float:
        """Room on disk that it takes until it is installed, as far as it is known beforehand."""
        sizes = [source.size_mb for source in self.sources if source.size_mb]
        weights_mb = self.entry.weights_mb if self.entry else 0.0
        return max(sizes, default=weights_mb) * (_GGUF_AND_RESULT if self.conversion else _SPARE)


def request_for(name_or_uri: str, catalog: Catalog, models_dir: Path) -> Request:
    """The request for a catalog name, an address, ``owner/repo`` of the hub or the address of its page.

    Raises:
        UsageError: an address that cannot be read.
        ModelMissing: the catalog does not know the name, or only the disk does.
    """
    name_or_uri = as_hub_uri(name_or_uri)
    if is_uri(name_or_uri):
        parse_uri(name_or_uri)
        return Request(check_name(default_name(name_or_uri)), [Source(name_or_uri)])
    entry = catalog.models.get(name_or_uri)
    if entry is None:
        if name_or_uri in models_on_disk(models_dir):
            raise ModelMissing(
                f"model `{name_or_uri}` is one of your own, and coe knows no source of it",
                f"Import it again: coe models import FILE --name {name_or_uri} --force",
            )
        raise catalog.unknown_model(name_or_uri, [])
    return Request(name_or_uri, entry.sources, entry)


def install_request(
    request: Request,
    models_dir: Path,
    on_progress: OnProgress,
    *,
    force: bool = False,
    as_is: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> ModelSpec:
    """Fetch, convert where needed, check and put in place a model.

    Two installs of one model at once give one model: the second waits and finds it done. The folder appears under its
    name by a rename when it is complete. Whatever interrupts it leaves nothing under that name; what had been fetched
    is kept out of sight, and the next install goes on from there. A model that comes ready-made is optimized, unless
    ``as_is``; where that cannot be done it is installed as it came, and ``tell`` hears why.

    Raises:
        ModelMissing: no source reachable, or a folder that cannot be written.
        ModelDamaged: what came is not a model that coe can use.
        DiskFull: too little room.
    """
    name, target, staging = request.name, models_dir / request.name, staging_folder(request.name, models_dir)

    def room(needed_bytes: float) -> None:
        check_room(f"`{name}`", models_dir, needed_bytes)

    with writing(name, models_dir, on_progress):
        if target.exists() and not force:
            remove_folder(staging, ignore_errors=True)
            return open_model(name, target)
        if take_finished(target, request.made):
            return open_model(name, target)
        check_replaceable(name, models_dir)
        room(request.needed_mb * BYTES_PER_MB - size_of(staging))
        try:
            arrival = fetch(
                name,
                request.sources,
                staging / "download",
                on_progress,
                lambda n: room(n * _SPARE),
                for_import=request.recipe is not None,
            )
            result = _make(request, arrival, staging, on_progress, tell)
            on_progress(Step("Checking", 0, None))
            _check(request, result)
            if result == arrival.path and not as_is:
                result = _optimized(name, result, staging, on_progress, tell)
            spec = spec_from_folder(name, result)
            for finding in problem_findings(spec, check_model(spec)):
                tell(f"{finding.message}. {finding.fix}")
            ends = end_finding(result, read_config(name, result))
            if ends.level is Level.WARNING:
                tell(f"{ends.message}. {ends.fix}")
            remove(result / MANIFEST)
            check_files(name, result)
            write_manifest(result, _origin(request, arrival))
            put_in_place(result, target)
        except (ModelDamaged, OSError):
            with suppress(OSError):
                discard(staging, name)
            raise
        except BaseException:
            remove_folder(staging / "model", ignore_errors=True)
            if size_of(staging) == 0:
                remove_folder(staging, ignore_errors=True)
            raise
        remove_folder(staging, ignore_errors=True)
        forget(folders().state, name)
    return open_model(name, target)


def _optimized(name: str, result: Path, staging: Path, on_progress: OnProgress, tell: Callable[[str], None]) -> Path:
    from coe_cli.runtime.conversion.optimize import NotOptimized, is_optimized, optimized_copy

    if is_optimized(spec_from_folder(name, result)):
        return result
    try:
        return optimized_copy(name, result, staging / "optimized", on_progress)
    except NotOptimized as error:
        tell(f"{error.message}. {error.hint}")
        return result


def _origin(request: Request, arrival: Arrival) -> dict[str, str | None]:
    return {
        "uri": arrival.source.uri,
        "revision": arrival.revision,
        "sha256": arrival.source.sha256,
        "licence": request.entry.licence if request.entry else None,
        **(request.recipe.origin() if request.recipe else {}),
    }


def _make(
    request: Request, arrival: Arrival, staging: Path, on_progress: OnProgress, tell: Callable[[str], None]
) -> Path:
    """The folder in OGA layout, made of what arrived."""
    if (recipe := request.conversion) is not None:
        from coe_cli.runtime.importing.convert import convert
        from coe_cli.runtime.importing.import_model import check_resources, ends_note
        from coe_cli.runtime.importing.source import inspect

        result = staging / "model"
        empty_folder(result)
        source = inspect(arrival.path) if request.recipe else None
        if source is not None:
            tell(f"{request.name}: {check_resources(source, recipe, staging)}")
        with _one_conversion:
            convert(
                arrival.path,
                result,
                provider=recipe.provider,
                precision=recipe.precision,
                paged=recipe.paged,
                on_progress=on_progress,
            )
        if source is not None and (note := ends_note(source, spec_from_folder(request.name, result), result)):
            tell(note)
        return result
    if not (arrival.path / GENAI_CONFIG).is_file():
        raise ModelDamaged(
            f"{arrival.source.uri} has no {GENAI_CONFIG}, so it is not a model in ONNX Runtime GenAI's layout",
            f"Name the folder inside it that has one, or convert it: coe models import {arrival.source.uri}.",
        )
    return arrival.path


def _check(request: Request, result: Path) -> None:
    from coe_cli.runtime.store.verify import verify

    spec = spec_from_folder(request.name, result)
    # Builds of one model pad the vocabulary differently, and the folder knows better than the catalog.
    if request.entry is not None and request.entry.shape != replace(
        spec.shape, vocab_size=request.entry.shape.vocab_size
    ):
        raise ModelDamaged(
            f"model `{request.name}` has another shape than the catalog says", "Report it, with `coe --version`."
        )
    for finding in verify(request.name, result, folders().state, run=False):
        if finding.level is Level.ERROR and (finding.check in _DECISIVE or (request.recipe and request.is_local)):
            what, fix = (
                "is not sound where it came from",
                "Fetch it from another source, or report it to its publisher.",
            )
            if request.conversion:
                what, fix = "is not sound after its conversion", "Report it, with its source."
            raise ModelDamaged(f"model `{request.name}` {what}: {finding.message}", fix)


def preflight(requests: list[Request], models_dir: Path, *, force: bool) -> None:
    """Check the disk for several installs together; a single one checks for itself when it can write at all.

    Raises:
        DiskFull: they do not all fit.
    """
    missing = [request for request in requests if force or not (models_dir / request.name).exists()]
    needed_mb = sum(
        request.needed_mb - size_of(staging_folder(request.name, models_dir)) / BYTES_PER_MB for request in missing
    )
    if len(missing) > 1:
        check_room(", ".join(request.name for request in missing), models_dir, needed_mb * BYTES_PER_MB)
