"""The standard streams: there from the start, and unable to end the process. Both programs use them; standard library only.

A stream may be closed, full, non-blocking or ASCII-only, its terminal may be gone, and its reader may take nothing. What it
does not take is lost, and everything else goes on.

What is printed steers no terminal: the streams write control and invisible characters as `texts.visible` shows them. Bytes that
are passed on to a file or pipe, such as a stored log, go there as they are.
"""

import codecs
import contextlib
import io
import json
import os
import select
import sys
from typing import Any, TextIO, cast

from job.masking import masked
from job.texts import visible

_ERRORS = "mnist-escape"
_KEPT = "\n\t"
READER_SECONDS = 10.0
"""How long a line of a run's log, and the last words of any command, may wait for a reader, such as a paused `less`."""

_MAX_REFUSALS, _REFUSAL_SECONDS = 100, 0.01
"""How often a descriptor may say that it is ready and then take nothing."""


def protect() -> None:
    """Open what is closed, and replace `sys.stdout` and `sys.stderr` by streams whose writes never fail. Call it first of all."""
    codecs.register_error(_ERRORS, _escape)
    with contextlib.suppress(OSError):  # no /dev/null
        _fill_descriptors()
    sys.stdout, sys.stderr = _protected(sys.stdout, 1), _protected(sys.stderr, 2)


def loss_of(stream: TextIO) -> str:
    """Why something written to a protected stream was lost, in the system's words; empty when nothing was.

    That its reader has gone is no loss: `mnist-job runs | head -1`.
    """
    sink = _sink_of(stream)
    return sink.loss if sink else ""


def reader_is_gone(stream: TextIO) -> bool:
    """Whether a write to a protected stream has found that nobody reads it any more, such as `head` that has enough."""
    sink = _sink_of(stream)
    return sink is not None and sink.is_gone


def give_up_after(seconds: float) -> None:
    """From now on a write waits so long for a reader that takes nothing, such as a paused `less`, and is lost then."""
    for stream in (sys.stdout, sys.stderr):
        sink = _sink_of(stream)
        if sink:
            sink.patience_seconds = seconds


def pass_on(data: bytes) -> None:
    """Write what somebody else wrote, such as a log, to stdout: every byte of it, or made visible where that is a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write(visible(data.decode(errors="backslashreplace"), keep=_KEPT))
    else:
        sys.stdout.buffer.write(data)


def steering(stream: TextIO) -> TextIO:
    """The same stream for what may steer the terminal, such as a progress bar; its user makes text of others visible."""
    return cast("TextIO", _Steering(stream))


def front_of(stream: TextIO) -> TextIO:
    """A stream that obeys what it is given, and stands where a protected one stood: only visible text is written to it."""
    return cast("TextIO", _Front(stream))


class _Visible(io.TextIOWrapper):
    """Text that steers no terminal, but for its line breaks and tabs, and holds no credentials: tracebacks too."""

    def write(self, text: str, /) -> int:
        super().write(visible(masked(text), keep=_KEPT))
        return len(text)


class _Steering:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        if isinstance(self._stream, _Visible):
            return io.TextIOWrapper.write(self._stream, masked(text))
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Front(_Steering):
    def write(self, text: str, /) -> int:
        return self._stream.write(visible(masked(text), keep=_KEPT))


class _Sink(io.RawIOBase):
    """Writes everything to a descriptor, or loses it. Never raises an OSError."""

    def __init__(self, descriptor: int, *, loss: str = "") -> None:
        super().__init__()
        self.loss, self.is_gone = loss, False
        self.patience_seconds: float | None = None
        self._descriptor, self._target, self._is_stuck = descriptor, _without_blocking(descriptor), False
        self._poll = select.poll()
        self._poll.register(self._target, select.POLLOUT)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        num_bytes = len(rest)
        try:
            self._write_all(rest)
        except BrokenPipeError:
            self.is_gone = True
        except OSError as error:
            self.loss = error.strerror or str(error)
        return num_bytes

    def _write_all(self, rest: memoryview) -> None:
        num_refusals = 0
        while rest:
            self._wait()
            try:
                rest = rest[os.write(self._target, rest[: select.PIPE_BUF]) :]
            except BlockingIOError:
                num_refusals += 1
                if num_refusals > _MAX_REFUSALS:
                    raise
                select.select([], [], [], _REFUSAL_SECONDS)
            else:
                num_refusals = 0

    def _wait(self) -> None:
        """Until the descriptor takes something. Once it took nothing in time, nothing is waited for until it does again."""
        patience = 0.0 if self._is_stuck else self.patience_seconds
        self._is_stuck = not self._poll.poll(None if patience is None else 1000 * patience)
        if self._is_stuck:
            raise TimeoutError("its reader takes nothing")


def _without_blocking(descriptor: int) -> int:
    """A terminal is opened once more for this: it says that it is ready when it takes one byte, and is shared with others."""
    try:
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:  # no terminal
        return descriptor


def _fill_descriptors() -> None:
    """Else the next file or socket would be number 1 or 2, and native code would write its messages into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _protected(stream: TextIO | None, descriptor: int) -> TextIO:
    """The stream as it is, with what it cannot encode or must not print escaped; what it loses is lost without an error."""
    if stream is None:  # Python found it closed
        sink = _Sink(os.open(os.devnull, os.O_WRONLY), loss="it is closed")
        return _Visible(io.BufferedWriter(sink), encoding="utf-8", errors=_ERRORS, line_buffering=True)
    return _Visible(io.BufferedWriter(_Sink(descriptor)), encoding=stream.encoding, errors=_ERRORS, line_buffering=True)


def _sink_of(stream: TextIO) -> _Sink | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Sink) else None


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""As `\u00f6`, which is right in JSON too."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
