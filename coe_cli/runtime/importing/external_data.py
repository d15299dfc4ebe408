"""Writes tensors into the data file beside an ONNX graph as they come, so that no more than one is in memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INLINE_BYTES = 1024
"""Tensors up to this size stay in the graph."""
_ALIGNED_BYTES = 1 << 20
"""From this size on a tensor begins where Windows can map a file: at a multiple of 64 KiB. Others begin at one of 64."""


class Region:
    """A tensor whose bytes are written bit by bit, from its beginning to its end."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._at, self._end = file, offset, offset + size

    def write(self, array: NDArray[Any]) -> None:
        import numpy as np

        content = np.ascontiguousarray(array)
        if self._at + content.nbytes > self._end:
            raise ValueError("more is written than the tensor has")
        self._file.seek(self._at)
        self._file.write(content.data)
        self._at += content.nbytes

    @property
    def full(self) -> bool:
        return self._at == self._end


class ExternalData:
    """The data file of one graph, open within a ``with``. ``tensors`` are the graph's initializers, TensorProto each.

    Raises:
        ValueError: at its end, a tensor was not written to its end.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._name = path.name
        self._size = 0
        self._regions: list[Region] = []
        self.tensors: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                if not all(region.full for region in self._regions):
                    raise ValueError("a tensor was not written whole")
                self._file.truncate(self._size)

    def add(self, name: str, array: NDArray[Any]) -> str:
        """Write a whole tensor; returns its name."""
        from onnx import numpy_helper

        if array.nbytes <= _INLINE_BYTES:
            self.tensors.append(numpy_helper.from_array(array, name))
        else:
            self.reserve(name, array.dtype, array.shape).write(array)
        return name

    def reserve(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Region:
        """Room for a tensor that is written in chunks."""
        import numpy as np

        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        alignment = 65536 if size >= _ALIGNED_BYTES else 64
        offset = -(-self._size // alignment) * alignment
        self._size = offset + size
        self._refer(name, dtype, shape, offset, size)
        region = Region(self._file, offset, size)
        self._regions.append(region)
        return region

    def alias(self, name: str, of: str, shape: tuple[int, ...]) -> str:
        """A second tensor over the bytes of another one in the file, with another shape."""
        known = next(tensor for tensor in self.tensors if tensor.name == of)
        copy = type(known)()
        copy.CopyFrom(known)
        copy.name = name
        del copy.dims[:]
        copy.dims.extend(shape)
        self.tensors.append(copy)
        return name

    def reshape(self, name: str, shape: tuple[int, ...]) -> str:
        """Give a tensor in the file another shape of as many bytes."""
        tensor = next(tensor for tensor in self.tensors if tensor.name == name)
        tensor.dims[:] = shape
        return name

    def _refer(self, name: str, dtype: Any, shape: tuple[int, ...], offset: int, size: int) -> None:
        import numpy as np
        from onnx import TensorProto, helper

        tensor = TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
