"""Notices that training has stopped making steps, says where every thread is, and ends the process.

A hung input, a dead device or a deadlock otherwise holds a pod until its deadline, without a word.
"""

import contextlib
import faulthandler
import tempfile
import threading
from collections.abc import Callable, Iterator

from job import clock

LAST_NET_SECONDS = 30.0
"""How much later faulthandler's own timer ends a process whose interpreter is held by native code."""


class Watchdog:
    """Calls `on_stall` with the stacks of all threads when no beat came for `timeout_seconds`."""

    def __init__(self, *, timeout_seconds: float, on_stall: Callable[[str], None]) -> None:
        """`on_stall` runs on the watchdog's thread and has to end the process."""
        self._timeout_seconds = timeout_seconds
        self._on_stall = on_stall
        self._last_beat_seconds = 0.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Expect beats inside this block; its start is the first one."""
        finished = threading.Event()
        thread = threading.Thread(target=self._watch, args=(finished,), daemon=True, name="watchdog")
        self.beat()
        thread.start()
        try:
            yield
        finally:
            finished.set()
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """A step was made."""
        self._last_beat_seconds = clock.monotonic()
        # A C thread that needs no interpreter: the last net, with stacks on stderr and exit code 1.
        faulthandler.dump_traceback_later(self._timeout_seconds + LAST_NET_SECONDS, exit=True)

    def _watch(self, finished: threading.Event) -> None:
        while not finished.wait(min(1.0, self._timeout_seconds / 4)):
            if clock.monotonic() - self._last_beat_seconds > self._timeout_seconds:
                self._on_stall(_stacks())
                return


def _stacks() -> str:
    """Python stacks of all threads, newest call first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
