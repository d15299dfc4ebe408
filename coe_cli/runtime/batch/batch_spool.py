"""A batch's input that is a stream, or not UTF-8, as a file: rows are read again when their turn comes."""

from __future__ import annotations

import codecs
import shutil
from pathlib import Path
from typing import BinaryIO

from coe_cli.core.command_line import command_line
from coe_cli.core.text_encoding import MARK_BYTES, encoding_of
from coe_cli.errors import CoeError, UsageError
from coe_cli.replacing import move, remove
from coe_cli.runtime.batch.batch_index import look_through


def spool(stream: BinaryIO, path: Path, target: Path | None) -> Path:
    """Keep ``stream`` at ``path``, beside the journal of ``target``, also for whoever resumes the batch.

    Raises:
        UsageError: it is not what ``path`` was made from before, or no text.
        CoeError: it cannot be written.
    """
    fresh = path.with_name(f"{path.name}.part")
    try:
        with fresh.open("wb") as file:
            _copy_as_utf8(stream, file)
        known = look_through(path).sha256 if path.exists() else None
        if known is not None and known != look_through(fresh).sha256:
            raise UsageError(
                f"the input is not what the batch in {path.parent} was begun with",
                f"Go on with `{spooled_again(path, target)}`, or give --restart to begin anew.",
            )
        move(fresh, path)
    except UnicodeDecodeError as error:
        raise UsageError(f"the input is not {error.encoding.upper()} text", "Save it as UTF-8 first.") from None
    except OSError as error:
        raise CoeError(
            f"the input cannot be kept in {path.parent}: {error.strerror or error}", "Make room there."
        ) from error
    finally:
        remove(fresh)
    return path


def spooled_again(path: Path, target: Path | None) -> str:
    """The command that goes on with what was kept at ``path``."""
    return command_line(["coe", "batch", str(path), "-o", "…" if target is None else str(target)])


def _copy_as_utf8(source: BinaryIO, target: BinaryIO) -> None:
    """Copy text; what PowerShell wrote in UTF-16 becomes UTF-8.

    Raises:
        UnicodeDecodeError: it is not in the encoding that its byte order mark says.
    """
    head = b""
    while len(head) < MARK_BYTES and (more := source.read(MARK_BYTES - len(head))):
        head += more
    encoding = encoding_of(head)
    if encoding.startswith("utf-8"):
        target.write(head)
        shutil.copyfileobj(source, target, 2**20)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    block = head
    while block:
        target.write(decoder.decode(block).encode())
        block = source.read(2**20)
    decoder.decode(b"", final=True)
