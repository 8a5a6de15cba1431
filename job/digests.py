"""How content is written before it is hashed, and how it is hashed: canonical JSON, bytes, arrays. Standard library only."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


_BLOCK_BYTES = 8_000_000


def canonical_json(value: object) -> bytes:
    """The one way in which objects are written before they are hashed or stored."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 hex characters."""
    return hashlib.sha256(data).hexdigest()


def digest_of_arrays(arrays: "Iterable[tuple[object, NDArray[Any]]]", *, then: bytes = b"") -> str:
    """SHA-256 over the name, type, shape and bytes of each array, in the order given, and over `then`.

    Args:
        arrays: (name, array of any shape) pairs; the name is written as text. Whatever has a dtype, a shape and rows that can
            be sliced will do.
    """
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        for part in _parts(array):
            digest.update(part)
    digest.update(then)
    return digest.hexdigest()


def _parts(array: "NDArray[Any]") -> "Iterator[bytes | memoryview]":
    """The bytes of an array in C order, without a copy of a whole dataset."""
    flags = getattr(array, "flags", None)
    if flags is not None and flags.c_contiguous and array.dtype.kind in "biuf":
        yield array.data
    elif not array.shape:
        yield array.tobytes()
    else:
        num_rows = max(1, _BLOCK_BYTES // max(1, math.prod(array.shape[1:]) * array.dtype.itemsize))
        for start in range(0, array.shape[0], num_rows):
            yield array[start : start + num_rows].tobytes(order="C")
