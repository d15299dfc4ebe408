"""Fetch one wheel with pip's own settings and session, from where an earlier attempt broke off; run as a child process.

``pip download`` begins each download anew. What is used of pip here has no promise of its makers: with a pip that has
other inner parts this process fails, and the caller lets ``pip download`` do it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from coe_cli.errors import first_line
from coe_cli.replacing import move, remove
from coe_cli.runtime.child import Message, serve_as_child
from coe_cli.runtime.store.integrity import sha256_of
from coe_cli.runtime.store.source_errors import ANSWER_S, SourceFailed, is_local

_ATTEMPTS = 5
_CHUNK_BYTES = 2**18
_OK, _PARTIAL, _BEYOND_END = 200, 206, 416
_FINAL = (401, 403, 404, 410)
_OPTIONS = ("--no-deps", "--only-binary", ":all:", "--no-input", "--no-cache-dir", "--retries", "0", "--timeout", "5")


def fetch(requirement: str, folder: Path, no_answer: Callable[[], None] = lambda: None) -> Path:
    """The wheel, below ``folder`` or, where it lies in a folder of wheels of the user, there.

    ``no_answer`` is called, in another thread, when nobody has said for ``ANSWER_S`` where it is: pip itself waits so long
    as its options say for each address that the index's name has, and for names without end.

    Raises:
        SourceFailed: no such wheel, not reachable, broken off, or not what the index says it is.
        OSError: this machine's fault: a full disk, a folder that cannot be written.
    """
    link, session = _find(requirement, no_answer)
    sha256 = link.hash if link.hash_name == "sha256" else None
    if link.is_file:
        wheel = Path(link.file_path)
    else:
        part = folder / f".{link.filename}.{(sha256 or 'x')[:12]}.part"
        for old in set(folder.glob(".*.part")) - {part}:
            remove(old)
        if not (sha256 is not None and part.is_file() and sha256_of(part) == sha256):
            _fetch_rest(session, link, part)
        wheel = folder / link.filename
        move(part, wheel)
    if sha256 is not None and (actual := sha256_of(wheel)) != sha256:
        if wheel.parent == folder:
            remove(wheel)
        raise SourceFailed(f"{wheel.name} has SHA-256 {actual[:12]}… instead of {sha256[:12]}…")
    return wheel


@contextlib.contextmanager
def _patience(no_answer: Callable[[], None]) -> Iterator[None]:
    """Have ``no_answer`` called where the block takes longer than ``ANSWER_S``."""
    timer = threading.Timer(ANSWER_S, no_answer)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _find(requirement: str, no_answer: Callable[[], None]) -> tuple[Any, Any]:
    """The link that pip would take ``requirement`` from, and a session with its proxies, certificates and passwords."""
    from packaging.requirements import Requirement
    from pip._internal.commands import create_command

    command: Any = create_command("download")
    options, _ = command.parse_args([*_OPTIONS, requirement])
    session = command._build_session(options)
    finder = command._build_package_finder(options=options, session=session)
    wanted = Requirement(requirement)
    with _patience(no_answer):  # with the index alone: a slow disk takes as long over pip's own modules
        best = finder.find_best_candidate(wanted.name, _specifier(str(wanted.specifier))).best_candidate
    if best is None:
        raise SourceFailed(
            f"is not reachable through pip, which finds no wheel of it (pip download --no-deps {requirement} says more)"
        )
    return best.link, session


def _specifier(text: str) -> Any:
    from pip._vendor.packaging.specifiers import SpecifierSet

    return SpecifierSet(text)


def _fetch_rest(session: Any, link: Any, part: Path) -> None:
    attempts = _ATTEMPTS
    while True:
        have = part.stat().st_size if part.is_file() else 0
        problem = _fetch_some(session, link, part, have)
        if problem is None:
            return
        attempts = _ATTEMPTS if part.stat().st_size > have else attempts - 1
        if attempts == 0:
            raise SourceFailed(f"broke off at {link.filename}: {problem}")
        time.sleep(1)


def _fetch_some(session: Any, link: Any, part: Path, have: int) -> str | None:
    """Ask for what is missing behind the first ``have`` bytes; returns why not all of it came, or None."""
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with part.open("ab") as stream:
        try:
            with session.get(link.url_without_fragment, headers=headers, stream=True) as response:
                if response.status_code == _BEYOND_END:
                    stream.truncate(0)
                if response.status_code not in (_OK, _PARTIAL):
                    problem = f"its server says {response.status_code} {response.reason}"
                    if response.status_code in _FINAL:
                        raise SourceFailed(f"did not come: {problem}")
                    return problem
                if response.status_code == _OK and have:  # it knows no ranges
                    stream.truncate(0)
                missing = int(response.headers.get("Content-Length", 0))
                if missing > shutil.disk_usage(part.parent).free:
                    raise OSError(errno.ENOSPC, f"{link.filename} needs {missing} bytes more")
                read = getattr(response.raw, "read1", response.raw.read)  # also gives what came before a break
                while chunk := read(_CHUNK_BYTES):
                    stream.write(chunk)
                    missing -= len(chunk)
                return f"{missing} bytes are missing" if missing > 0 else None
        except Exception as error:
            if is_local(error) or isinstance(error, SourceFailed):
                raise
            return first_line(error)


def main(arguments: Sequence[str]) -> int:
    """The child: a requirement and a folder; answers ``{"wheel": PATH}``, ``{"failed": WHY}`` or ``{"no_answer": True}``."""
    requirement, folder = arguments

    def work(send: Callable[[Message], None]) -> None:
        def no_answer() -> None:
            send({"no_answer": True})
            os._exit(0)

        try:
            send({"wheel": str(fetch(requirement, Path(folder), no_answer))})
        except SourceFailed as error:
            send({"failed": error.message})

    return serve_as_child(work, "download")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
