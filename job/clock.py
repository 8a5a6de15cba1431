"""Time and chance: the one module of the job that reads a clock, sleeps or draws at random.

The simulation in `tests/torture` replaces `source`, and with it the time and the chance of the whole program.
"""

import random
import secrets
import time
from datetime import UTC, datetime


class Source:
    """The machine's own time and chance."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that only go forward, from an unknown start."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        time.sleep(seconds)

    def uniform(self, low: float, high: float) -> float:
        """Any number in between; not for secrets."""
        return random.uniform(low, high)

    def token(self, num_bytes: int) -> str:
        """A name that no other process draws, in hex: two characters a byte."""
        return secrets.token_hex(num_bytes)


source = Source()
"""Whose time and chance it is."""


def now() -> float:
    """Seconds since the epoch."""
    return source.now()


def monotonic() -> float:
    """Seconds that only go forward, from an unknown start: for durations and deadlines."""
    return source.monotonic()


def sleep(seconds: float) -> None:
    """Let so much time pass."""
    source.sleep(seconds)


def uniform(low: float, high: float) -> float:
    """Any number in between; not for secrets."""
    return source.uniform(low, high)


def token(num_bytes: int) -> str:
    """A name that no other process draws, in hex: two characters a byte."""
    return source.token(num_bytes)


def timestamp(seconds: float | None = None) -> str:
    """A time (now) as every stored record has it: ISO 8601 in UTC to the millisecond, such as 2026-03-01T00:00:00.000+00:00."""
    return datetime.fromtimestamp(now() if seconds is None else seconds, UTC).isoformat(timespec="milliseconds")
