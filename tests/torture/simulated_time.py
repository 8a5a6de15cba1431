"""Puts the modules of the store protocol into a simulated world's time and chance, for the rest of a process."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from types import SimpleNamespace
from typing import Any, TypeVar

from job.commands import champion
from job.registry import champion, gate, retention
from job.runs import checkpoint, write
from job.store import store
from job.store.store import Store
from tests.torture.simulation import World

T = TypeVar("T")

_world: World | None = None


def enter(world: World) -> None:
    """From now on the program's clock, chance and sleep are those of this world."""
    global _world  # noqa: PLW0603 - the modules of the program have one clock
    _world = world


def _current() -> World:
    assert _world is not None
    return _world


class _Clock(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "_Clock":
        return cls.fromtimestamp(_current().now, tz or UTC)


def install() -> None:
    """Take the modules of the protocol out of real time, for the rest of this process."""

    def sleep(seconds: float) -> None:
        _current().pause(seconds)

    def uniform(low: float, high: float) -> float:
        return _current().random.uniform(low, high)

    time = SimpleNamespace(sleep=sleep, monotonic=lambda: _current().now)
    chance = SimpleNamespace(uniform=uniform)
    secrets = SimpleNamespace(token_hex=lambda num_bytes: f"{_current().random.getrandbits(8 * num_bytes):x}")
    replaced: Mapping[Any, Mapping[str, object]] = {
        store: {"time": time, "random": chance},
        champion: {"time": time, "datetime": _Clock},
        checkpoint: {"time": time},
        gate: {"datetime": _Clock},
        write: {"datetime": _Clock},
        retention: {"secrets": secrets},
        champion: {"print": lambda *texts: None, "_who": lambda: _current().name_of_client()},
    }
    for module, names in replaced.items():
        vars(module).update(names)

    def at_once(self: Store, attempt: Callable[[], T], *, deadline: float) -> T:
        return attempt()

    type.__setattr__(Store, "_in_worker", at_once)
