"""What sends one request to a store, and the crash points: hooks around every change of what is stored."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from job.records import check_size

on_point: Callable[[str], None] | None = None
"""Called before and after everything that changes what is stored, with its name; set by the tests that kill things there."""


@contextlib.contextmanager
def point(operation: str, where: str) -> Iterator[None]:
    """Around every write to a store and every local rename and fsync: a crash point."""
    if on_point:
        on_point(f"before {operation} {where}")
    yield
    if on_point:
        on_point(f"after {operation} {where}")


def check_bytes(num_bytes: int, *, key: str, max_bytes: int | None) -> None:
    """Refuse to read an object that is longer than its reader expects.

    Raises:
        IntegrityError: it has more than `max_bytes`.
    """
    if max_bytes is not None:
        check_size(num_bytes, name=f"store: {key}", max_bytes=max_bytes)


class TransientError(Exception):
    """A request failed in a way that may pass: try again until the deadline.

    Attributes:
        action: what a person does when it has not passed; empty: nothing is known but that no answer came.
    """

    def __init__(self, reason: str, *, action: str = "") -> None:
        super().__init__(reason)
        self.action = action


class AlreadyExists(Exception):  # noqa: N818 - an answer, not a fault
    """A create-only write was refused because the key is taken, or was being written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object in a listing."""

    key: str
    num_bytes: int
    modified_seconds: float
    """Seconds since the epoch, by the store's clock."""


class Backend(Protocol):
    """One request each. Raises `TransientError`, `AlreadyExists`, `FileNotFoundError` or a typed job error."""

    def create(self, key: str, data: bytes) -> None:
        """Write a new object; `AlreadyExists` when the key is taken."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing an older one in one step."""

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        """Read an object; `FileNotFoundError` when absent, `IntegrityError` before it is read when it is longer."""

    def list_objects(self, prefix: str) -> list[Entry]:
        """All objects whose key starts with the folder `prefix`, sorted by key."""

    def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders directly under `prefix`, sorted."""

    def delete(self, key: str) -> None:
        """Remove an object; absent is fine."""

    def check_key(self, key: str) -> None:
        """Refuse a key that cannot be written, as far as this is known without writing it."""

    def free_bytes(self) -> int | None:
        """Room that is left; None where that is not known."""

    def sweep(self, prefix: str, *, older_than_seconds: float) -> None:
        """Remove what killed writes left under a folder, where a backend leaves anything."""
