"""What processes of one user claim of the memory budget beside the college: a file for each in the state folder.

A claim is in force while its process holds the lock beside it, which the system frees however that process ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from coe_cli.core.profile import HardwareProfile
from coe_cli.core.providers import on_host
from coe_cli.core.scheduler_events import Elsewhere
from coe_cli.core.sharing import counted_mb
from coe_cli.runtime.atomic_write import atomic_write
from coe_cli.runtime.server.rendezvous import is_held, private_folder

_FOLDER = "claims"
_MAX_BYTES = 4096


class Claim(Struct, frozen=True):
    """``by`` names the process to a user; ``device`` as ``device_of`` gives it; ``mb`` are of a pool of ``pool_mb``."""

    pid: int
    by: str
    device: str
    mb: float
    pool_mb: float = 0.0


def device_of(profile: HardwareProfile) -> str:
    """What tells devices apart whose memory is not shared."""
    chosen = "" if on_host(profile.provider) else os.environ.get("COE_DEVICE", "")
    return f"{profile.provider}:{chosen}" if chosen else profile.provider


def claims(state: Path, device: str) -> list[Claim]:
    """The claims on ``device`` that are in force, this process's own left out. What the dead left behind is removed."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(state / _FOLDER):
            if not entry.name.endswith(".json") or entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if not is_held(path.with_suffix(".lock")):
                _remove(path)
                continue
            with contextlib.suppress(OSError, msgspec.MsgspecError), path.open("rb") as file:
                claim = msgspec.json.decode(file.read(_MAX_BYTES), type=Claim)
                if claim.device == device and claim.pid != os.getpid():
                    found.append(claim)
    return found


def claimed_mb(others: Sequence[Claim], pool_mb: float) -> float:
    """What counts of it against a pool of ``pool_mb``."""
    return sum(counted_mb(claim.mb, claim.pool_mb, pool_mb) for claim in others)


def elsewhere(others: Sequence[Claim], pool_mb: float) -> Elsewhere:
    """The same, as a college's scheduler is told."""
    return Elsewhere(claimed_mb(others, pool_mb), ", ".join(claim.by for claim in others))


class OwnClaim:
    """This process's claim: none until ``set``, and none after ``close``."""

    def __init__(self, state: Path, by: str, device: str, pool_mb: float = 0.0) -> None:
        self._folder = private_folder(state) / _FOLDER
        self._path = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        self._by, self._device, self._pool_mb = by, device, pool_mb
        self._lock: Any = None

    def set(self, mb: float) -> None:
        """Claim so much from now on."""
        import filelock

        if self._lock is None:
            private_folder(self._folder)
            self._lock = filelock.FileLock(self._path.with_suffix(".lock"), mode=0o600, thread_local=False)
            self._lock.acquire(timeout=0)
        with atomic_write(self._path) as scratch:
            scratch.write_bytes(msgspec.json.encode(Claim(os.getpid(), self._by, self._device, mb, self._pool_mb)))

    def close(self) -> None:
        """Give it back; safe to call more than once."""
        if self._lock is not None:
            self._path.unlink(missing_ok=True)
            self._lock.release()
            self._lock = None
            _remove(self._path)


@contextlib.contextmanager
def one_at_a_time(state: Path) -> Iterator[None]:
    """Held by who looks at the claims of others and then makes one."""
    import filelock

    folder = private_folder(private_folder(state) / _FOLDER)
    with filelock.FileLock(folder / "looking.lock", mode=0o600):
        yield


def _remove(path: Path) -> None:
    for left in (path, path.with_suffix(".lock")):
        with contextlib.suppress(OSError):
            left.unlink(missing_ok=True)
