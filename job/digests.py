"""How content is written before it is hashed, and how it is hashed: canonical JSON, bytes, arrays. Standard library only."""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def canonical_json(value: object) -> bytes:
    """The one way in which objects are written before they are hashed or stored."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 hex characters."""
    return hashlib.sha256(data).hexdigest()


def digest_of_arrays(arrays: "Iterable[tuple[object, NDArray[Any]]]", *, then: bytes = b"") -> str:
    """SHA-256 over the name, type, shape and bytes of each array, in the order given, and over `then`.

    Args:
        arrays: (name, array of any shape) pairs; the name is written as text.
    """
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        is_plain = array.flags.c_contiguous and array.dtype.kind in "biuf"  # no copy of a whole dataset
        digest.update(array.data if is_plain else array.tobytes(order="C"))
    digest.update(then)
    return digest.hexdigest()
