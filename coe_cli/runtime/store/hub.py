"""Fetch a model's files from the Hugging Face hub or a mirror of it: pinned, resumed, several at once, checked."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from coe_cli.core.models.source_uri import HubSource, check_member
from coe_cli.errors import UsageError, first_line
from coe_cli.replacing import move, remove
from coe_cli.runtime.parallel import in_parallel
from coe_cli.runtime.progress import FolderGrowth, OnProgress, Step
from coe_cli.runtime.store.integrity import MANIFEST, sha256_of
from coe_cli.runtime.store.source_errors import ANSWER_S, NoAnswer, SourceFailed, is_local

_AT_ONCE = 4
_LICENCE = "license:"
"""So begins the hub's tag with the licence in the repository's card."""
# What OGA has no use for and nobody should run: code, libraries, pickles.
_UNWANTED = (
    *("*.py", "*.pyc", "*.so", "*.dll", "*.dylib", "*.exe", "*.sh", "*.bat", "*.cmd", "*.ps1"),
    *("*.pkl", "*.pickle", "*.pt", "*.pth", "*.ckpt", "pytorch_model*.bin", MANIFEST),
)


class HubFile(NamedTuple):
    """One file of a repository; ``sha256`` for large files, ``git_sha1`` of the blob for small ones, where told."""

    path: str
    size: int | None
    sha256: str | None
    git_sha1: str | None


class Listing(NamedTuple):
    """The files of a repository at one commit; the architecture of its GGUF files and its licence where the hub tells them."""

    commit: str
    files: list[HubFile]
    gguf_architecture: str | None
    licence: str | None


def fetch_from_hub(
    source: HubSource,
    destination: Path,
    on_progress: OnProgress,
    check_room: Callable[[int], None],
    accepts: Callable[[str], bool] = lambda path: True,
) -> tuple[Path, str]:
    """Fetch ``source`` below ``destination``; returns the file or folder that arrived and the commit it is of.

    What an earlier attempt left in ``destination`` is used. ``check_room`` is told how many bytes are still to come.

    Raises:
        SourceFailed: not reachable, not there, broken off, or not what the hub said it is.
        OSError: this machine's fault: a full disk, a folder that cannot be written.
    """
    commit, files, *_ = list_files(source)
    below = f"{source.path}/" if source.path else ""
    files = [file for file in files if file.path == source.path or accepts(file.path.removeprefix(below))]
    parts = {_part(file, destination) for file in files}
    for old in set(destination.rglob("*.part")) - parts:
        remove(old)
    total = sum(file.size or 0 for file in files)
    there = sum(path.stat().st_size for path in destination.rglob("*") if path.is_file())
    check_room(max(0, total - there))
    for part in parts:  # not while downloading: a task that outlives a failure must not make a removed folder again
        part.parent.mkdir(parents=True, exist_ok=True)
    with FolderGrowth(f"Fetching {source.repo}", destination, total or None, on_progress):
        in_parallel([_download(source.repo, commit, file, destination) for file in files], _AT_ONCE)
    on_progress(Step("Comparing digests", 0, None))
    in_parallel([_verification(file, destination) for file in files], _AT_ONCE)
    return destination / source.path if source.path else destination, commit


def list_files(source: HubSource) -> Listing:
    """What the repository, or its folder that ``source`` names, has.

    Raises:
        SourceFailed: not reachable, or not there.
    """
    info = model_info(source.repo, source.revision)
    files = [_hub_file(item) for item in info.siblings or []]
    if source.path is not None:
        files = [file for file in files if file.path == source.path or file.path.startswith(source.path + "/")]
        if not files:
            raise SourceFailed(f"has no file or folder {source.path}")
    files = [file for file in files if _is_wanted(file.path)]
    if not files or not info.sha:
        raise SourceFailed("has no files that coe could use")
    gguf = getattr(info, "gguf", None)
    architecture = gguf.get("architecture") if isinstance(gguf, dict) else None
    licence = next((tag for tag in map(str, info.tags or ()) if tag.startswith(_LICENCE)), None)
    return Listing(
        str(info.sha),
        files,
        architecture if isinstance(architecture, str) else None,
        licence.removeprefix(_LICENCE) if licence else None,
    )


def hub_library() -> Any:
    """huggingface_hub, which reads when it is imported that it is to tell the hub nothing of this machine, and draw no bars."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import huggingface_hub

    return huggingface_hub


