"""A world of one thread: clients of one store whose requests a seeded scheduler orders, delays, repeats, loses and cuts off.

Every request of a `Store` to its backend is a step at which any other client may go on, fall asleep or die. Time passes
only when the scheduler says so. Nothing here knows the protocol; `protocol.py` does.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from greenlet import greenlet

from job.store.backend import AlreadyExists, Entry, TransientError
from job.store.store import Store
from tests.torture.checks import TrialFailed

T = TypeVar("T")

_EPOCH_SECONDS = 1_780_000_000.0
_DEADLINE_SECONDS = 20.0
_MAX_STEPS = 60_000
_NAP_SECONDS = 300.0
_FOCUS = 0.4
_SPEEDS = (0.02, 1.0, 1.0, 10.0)


class Crash(BaseException):
    """The process is gone: no handler of the program sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dangers:
    """How likely each thing is at each request.

    Attributes:
        focus: part of a request's name before which clients like to sleep.
    """

    fault: float = 0.0
    crash: float = 0.0
    nap: float = 0.0
    focus: str = ""


class Judge(Protocol):
    """Is asked before each change of the store takes effect; raises TrialFailed."""

    def written(self, key: str, data: bytes, *, before: bytes | None) -> None:
        """An object is made, or replaced."""

    def deleted(self, key: str) -> None:
        """An object goes."""


@dataclass(eq=False, slots=True)
class Client:
    """One process, or one thread of one."""

    name: str
    thread: greenlet
    owner: "Client | None"
    """The client that it dies with."""
    speed: float
    ready_at: float = 0.0
    crashed: bool = False


