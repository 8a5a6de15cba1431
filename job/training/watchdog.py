"""Notices that training has stopped making steps, says where every thread is, and ends the process.

A hung input, a dead device or a deadlock otherwise holds a pod until its deadline, without a word. Compiling, training,
evaluating and saving are told apart by `Phases`: each change from one to another starts the count anew. A time in which the
process did not run counts nowhere.
"""

import contextlib
import faulthandler
import tempfile
import threading
from collections.abc import Callable, Iterator

from job import clock
from job.logs import warn
from job.observe.phases import Phases

LAST_NET_SECONDS = 3600.0
"""How much later faulthandler's own timer ends a process whose interpreter is held by native code. That timer alone also counts
the time in which the process is stopped: after a longer pause it ends the process."""

COMPILE_FACTOR = 4
"""The first chunk is traced, compiled and run before anything is heard of it: it may take so many times as long."""

_WORDS = {"compile": "compiling", "train": "training", "evaluate": "evaluating", "checkpoint": "saving"}


class Watchdog:
    """Calls `on_stall` when nothing has moved for `timeout_seconds`: no step, no evaluated batch, no change of the phase."""

    def __init__(self, *, timeout_seconds: float, phases: Phases, on_stall: Callable[[str, str], None]) -> None:
        """`on_stall` gets the reason in one line and the stacks of all threads.

        It runs on the watchdog's thread and has to end the process.
        """
        self._timeout_seconds, self._phases = timeout_seconds, phases
        self._on_stall = on_stall

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Expect beats inside this block; its start is the first one."""
        finished = threading.Event()
        thread = threading.Thread(target=self._watch, args=(finished,), daemon=True, name="watchdog")
        self.beat()
        self._set_last_net()
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()  # else it could set the last net once more, behind our back
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """A step was made."""
        self._phases.beat()

    def _watch(self, finished: threading.Event) -> None:
        paused_before = clock.paused_seconds()
        while not finished.wait(min(1.0, self._timeout_seconds / 4)):
            self._set_last_net()
            paused_seconds = clock.paused_seconds() - paused_before
            if paused_seconds:
                paused_before += paused_seconds
                warn(
                    "process.paused",
                    seconds=round(paused_seconds, 1),
                    reason="this process did not run; no deadline counts it",
                )
            phase = self._phases.current
            if self._phases.seconds_since_beat > self._limit_seconds(phase):
                self._on_stall(self._say(phase), _stacks())
                return

    def _limit_seconds(self, phase: str) -> float:
        return self._timeout_seconds * (COMPILE_FACTOR if phase == "compile" else 1)

    def _set_last_net(self) -> None:
        """A C thread that needs no interpreter: stacks on stderr, and exit code 1. While this thread runs, it moves on."""
        left_seconds = self._limit_seconds(self._phases.current) - self._phases.seconds_since_beat
        faulthandler.dump_traceback_later(max(0.0, left_seconds) + LAST_NET_SECONDS, exit=True)

    def _say(self, phase: str) -> str:
        times = f"{COMPILE_FACTOR} times " if phase == "compile" else ""
        return (
            f"no step within {self._limit_seconds(phase):g} s while {_WORDS.get(phase, phase)} "
            f"({times}observe.stall_timeout_seconds); the stacks of all threads are in the log"
        )


def _stacks() -> str:
    """Python stacks of all threads, newest call first; empty where no file can be made for them, as on a full disk."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
    return ""
