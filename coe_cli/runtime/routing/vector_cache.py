"""Vectors of the router's examples, kept by text: after an example was added only that one has to be embedded."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coe_cli.core.notes import Note
from coe_cli.runtime.atomic_write import atomic_write
from coe_cli.runtime.regular_file import open_regular

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

_KEY_BYTES: Final = 16


class VectorCache:
    """An ``embed`` function with the vectors of its last call on disk. ``stamp`` names the embedder: another's are not used.

    ``note`` is told of a file that cannot be read or written; the vectors are computed then. ``anew`` computes all of them.
    ``shipped`` are vectors of that embedder by key which need no file.
    """

    def __init__(
        self,
        path: Path,
        stamp: str,
        embed: Callable[[Sequence[str]], Vectors],
        note: Callable[[Note], None],
        *,
        anew: bool = False,
        shipped: Mapping[bytes, Any] | None = None,
    ) -> None:
        self._path, self._stamp, self._embed, self._note = path, stamp, embed, note
        self._anew = anew
        self._shipped = shipped or {}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors [texts, dimension] of ``texts``, which are kept in place of those of the call before."""
        import numpy as np

        keys = [text_key(text) for text in texts]
        of_key = dict(zip(keys, texts, strict=True))
        kept = {**self._shipped, **({} if self._anew else self._read())}
        missing = [key for key in of_key if key not in kept]
        if missing:
            computed = self._embed([of_key[key] for key in missing])
            kept |= zip(missing, computed, strict=True)
            self._write({key: kept[key] for key in of_key if key not in self._shipped})
        return np.stack([kept[key] for key in keys])

    def _read(self) -> dict[bytes, Any]:
        import numpy as np

        try:
            with open_regular(self._path) as file, np.load(file, allow_pickle=False) as stored:
                if str(stored["stamp"]) != self._stamp:
                    return {}
                keys, vectors = stored["keys"], stored["vectors"]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            self._note(Note("warning", f"the vectors in {self._path} are damaged ({error or type(error).__name__})"))
            return {}
        if keys.shape != (len(vectors), _KEY_BYTES) or vectors.ndim != 2 or vectors.dtype != np.float32:
            self._note(Note("warning", f"the vectors in {self._path} are damaged (wrong shape)"))
            return {}
        return dict(zip(map(bytes, keys), vectors, strict=True))

    def _write(self, kept: dict[bytes, Any]) -> None:
        import numpy as np

        keys = np.frombuffer(b"".join(kept), np.uint8).reshape(-1, _KEY_BYTES)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path) as scratch:
                np.savez(scratch, stamp=np.array(self._stamp), keys=keys, vectors=np.stack(list(kept.values())))
        except OSError as error:
            self._note(Note("warning", f"the vectors cannot be kept in {self._path.parent}: {error.strerror or error}"))


def text_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()
