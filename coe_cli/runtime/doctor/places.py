"""`coe doctor`: coe's folders and files: room on their disks, how fast models are read, profiles and catalog.

It goes on whatever is wrong with profile and catalog files, with what can be used of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from coe_cli.core.findings import Finding, error, ok, warning
from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.names import size_words
from coe_cli.errors import CoeError, ProfileInvalid
from coe_cli.runtime.folders import Folders, free_mb, obstacle
from coe_cli.runtime.model_folder.on_disk import models_on_disk

_LOW_DISK_MB = 6000
"""Room for one 7B INT4 model."""
_FULL_MB = 16
"""A load and an answer write less: a tokenizer's files, a log, a conversation."""
_SLOW_MB_S = 200.0
"""Below this a 5 GB model takes more than 25 s to read."""
_SAMPLE_BYTES = 32 * BYTES_PER_MB


def check_folders(places: Folders) -> list[Finding]:
    """Each folder can be written and has room, the models' disk for one more."""
    findings = []
    for name in ("models", "state", "cache", "config"):
        path: Path = getattr(places, name)
        variable = f"COE_{name.upper()}_DIR"
        parent = path
        while not parent.exists():
            parent = parent.parent
        if wrong := obstacle(path):
            findings.append(error("folders", f"{name}: {wrong}", f"Put a folder there, or set {variable}."))
        elif not os.access(parent, os.W_OK | os.X_OK):
            findings.append(
                error("folders", f"{name}: {path} cannot be written", f"Make it writable, or set {variable}.")
            )
        elif free_mb(path) < _FULL_MB:
            findings.append(error("folders", f"{name}: the disk of {path} is full", f"Make room, or set {variable}."))
        else:
            findings.append(ok("folders", f"{name}: {path}{'' if path.exists() else ' (made when it is needed)'}"))
    room_mb = free_mb(places.models)
    message = f"{size_words(room_mb)} free for models"
    findings.append(
        ok("disk", message)
        if room_mb >= _LOW_DISK_MB
        else warning("disk", f"{message}: too little for another 7B model", "Free some space, or set COE_MODELS_DIR.")
    )
    return findings


def check_reading(models_dir: Path) -> list[Finding]:
    """How fast the largest model's weights are read: slow loading is most often a slow disk or a virus scanner."""
    files = [
        path for folder in models_on_disk(models_dir).values() for path in folder.glob("*.onnx*") if path.is_file()
    ]
    largest = max(files, key=lambda path: path.stat().st_size, default=None)
    if largest is None or largest.stat().st_size < BYTES_PER_MB:
        return []
    begin = time.perf_counter()
    with largest.open("rb", buffering=0) as file:
        file.seek(max(0, largest.stat().st_size - _SAMPLE_BYTES))
        read = len(file.read(_SAMPLE_BYTES))
    speed = read / BYTES_PER_MB / max(1e-6, time.perf_counter() - begin)
    message = f"{speed:.0f} MB/s from {largest.parent}"
    if speed >= _SLOW_MB_S:
        return [ok("loading", message)]
    fix = "Move the models to an SSD (COE_MODELS_DIR), and exclude that folder from the virus scanner; see `coe bench`."
    return [warning("loading", f"models load slowly: {message}", fix)]


T = TypeVar("T", Catalog, ProfileSet)


def usable_profile(profiles: ProfileSet, name: str | None) -> tuple[HardwareProfile | None, list[Finding]]:
    """The profile that commands use, or None and why there is none."""
    try:
        return profiles.select(name), []
    except ProfileInvalid as reason:
        return None, [_finding(reason)]


def usable(read: Callable[[Path | None], T], path: Path | None) -> tuple[T, list[Finding]]:
    """Profiles or catalog as far as they can be read, and what is wrong with their files.

    Raises:
        ProfileInvalid: the shipped file is broken.
    """
    findings: list[Finding] = []
    content: T
    try:
        content = read(path)
    except ProfileInvalid as reason:
        if path is None:
            raise
        findings.append(_finding(reason))
        content = read(None)
    for key, problem in content.problems.items():
        findings.append(error("configuration", f"{problem.message}; {key or 'the file'} is left out", problem.hint))
    return content, findings


def _finding(reason: CoeError) -> Finding:
    return error("configuration", reason.message, reason.hint)