@dataclass(eq=False)
class World:
    """The objects of a store, its clients, and the requests that are still on their way."""

    random: random.Random
    dangers: Dangers
    judge: Judge | None = None
    now: float = _EPOCH_SECONDS
    num_steps: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    modified: dict[str, float] = field(default_factory=dict)
    clients: list[Client] = field(default_factory=list)
    late: list[tuple[float, str, Callable[[], object]]] = field(default_factory=list)
    """(when, what, request) of requests whose sender does not wait for them any more."""
    counts: Counter[str] = field(default_factory=Counter)
    """How often each thing went wrong, for the table."""
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page_size = self.random.choice((2, 5, 1000))
        self.me: Client | None = None
        self._hub = greenlet.getcurrent()

    def connect(self) -> Store:
        """A store of its own for a client."""
        return Store(_Backend(self), uri="sim:", deadline_seconds=_DEADLINE_SECONDS)

    def start(self, name: str, work: Callable[[], object], *, owner: "Client | None" = None) -> Client:
        """A client that is ready to go; with an owner, a thread of that one."""
        client = Client(
            name=name,
            thread=greenlet(partial(_live, work), self._hub),
            owner=owner,
            speed=self.random.choice(_SPEEDS),
            ready_at=self.now,
        )
        self.clients.append(client)
        return client

    def run(self) -> None:
        """Let everybody go on until all have ended and nothing is on its way."""
        while True:
            alive = [client for client in self.clients if not client.thread.dead]
            if not alive and not self.late:
                return
            self.num_steps += 1
            if self.num_steps > _MAX_STEPS:
                raise TrialFailed(f"no end after {_MAX_STEPS} steps: {', '.join(client.name for client in alive)}")
            self.now += self.random.choice((0.0, 0.001, 0.03))
            ready = [client for client in alive if client.ready_at <= self.now]
            due = [item for item in self.late if item[0] <= self.now]
            if not ready and not due:
                self.now = min([client.ready_at for client in alive] + [when for when, _, _ in self.late])
            elif due and (not ready or self.random.random() < 0.5):
                self._arrive(due[0])
            else:
                self._go_on(ready)

    def _arrive(self, item: tuple[float, str, Callable[[], object]]) -> None:
        self.late.remove(item)
        self.note(f"late: {item[1]}")
        with contextlib.suppress(AlreadyExists, FileNotFoundError):
            item[2]()

    def _go_on(self, ready: list[Client]) -> None:
        [client] = self.random.choices(ready, [each.speed for each in ready])
        if self.random.random() < 0.02:
            client.speed = self.random.choice(_SPEEDS)
        if self.random.random() < self.dangers.nap:
            client.ready_at = self.now + self._long_pause()
        elif self.random.random() < self.dangers.crash:
            self.crash(client)
        else:
            self._switch(client, client.thread.switch)

    def _switch(self, client: Client, how: Callable[[], object]) -> None:
        before, self.me = self.me, client
        try:
            how()
        finally:
            self.me = before

    def crash(self, client: Client) -> None:
        """End a process, with all its threads, wherever they are."""
        process = client.owner or client
        self.counts["crashes"] += 1
        self.note(f"crash: {process.name}")
        for each in self.clients:
            if (each is process or each.owner is process) and not each.thread.dead:
                each.crashed = True
                with contextlib.suppress(Crash):  # one that has not begun lets it through
                    self._switch(each, partial(each.thread.throw, Crash()))

    def pause(self, seconds: float = 0.0) -> None:
        """Let others go on; outside a client, only time passes."""
        if self.me is None:
            self.now += seconds
            return
        if self.me.crashed:  # a handler on its way out: the process is gone
            raise Crash
        self.me.ready_at = self.now + seconds
        self._hub.switch()

    def request(self, what: str, act: Callable[[], T]) -> T:
        """One request over a bad network.

        Raises:
            TransientError: no reply came; it may have taken effect, or may do so later.
        """
        self.pause(self._long_pause() if self._is_in_focus(what) else 0.0)
        draw = self.random.random() / self.dangers.fault if self.dangers.fault and self.me else 1.0
        if draw >= 1.0:
            self.note(what)
            result = act()
            if self.random.random() < 0.2:
                self.pause()
            return result
        kind = ("lost", "reply lost", "late", "twice")[int(draw * 4)]
        self.counts[kind] += 1
        self.note(f"{kind}: {what}")
        if kind in {"late", "twice"}:
            self.late.append((self.now + self.random.uniform(0, 2 * _NAP_SECONDS), what, act))
        if kind == "twice":
            return act()
        if kind == "reply lost":
            with contextlib.suppress(AlreadyExists, FileNotFoundError):
                act()
        self.pause(self.random.choice((0.01, 5.0)))
        raise TransientError(kind)

    def _is_in_focus(self, what: str) -> bool:
        focus = self.dangers.focus
        return bool(focus) and focus in what and self.random.random() < _FOCUS

    def _long_pause(self) -> float:
        self.counts["naps"] += 1
        return self.random.uniform(0, _NAP_SECONDS)

    def write(self, key: str, data: bytes) -> None:
        """Take effect: one object."""
        if self.judge:
            self.judge.written(key, data, before=self.objects.get(key))
        self.objects[key] = data
        self.modified[key] = self.now

    def create(self, key: str, data: bytes) -> None:
        """Take effect, unless the key is taken."""
        if key in self.objects:
            raise AlreadyExists(key)
        self.write(key, data)

    def delete(self, key: str) -> None:
        """Take effect: an object less."""
        if key in self.objects:
            if self.judge:
                self.judge.deleted(key)
            del self.objects[key], self.modified[key]

    def name_of_client(self) -> str:
        """Whose turn it is."""
        return self.me.name if self.me else "-"

    def note(self, what: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{self.now - _EPOCH_SECONDS:10.3f} {self.name_of_client():12} {what}")


class _Backend:
    """A `store.Backend` whose requests are steps of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def create(self, key: str, data: bytes) -> None:
        self._world.request(f"create {key}", lambda: self._world.create(key, data))

    def put(self, key: str, data: bytes) -> None:
        self._world.request(f"put {key}", lambda: self._world.write(key, data))

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes:
        return self._world.request(f"get {key}", lambda: self._get(key))

    def _get(self, key: str) -> bytes:
        try:
            return self._world.objects[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def list_objects(self, prefix: str) -> list[Entry]:
        """Page by page, as an object store: what is made behind the cursor meanwhile is missed."""
        world, found, after = self._world, list[Entry](), ""
        while True:
            page = world.request(f"list {prefix} after {after!r}", partial(self._page, prefix, after))
            found += page
            if len(page) < world.page_size:
                return found
            after = page[-1].key

    def _page(self, prefix: str, after: str) -> list[Entry]:
        world = self._world
        keys = sorted(key for key in world.objects if key.startswith(prefix) and key > after)[: world.page_size]
        return [Entry(key=key, num_bytes=len(world.objects[key]), modified_seconds=world.modified[key]) for key in keys]

    def list_folders(self, prefix: str) -> list[str]:
        return self._world.request(f"folders {prefix}", lambda: self._folders(prefix))

    def _folders(self, prefix: str) -> list[str]:
        below = (key[len(prefix) :].partition("/") for key in self._world.objects if key.startswith(prefix))
        return sorted({name for name, slash, _ in below if slash})

    def delete(self, key: str) -> None:
        self._world.request(f"delete {key}", lambda: self._world.delete(key))

    def check_key(self, key: str) -> None:
        """Every key can be written."""

    def free_bytes(self) -> int | None:
        """Not known."""
        return None

    def sweep(self, prefix: str, *, older_than_seconds: float) -> None:
        """Nothing is left anywhere."""


def _live(work: Callable[[], object]) -> None:
    with contextlib.suppress(Crash):
        work()
