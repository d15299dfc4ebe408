"""Where the processes of one user find their college: a state file and two locks in the state folder, all owner-only.

``college.lock`` is held by the college for as long as it lives; the system frees it however the process ends.
``start.lock`` is held by whoever starts one. The state file says where the college listens; it is stale when nobody there
can prove that it knows the file's token.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from coe_cli.errors import CoeError, TimedOut
from coe_cli.replacing import remove
from coe_cli.runtime.atomic_write import write_private
from coe_cli.runtime.folders import obstacle
from coe_cli.runtime.regular_file import open_regular

STATE_VERSION = 1
_STATE_FILE = "college.json"
_MAX_STATE_BYTES = 65_536
_PROBE_S = 2.0
_LOOK_S = 0.01


class CollegeState(Struct, frozen=True):
    """Where the college is. ``token`` opens its private endpoints; ``started_at`` is in seconds since 1970.

    ``settings`` is ``settings_digest`` of the profiles and the catalog that it has read.
    """

    pid: int
    host: str
    port: int
    token: str
    version: str
    started_at: float
    profile: str
    models_dir: str
    settings: str = ""
    state_version: int = STATE_VERSION

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def connect_host(self) -> str:
        """The address to connect to: an unspecified one means every interface, so the loopback one does."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)


def private_folder(folder: Path) -> Path:
    """Make ``folder`` if need be, readable by its owner alone (on Windows the user's profile folder already is).

    Raises:
        CoeError: it cannot be made, or belongs to somebody else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if sys.platform != "win32":
            info = folder.stat()
            if info.st_uid != os.geteuid():
                raise CoeError(f"{folder} belongs to another user", "Set COE_STATE_DIR to a folder of your own.")
            if stat.S_IMODE(info.st_mode) & 0o077:
                folder.chmod(0o700)
    except OSError as error:
        raise CoeError(
            f"the state folder {folder} cannot be used: {obstacle(folder) or error.strerror}",
            "Set COE_STATE_DIR to one that can.",
        ) from None
    return folder


def proof(token: str, nonce: str) -> str:
    """What only a process that knows ``token`` can answer to ``nonce`` (HMAC-SHA256, hexadecimal)."""
    import hmac

    return hmac.digest(token.encode(), nonce.encode(), "sha256").hex()


def read_state(folder: Path) -> CollegeState | None:
    """The state file's content, or None if there is none that can be trusted: ours, private and whole."""
    try:
        with open_regular(folder / _STATE_FILE) as file:
            if sys.platform != "win32":
                info = os.fstat(file.fileno())
                if info.st_uid != os.geteuid() or info.st_mode & 0o077:
                    return None
            state = msgspec.json.decode(file.read(_MAX_STATE_BYTES), type=CollegeState)
    except (OSError, msgspec.MsgspecError):
        return None
    return state if state.state_version == STATE_VERSION else None


def write_state(folder: Path, state: CollegeState) -> None:
    """Put the state file in place at once, readable by its owner alone.

    Raises:
        CoeError: it cannot be written.
    """
    try:
        write_private(folder / _STATE_FILE, msgspec.json.encode(state))
    except OSError as error:
        raise cannot_announce(folder, error) from error


def cannot_announce(folder: Path, error: OSError) -> CoeError:
    """A college that nobody can find must not live."""
    return CoeError(
        f"the college cannot announce itself in {folder}: {error.strerror}",
        "Make room there, or set COE_STATE_DIR to a folder that can be written.",
    )


def remove_state(folder: Path) -> None:
    """Take the state file away; only for the holder of ``college.lock``."""
    with contextlib.suppress(OSError):
        remove(folder / _STATE_FILE)


def hold_college_lock(folder: Path) -> Any | None:
    """The lock of the one college of this user, held; None when another process holds it."""
    return _acquired(folder / "college.lock", _PROBE_S)  # those who only look hold it for a moment


def _acquired(path: Path, timeout_s: float) -> Any | None:
    """A lock, held; None when another process holds it.

    Raises:
        CoeError: there can be no lock of that name.
    """
    import filelock

    lock = filelock.FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=timeout_s, poll_interval=_LOOK_S)
    except filelock.Timeout:
        return None
    except OSError as error:
        raise CoeError(
            f"the lock {path} cannot be used: {error.strerror}", "Take it away, or set COE_STATE_DIR to another folder."
        ) from None
    return lock


def college_lives(folder: Path) -> bool:
    """Whether some process holds the college's lock."""
    return is_held(folder / "college.lock")


def is_held(lock_file: Path) -> bool:
    """Whether some process holds a lock; it is held for a moment to see that."""
    if sys.platform != "win32":  # importing filelock takes longer than an answer's first token may
        import fcntl

        try:
            with lock_file.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:  # said below
            pass
    lock = _acquired(lock_file, _LOOK_S)  # another one who looks holds it for a moment
    if lock is None:
        return True
    lock.release()
    return False


@contextlib.contextmanager
def starting(folder: Path, timeout_s: float) -> Iterator[None]:
    """Hold the right to start a college.

    Raises:
        TimedOut: another process kept it for ``timeout_s``.
    """
    lock = _acquired(folder / "start.lock", timeout_s)
    if lock is None:
        raise TimedOut(
            f"another process has been starting a college for {timeout_s:g} s", "See `coe ps`, or run `coe stop`."
        )
    try:
        yield
    finally:
        lock.release()
