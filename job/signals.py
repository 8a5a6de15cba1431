"""SIGTERM, SIGINT and SIGHUP: the first one asks the run to stop.

Outside a deferred block the main thread is interrupted at any line, which is safe because every state of a run is
safe against a kill; inside, the block looks at `requested` itself.

The interruption is an exception, and not all that it passes lets it through: a module written in C makes an ImportError of
what is raised while it is imported, a user's own `except` makes what it likes. So whatever error then ends the process, it
was interrupted (`raise_again`); and where nothing came out, the run asks at its next step (`check`).
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, TypeVar

_AGAIN_SECONDS = 0.02

_CALLED_BY_C: set[CodeType] = set()

_Function = TypeVar("_Function", bound=Callable[..., Any])


class StopRequested(BaseException):  # like KeyboardInterrupt: nothing between here and __main__ may catch it
    """The process was asked to stop."""


def called_by_c(function: _Function) -> _Function:
    """Mark a callback of C code, which no signal interrupts: C takes garbage for the answer that is missing."""
    _CALLED_BY_C.add(function.__code__)
    return function


class StopSignal:
    """Whether a stop was requested, and when the main thread may be interrupted."""

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the first signal, such as SIGTERM."""
        self._is_deferred = False
        self._is_ignored = False
        self._was_raised = False

    def install(self) -> None:
        """Take SIGTERM, SIGINT and SIGHUP; as PID 1 the kernel drops SIGTERM until this has run. `nohup` keeps SIGHUP away."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # the terminal or the ssh session was closed
            signal.signal(signal.SIGHUP, self._on_signal)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """No interruption inside; one that came meanwhile is raised at the end."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        self.check()

    def ignore(self) -> None:
        """From now on signals change nothing: the way out is short and must keep its exit code."""
        self._is_ignored = True

    def check(self) -> None:
        """Raises:
        StopRequested: a signal has come.
        """
        if self.requested:
            self._was_raised = True
            raise StopRequested(self.requested)

    def raise_again(self) -> None:
        """To be asked when an error is about to end the process: it may be what something made of the interruption.

        Raises:
            StopRequested: it was raised before, and `ignore` was not called since.
        """
        if self._was_raised and not self._is_ignored:
            self.check()

    def is_requested(self) -> bool:
        """Whether a signal has come, here or to another worker."""
        return self.requested is not None

    def request(self, reason: str) -> None:
        """Another worker of the run was asked to stop, so this one stops too."""
        self.requested = self.requested or reason

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self._is_ignored:  # asked before: the way out must not be interrupted again
            return
        if _is_called_by_c(frame) and not self._is_deferred:
            signal.signal(signal.SIGALRM, lambda _, later: self._on_signal(number, later))
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            return
        self.requested = signal.Signals(number).name
        if not self._is_deferred:
            self.check()


def _is_called_by_c(frame: FrameType | None) -> bool:
    while frame and frame.f_code not in _CALLED_BY_C:
        frame = frame.f_back
    return frame is not None
