"""Puts the program into a simulated world's time and chance, for the rest of a process: through its one clock."""

from collections.abc import Callable
from typing import TypeVar

from job import clock
from job.commands import champion
from job.store.store import Store
from tests.torture.simulation import World

T = TypeVar("T")

_world: World | None = None


def enter(world: World) -> None:
    """From now on the program's clock, chance and sleep are those of this world."""
    global _world  # noqa: PLW0603 - the program has one clock
    _world = world


def _current() -> World:
    assert _world is not None
    return _world


class _Simulated(clock.Source):
    def now(self) -> float:
        return _current().now

    def monotonic(self) -> float:
        return _current().now

    def sleep(self, seconds: float) -> None:
        _current().pause(seconds)

    def uniform(self, low: float, high: float) -> float:
        return _current().random.uniform(low, high)

    def token(self, num_bytes: int) -> str:
        return f"{_current().random.getrandbits(8 * num_bytes):0{2 * num_bytes}x}"


def install() -> None:
    """Take the program out of real time, for the rest of this process."""
    clock.source = _Simulated()
    vars(champion).update({"print": lambda *texts: None, "_who": lambda: _current().name_of_client()})

    def at_once(self: Store, attempt: Callable[[], T], *, deadline: float) -> T:
        return attempt()

    type.__setattr__(Store, "_in_worker", at_once)
