"""Time and chance: the one module of the job that reads a clock, sleeps or draws at random.

The simulation in `tests/torture` replaces `source`, and with it the time and the chance of the whole program.
"""

import random
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

_TICK_SECONDS = 0.25
_LATE_SECONDS = 1.0
"""A tick that comes so late: the process was not running."""
_IDLE = 0.5
"""A main thread that computed, or wanted to, for a smaller share of the time was not running."""
_FIRST_SECONDS, _LAST_SECONDS = -62135596800.0, 253402300799.0
"""The years 1 to 9999, which ISO 8601 can say, since the epoch."""
_STEP_SECONDS = 1.0


class Source:
    """The machine's own time and chance."""

    def __init__(self) -> None:
        self._pauses = _Pauses()

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that only go forward, while this process runs, from an unknown start."""
        return self._pauses.seconds_awake()

    def paused_seconds(self) -> float:
        """How long this process was not running since it first asked for the time."""
        return self._pauses.paused_seconds

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        time.sleep(seconds)

    def uniform(self, low: float, high: float) -> float:
        """Any number in between; not for secrets."""
        return random.uniform(low, high)

    def token(self, num_bytes: int) -> str:
        """A name that no other process draws, in hex: two characters a byte."""
        return secrets.token_hex(num_bytes)


class _Pauses:
    """Notices that the process did not run: SIGSTOP, a frozen container, a paused VM, a laptop's sleep.

    A thread asks for the time four times a second. Whoever asks first after a pause finds that the last one asked long ago, and
    that the main thread has not even wanted to compute since. Native code that holds the interpreter, such as an import, does.
    """

    def __init__(self) -> None:
        self.paused_seconds = 0.0
        self._last, self._last_computed = 0.0, 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def seconds_awake(self) -> float:
        with self._lock:
            now, computed = _elapsed(), _computed()
            late_seconds = now - self._last - _TICK_SECONDS
            if self._thread is None or not self._thread.is_alive():  # the second: this is a fork
                self._thread = threading.Thread(target=self._tick, daemon=True, name="clock")
                self._thread.start()
            elif late_seconds > _LATE_SECONDS and computed - self._last_computed < _TICK_SECONDS + late_seconds * _IDLE:
                self.paused_seconds += late_seconds
            self._last, self._last_computed = now, computed
            return now - self.paused_seconds

    def _tick(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            self.seconds_awake()


def _elapsed() -> float:
    """Seconds that no step of the calendar changes; where the system can tell, those of a sleep too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _computed() -> float:
    """Seconds in which the main thread has had a processor, or waited for one; 0.0 where the system cannot tell."""
    try:
        # Nanoseconds on a processor, nanoseconds on a run queue, number of turns.
        had, waited, _ = Path("/proc/self/schedstat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0.0
    return (int(had) + int(waited)) / 1e9


source = Source()
"""Whose time and chance it is."""


def now() -> float:
    """Seconds since the epoch."""
    return source.now()


def monotonic() -> float:
    """Seconds that only go forward, from an unknown start: for durations and deadlines.

    A time in which this process did not run is left out: whoever wakes has as much of a deadline left as before.
    """
    return source.monotonic()


def elapsed() -> float:
    """`monotonic`, and the pauses too: for how long something took."""
    return monotonic() + paused_seconds()


def paused_seconds() -> float:
    """How long this process was not running, by `monotonic`."""
    return source.paused_seconds()


def wait(step: Callable[[float], bool], *, seconds: float) -> bool:
    """Whether `step` said yes within so many seconds of `monotonic`.

    Args:
        step: waits for the seconds that it is given, such as `Event.wait`. It is asked again after a pause.
    """
    deadline = monotonic() + seconds
    while not step(max(0.0, min(_STEP_SECONDS, deadline - monotonic()))):
        if monotonic() >= deadline:
            return False
    return True


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
    """A time (now) as every stored record has it: ISO 8601 in UTC to the millisecond, such as 2026-03-01T00:00:00.000+00:00.

    Files can be older than the year 1 and younger than 9999: they count as of these years.
    """
    since = min(max(now() if seconds is None else seconds, _FIRST_SECONDS), _LAST_SECONDS)
    return datetime.fromtimestamp(since, UTC).isoformat(timespec="milliseconds")


def seconds_of(text: str) -> float:
    """Since the epoch, of a time as `timestamp` and records of others have it; one without a zone is in UTC.

    Raises:
        ValueError: it is no ISO 8601.
    """
    time_of_day = datetime.fromisoformat(text)
    return (time_of_day if time_of_day.tzinfo else time_of_day.replace(tzinfo=UTC)).timestamp()
