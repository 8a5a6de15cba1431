"""Where the wall time of an attempt goes: a clock that is always in exactly one phase, so that phases add up."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from job import clock

PROCESS, START_UP, WAIT_FOR_WORKERS = "process", "start_up", "wait_for_workers"
PAUSED = "paused"
"""Beside the phases: the time in which the process did not run."""
PHASES = (
    PROCESS,
    START_UP,
    WAIT_FOR_WORKERS,
    "store",
    "data",
    "build",
    "restore",
    "compile",
    "train",
    "evaluate",
    "checkpoint",
    "export",
    "publish",
    "clean_up",
)
"""All of them, in the order in which a run comes to them."""


class Phases:
    """Wall seconds by phase, from the start of the process on; for the main thread only."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._paused_before = clock.paused_seconds()
        self._name, self._since = PROCESS, clock.monotonic() - seconds_since_process_start()
        self._last_beat_seconds = self._since
        self.switch(START_UP)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block to a phase, and what follows to the phase before."""
        outer = self._name
        self.switch(name)
        try:
            yield
        finally:
            self.switch(outer)

    def switch(self, name: str) -> None:
        """Count the time from now on to a phase."""
        assert name in PHASES
        now = clock.monotonic()
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + now - self._since
        if name != self._name:
            self._last_beat_seconds = now
        self._name, self._since = name, now

    def beat(self) -> None:
        """Something moved in this phase: a step was made, a batch evaluated. A change of the phase is a beat too."""
        self._last_beat_seconds = clock.monotonic()

    @property
    def seconds_since_beat(self) -> float:
        """How long nothing has moved; any thread may ask."""
        return clock.monotonic() - self._last_beat_seconds

    @property
    def current(self) -> str:
        """The phase that the time is counted to now; any thread may ask."""
        return self._name

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, the running one included; they add up to the age of the process."""
        self.switch(self._name)
        paused = clock.paused_seconds() - self._paused_before
        return self._seconds | ({PAUSED: paused} if paused else {})

    def to_json(self) -> dict[str, float]:
        """Seconds by phase, to the millisecond."""
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}


def seconds_since_process_start() -> float:
    """Age of this process, the interpreter's own start included; 0.0 where /proc does not tell."""
    try:
        # Field 22 of /proc/self/stat: start time in clock ticks since boot; the name in field 2 may hold spaces.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return max(0.0, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
