"""The trained router on disk, and the door through which everything routes: embedder and router, prepared when needed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from coe_cli.core.models.catalog import Catalog
from coe_cli.core.names import size_words
from coe_cli.core.notes import Note
from coe_cli.core.providers import on_host
from coe_cli.core.routing.router import Decision, Router, RouterWeights
from coe_cli.core.routing.router_examples import FILE_NAME, TrainingSet, training_set_of
from coe_cli.core.routing.router_features import LEXICAL_SIZE, bounded
from coe_cli.errors import ModelMissing
from coe_cli.runtime.atomic_write import atomic_write
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.regular_file import open_regular, read_regular
from coe_cli.runtime.routing.embedder import (
    EMBEDDED,
    GPU_DEFAULT,
    Embedder,
    EmbedderInfo,
    available_provider,
    embedder_folder,
)
from coe_cli.runtime.routing.embedder_sources import EMBEDDERS
from coe_cli.runtime.routing.shipped_router import SCALARS, SHIPPED, shipped_examples, shipped_keys, shipped_weights
from coe_cli.runtime.settings import MAX_BYTES, read_document

ROUTER_VERSION = 6
"""To be raised when the code of training, features or decisions changes what weights mean or become."""

_NEARLY_SHIPPED = 0.8
"""Where so many of the questions are shipped ones, the calibration of the router before holds for them too."""

_ARRAYS = (
    *("dense", "lexical", "bias", "idf", "pair_weights", "pair_mean", "pair_scale"),
    *("known", "known_roles", "known_weights"),
)


def training_set(catalog: Catalog) -> TrainingSet:
    """The training set for the roles of ``catalog``, with the examples file beside its first file, where there is one.

    Raises:
        ProfileInvalid: the examples file is not valid.
    """
    path = catalog.paths[0].with_name(FILE_NAME)
    return training_set_of(catalog, read_document(path) if path.is_file() else None)


def examples_digest(catalog: Catalog) -> str:
    """SHA-256 of everything that ``training_set`` would read, without parsing the examples file."""
    path = catalog.paths[0].with_name(FILE_NAME)
    digest = hashlib.sha256(read_regular(path, MAX_BYTES) if path.is_file() else b"")
    described = [[role, expert.description, expert.examples] for role, expert in catalog.experts.items()]
    digest.update(json.dumps(described, ensure_ascii=True).encode())
    return digest.hexdigest()


class QuestionRouter:
    """An embedder and the router that was trained on its vectors; both may be used by several threads at once."""

    def __init__(self, embedder: Embedder, router: Router, path: Path | None = None, *, current: bool = True) -> None:
        """``current``: trained on the examples as they are now. ``path``: the file whose change means another router."""
        self.current = current
        self.embedder = embedder
        self.router = router
        self._path = path

    def stamp(self) -> tuple[int, ...]:
        """Inode, time and size of the file that the router was read from: others mean that it was trained again."""
        try:
            status = self._path.stat() if self._path is not None else None
        except OSError:
            status = None
        return (status.st_ino, status.st_mtime_ns, status.st_size) if status is not None else ()

    def route(self, text: str) -> Decision:
        """The decision for one question."""
        return self.route_many([text])[0]

    def route_many(self, texts: Sequence[str]) -> list[Decision]:
        """The decisions for ``texts``, in their order; their vectors are computed together."""
        import numpy as np

        wholes = [bounded(text) for text in texts]
        vectors = self.embedder.embed(wholes)
        clauses = [self.router.clauses_to_embed(*pair) for pair in zip(wholes, vectors, strict=True)]
        flat = [clause for some in clauses for clause in some]
        of_clauses = self.embedder.embed(flat) if flat else vectors[:0]
        decisions, start = [], 0
        for whole, vector, some in zip(wholes, vectors, clauses, strict=True):
            of_these = of_clauses[start : start + len(some)]
            decisions.append(self.router.route([whole, *some], np.vstack([vector[None], of_these])))
            start += len(some)
        return decisions


def default_embedder(provider: str | None, where: Folders) -> str:
    """The embedder for a profile's provider: BGE-M3 where its GPU can be used and it is prepared or can be exported
    (extra ``embedders``), the embedded one everywhere else."""
    if name := os.environ.get("COE_EMBEDDER"):
        return name
    if on_host(available_provider(provider)):
        return EMBEDDED
    exports = importlib.util.find_spec("sentence_transformers") is not None
    return GPU_DEFAULT if exports or embedder_folder(GPU_DEFAULT, where).is_dir() else EMBEDDED


class RouterUntrained(ModelMissing):
    """The embedder is there; nothing is trained on these examples."""


class Allowed(NamedTuple):
    """What opening a router may do.

    Download, train; ``rebuild``: train, and export a damaged embedder, again in any case. ``earlier``: where nothing is
    trained on these examples, a router of earlier ones or the shipped one does, if the catalog has its roles.
    """

    fetch: bool = True
    train: bool = True
    rebuild: bool = False
    earlier: bool = False


def open_router(
    catalog: Catalog,
    where: Folders,
    note: Callable[[Note], None],
    *,
    embedder: str | None = None,
    provider: str | None = None,
    may: Allowed = Allowed(),
) -> QuestionRouter:
    """The router for ``catalog``, from the cache where it holds one for these examples and this embedder.

    ``note`` is told, in single lines, what is fetched, exported or trained.

    Raises:
        ModelMissing: the embedder is not prepared and may not or cannot be fetched, or the router is not trained.
        ModelDamaged: the embedder is damaged.
        ProfileInvalid: the examples file is not valid.
    """
    name = embedder or default_embedder(provider, where)
    try:
        loaded = _open_embedder(name, where, note, provider, may)
    except ModelMissing as error:
        if embedder is not None or name == EMBEDDED:
            raise
        note(Note("fallback", f"{error.message}; using {EMBEDDED} instead"))
        loaded = _open_embedder(EMBEDDED, where, note, provider, may)
    path, digest, weights = _cache_path(loaded.info, where), router_digest(catalog, loaded.info), None
    if not may.rebuild:
        weights = _read(path, digest, loaded.info.dimension, tuple(catalog.experts), note)
        if weights is None and (weights := shipped_weights(digest)) is not None:
            path = SHIPPED
    if weights is None and may.earlier:
        earlier = _earlier(path, loaded.info, note)
        if earlier is not None and {*earlier.roles} <= catalog.experts.keys():
            return QuestionRouter(loaded, Router(earlier), path, current=False)
    if weights is None:
        if not may.train:
            raise RouterUntrained("the router is not trained on these examples", "Prepare it: coe route --rebuild.")
        from coe_cli.runtime.routing.router_training import Calibration, train_router
        from coe_cli.runtime.routing.vector_cache import VectorCache

        note(Note("progress", "training the router on its examples, once"))
        stamp = vector_stamp(loaded.info)
        there = {} if may.rebuild else shipped_examples(stamp)
        vectors = VectorCache(
            where.cache / "vectors" / path.name, stamp, loaded.embed, note, anew=may.rebuild, shipped=there
        )
        examples, calibration = training_set(catalog), None
        if not may.rebuild and _nearly_shipped(examples) and (earlier := _earlier(path, loaded.info, note)):
            calibration = Calibration.of(earlier)
        weights = train_router(examples, vectors.embed, calibration)
        _write(path, digest, _kin(loaded.info), weights, note)
    return QuestionRouter(loaded, Router(weights), path)


def _open_embedder(
    name: str, where: Folders, note: Callable[[Note], None], provider: str | None, may: Allowed
) -> Embedder:
    folder = embedder_folder(name, where)
    try:
        return Embedder(folder, provider)
    except ModelMissing as error:
        if not (may.rebuild or not (folder / "embedder.json").exists()):
            raise
        if not may.fetch:
            size = EMBEDDERS[name][0].size_mb if name in EMBEDDERS else None
            raise ModelMissing(
                f"the embedder `{name}` is not prepared" + (f" ({size_words(size)} to fetch)" if size else ""),
                "Prepare it: coe route --rebuild.",
            ) from error
    from coe_cli.runtime.routing.embedder_export import prepare_embedder

    prepare_embedder(name, where, note)
    return Embedder(folder, provider)


def _cache_path(info: EmbedderInfo, where: Folders) -> Path:
    return where.cache / "router" / f"{embedder_folder(info.name, where).name}.npz"


def vector_stamp(info: EmbedderInfo) -> str:
    """A digest of what the vector of a text depends on."""
    return _sha256(info.sha256, str(info.max_tokens), info.prompt)


def router_digest(catalog: Catalog, info: EmbedderInfo) -> str:
    """A digest of all that the trained weights depend on: code, settings, embedder and examples."""
    from coe_cli.runtime.routing.router_training import SETTINGS

    return _sha256(str(ROUTER_VERSION), repr(SETTINGS), vector_stamp(info), examples_digest(catalog))


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _earlier(path: Path, info: EmbedderInfo, note: Callable[[Note], None]) -> RouterWeights | None:
    """The router that was trained last for this embedder, or the shipped one, whatever the examples were."""
    cached = _read(path, None, info.dimension, None, note, kin=_kin(info))
    return cached or shipped_weights(None, stamp=vector_stamp(info))


def _kin(info: EmbedderInfo) -> str:
    """What routers have in common that differ in their examples only."""
    return _sha256(str(ROUTER_VERSION), vector_stamp(info))


def _nearly_shipped(examples: TrainingSet) -> bool:
    from coe_cli.runtime.routing.vector_cache import text_key

    shipped = shipped_keys()
    ours = [text_key(bounded(text)) in shipped for text, _ in (*examples.single, *examples.double)]
    return sum(ours) >= _NEARLY_SHIPPED * len(ours)


def _read(
    path: Path,
    digest: str | None,
    dimension: int,
    roles: tuple[str, ...] | None,
    note: Callable[[Note], None],
    *,
    kin: str = "",
) -> RouterWeights | None:
    """The cached router if it was trained for ``digest``; without one, if it is of ``kin``."""
    import numpy as np

    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as stored:
            wanted, found = ("digest", digest) if digest is not None else ("kin", kin)
            if wanted not in stored or str(stored[wanted]) != found:
                return None
            roles = roles or tuple(map(str, stored["roles"]))
            arrays: dict[str, Any] = {name: stored[name] for name in _ARRAYS}
            arrays |= zip(SCALARS, map(float, stored["scalars"]), strict=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        note(
            Note("warning", f"the cached router {path} is damaged ({error or type(error).__name__}); training it again")
        )
        return None
    if arrays["dense"].shape != (dimension, len(roles) + 1) or arrays["lexical"].shape != (
        LEXICAL_SIZE,
        len(roles) + 1,
    ):
        note(Note("warning", f"the cached router {path} is damaged (wrong shape); training it again"))
        return None
    return RouterWeights(roles=roles, **arrays)


def _write(path: Path, digest: str, kin: str, weights: RouterWeights, note: Callable[[Note], None]) -> None:
    import numpy as np

    arrays = {name: getattr(weights, name) for name in _ARRAYS}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as scratch:
            np.savez(
                scratch,
                digest=np.array(digest),
                kin=np.array(kin),
                roles=np.array(weights.roles),
                scalars=np.array([getattr(weights, name) for name in SCALARS]),
                **arrays,
            )
    except OSError as error:
        note(Note("warning", f"the router cannot be kept in {path.parent}: {error.strerror or error}"))
