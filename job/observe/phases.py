"""Where the wall time of an attempt went."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path


class Phases:
    """Wall seconds by phase; `with phases("data"):` adds to one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the block; no phase contains another."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - started)

    def add(self, name: str, seconds: float) -> None:
        """Add time measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

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
