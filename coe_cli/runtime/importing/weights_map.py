"""The tensors of a source, mapped into memory and found by their part of the decoder; nothing is read before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coe_cli.core.importing.ggml import BLOCK_TYPES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: ``shape`` is rows first, ``type_name`` one of ``ggml.BLOCK_TYPES``, ``offset`` in bytes."""

    path: Path
    offset: int
    type_name: str
    shape: tuple[int, ...]

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        block = BLOCK_TYPES[self.type_name]
        return self.columns // block.elements * block.bytes


class WeightsMap:
    """Parts of a decoder (``3.q.weight``) → their bytes, as views of memory-mapped files."""

    def __init__(self, parts: Mapping[str, Stored]) -> None:
        self.parts = dict(parts)
        self._maps: dict[Path, NDArray[np.uint8]] = {}

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def raw(self, part: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, shape [rows, bytes of a row]; a view."""
        import numpy as np

        stored = self.parts[part]
        if stored.path not in self._maps:
            self._maps[stored.path] = np.memmap(stored.path, np.uint8, "r")
        size = stored.rows * stored.row_bytes
        found: NDArray[np.uint8] = self._maps[stored.path][stored.offset : stored.offset + size]
        return found.reshape(stored.rows, stored.row_bytes)

    def floats(self, part: str) -> NDArray[np.float32]:
        """A whole tensor in fp32, in its own shape: for norms, biases and small tables."""
        from coe_cli.runtime.importing.dequantize import dequantize

        stored = self.parts[part]
        return dequantize(stored.type_name, self.raw(part)).reshape(stored.shape)