def model_info(repo: str, revision: str | None) -> Any:
    """What the hub says of a repository, with its files.

    Raises:
        SourceFailed: not reachable, not there, or HF_HUB_OFFLINE is set.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SourceFailed(
            "was skipped because HF_HUB_OFFLINE is set",
            "Unset HF_HUB_OFFLINE, or copy the model's folder here and pull that: coe models pull file:/path/to/folder",
        )
    api = hub_library().HfApi(endpoint=_endpoint())
    return _within(ANSWER_S, lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=ANSWER_S - 1))


def _is_wanted(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return not hidden and not any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in _UNWANTED)


def _hub_file(item: Any) -> HubFile:
    try:
        path = check_member(str(item.rfilename))
    except UsageError:
        raise SourceFailed(f"names a file outside of its folder: {item.rfilename!r}") from None
    lfs = item.lfs
    sha256 = (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)) if lfs else None
    return HubFile(path, item.size, sha256, None if lfs else item.blob_id)


def _download(repo: str, commit: str, file: HubFile, destination: Path) -> Callable[[], None]:
    """A task that fetches one file, from where an earlier attempt broke off.

    ``hf_hub_download`` begins a file anew in each process, so its building blocks are used: the bytes that are there
    stay in a .part file, named after the content, and only the rest is asked for.
    """

    def run() -> None:
        path = destination / file.path
        if path.is_file() and path.stat().st_size == file.size:
            return
        part = _part(file, destination)
        try:
            _fetch_rest(repo, commit, file, part)
        except Exception as error:
            if is_local(error):
                raise
            raise SourceFailed(f"broke off at {file.path}: {first_line(error)}") from error
        move(part, path)

    return run


def _fetch_rest(repo: str, commit: str, file: HubFile, part: Path) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url, headers = hf_hub_url(repo, file.path, revision=commit, endpoint=_endpoint()), build_hf_headers()
    facts = get_hf_file_metadata(url, headers=headers)
    if file.size is not None and facts.size is not None and facts.size != file.size:
        raise SourceFailed(f"{file.path} has {facts.size} bytes instead of {file.size}")
    if urlsplit(facts.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the store that the hub sends us to has its own signature in the address
    with part.open("ab") as stream:
        stream.seek(0, os.SEEK_END)
        if facts.size is not None and stream.tell() > facts.size:
            stream.truncate(0)
        http_get(facts.location, stream, resume_size=stream.tell(), headers=headers, expected_size=facts.size)


def _part(file: HubFile, destination: Path) -> Path:
    path = destination / file.path
    return path.with_name(f".{path.name}.{(file.sha256 or file.git_sha1 or 'x')[:12]}.part")


def _verification(file: HubFile, destination: Path) -> Callable[[], None]:
    def run() -> None:
        path = destination / file.path
        size = path.stat().st_size
        problem = None
        if file.size is not None and size != file.size:
            problem = f"{file.path} has {size} bytes instead of {file.size}"
        elif file.sha256 is not None:
            if (actual := sha256_of(path)) != file.sha256:
                problem = f"{file.path} has SHA-256 {actual[:12]}… instead of {file.sha256[:12]}…"
        elif file.git_sha1 is not None and len(file.git_sha1) == 40:
            # Small files are git blobs: SHA-1 over "blob SIZE\0" and the content.
            content = path.read_bytes()
            actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            if actual != file.git_sha1:
                problem = f"{file.path} is not the file that the hub lists"
        if problem:
            remove(path)
            raise SourceFailed(problem)

    return run


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _within(seconds: float, action: Callable[[], Any]) -> Any:
    """Run ``action`` in a thread and give up on it after ``seconds``; the hub's client retries for longer than that."""
    hub = _endpoint() or "hub"
    NoAnswer.check(hub, seconds)
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = action()
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if "value" in outcome:
        return outcome["value"]
    if "error" in outcome and not type(outcome["error"]).__name__.endswith("Timeout"):
        raise SourceFailed(_explain(outcome["error"])) from outcome["error"]
    raise NoAnswer(hub, seconds)


def _explain(error: Exception) -> str:
    """What the hub's refusal means; its client has one exception class for each."""
    match type(error).__name__:
        case "GatedRepoError":
            return "asks you to accept its licence on its page and to set HF_TOKEN"
        case "RepositoryNotFoundError":
            return "does not exist, or is private and HF_TOKEN does not open it"
        case "RevisionNotFoundError":
            return "has no such revision"
    return f"is not reachable: {first_line(error)}"
