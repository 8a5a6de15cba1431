"""Rows of an array in an order of their own, read when they are asked for: a set of examples is never copied whole."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_BLOCK_BYTES = 8_000_000
"""Of a walk over all rows; large enough that the walk costs nothing beside what is done with a block."""

_MAPPED_BYTES = 16_000_000
"""Of a mapped file that may count as memory of this process at a time."""

_BYTES_AROUND = 2**21
"""What Linux may map around one byte that is read: a whole page of a file that is cached in huge ones."""


class Rows:
    """Some rows of an array [N, ...], in an order. Choosing and ordering copies none; reading copies those that are read.

    A file that numpy maps (`numpy.memmap`, `numpy.load(mmap_mode="r")`) stays in its file.

    Attributes:
        shape: of these rows, such as (60000, 28, 28).
        dtype: in which they are read; that of the array may be another.
        array: that holds them, and maybe others.
    """

    def __init__(
        self, array: NDArray[Any], order: NDArray[np.intp] | None = None, *, dtype: DTypeLike | None = None
    ) -> None:
        self.array = array
        self._order = np.arange(len(array)) if order is None else order
        self.shape = (len(self._order), *array.shape[1:])
        self.dtype: np.dtype[Any] = np.dtype(array.dtype if dtype is None else dtype)
        self._file = _mapped_file(array)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: slice | int | NDArray[Any]) -> NDArray[Any]:
        """A copy of some rows, in C order: `rows` are positions, a mask, or a slice."""
        chosen = self._order[rows]
        read = np.take(self.array, chosen, axis=0) if self._file is None else self._read_file(self._file, chosen)
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused by its row
            return read.astype(self.dtype, copy=False)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """All rows, for tests and small sets."""
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as it is read."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def is_in_memory(self) -> bool:
        """Whether the array is held in memory, and not in a mapped file."""
        return self._file is None

    def only(self, rows: slice | NDArray[Any]) -> "Rows":
        """These rows without the others; nothing is read."""
        return Rows(self.array, self._order[rows], dtype=self.dtype)

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All rows in order, a few megabytes at a time."""
        size = max(1, _BLOCK_BYTES // max(1, self.row_bytes))
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def each(self) -> Iterator[memoryview]:
        """The bytes of each row, in order."""
        for block in self.blocks():
            view = block.data.cast("B")
            for start in range(0, len(view), self.row_bytes):
                yield view[start : start + self.row_bytes]

    def _read_file(self, file: mmap.mmap, chosen: NDArray[np.intp]) -> NDArray[Any]:
        """Rows of a mapped file. Pages that were read would stay memory of this process, so they are given back now and then."""
        read = np.empty((chosen.size, *self.shape[1:]), self.array.dtype)
        flat, num_rows = chosen.reshape(-1), max(1, _MAPPED_BYTES // max(self.row_bytes, _BYTES_AROUND))
        for start in range(0, chosen.size, num_rows):
            piece = slice(start, start + num_rows)
            np.take(self.array, flat[piece], axis=0, out=read[piece], mode="clip")
            file.madvise(mmap.MADV_DONTNEED)
        return read.reshape(*chosen.shape, *self.shape[1:])


def as_rows(array: "NDArray[Any] | Rows") -> Rows:
    """The rows of an array in its own order; `Rows` as they are."""
    return array if isinstance(array, Rows) else Rows(array)


def _mapped_file(array: object) -> mmap.mmap | None:
    """The mapped file that an array is part of; None without one, and where changes are private: those would be lost."""
    while array is not None and not isinstance(array, mmap.mmap):
        if isinstance(array, np.memmap) and array.mode == "c":
            return None
        array = getattr(array, "base", None)
    return array
