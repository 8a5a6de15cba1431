"""Imports TensorFlow without the two lines that it says on stderr whatever `TF_CPP_MIN_LOG_LEVEL` is.

TensorFlow 2.21 says them while the linker loads its libraries, before it has read that variable; `_pywrap_profiler_plugin.so` has
a copy of the code, and says both again. Everything else that is written meanwhile goes to stderr at once, as it is, even when the
process dies of it (docs/adr/0046).
"""

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from typing import Any

from job.signals import called_by_c

_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR\n"
    rb"|I0000 [^\n]* port\.cc:\d+\] oneDNN custom operations are on\. [^\n]*\n"
)
_STDERR = 2
_UNBUFFERED = 2  # _IONBF

_Write = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class _Functions(ctypes.Structure):
    """`cookie_io_functions_t` of the GNU C library."""

    _fields_ = (
        ("read", ctypes.c_void_p),
        ("write", _Write),
        ("seek", ctypes.c_void_p),
        ("close", ctypes.c_void_p),
    )


def import_tensorflow() -> None:
    """Import it for the first time in this process."""
    with without_chatter():
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Let the C library's `stderr` be a stream that drops the two lines; Python's is another one, and stays as it is."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "fopencookie"):  # no GNU C library
        yield
        return
    with contextlib.suppress(OSError):
        ctypes.CDLL("libstdc++.so.6")  # std::cerr remembers the stream that it finds when it is loaded: the real one
    stderr = ctypes.c_void_p.in_dll(libc, "stderr")
    before = stderr.value
    stderr.value = _open_filter(libc) or before
    try:
        yield
    finally:
        stderr.value = before


def _open_filter(libc: Any) -> int | None:
    """A stream for the rest of the process: a library that was loaded meanwhile may have kept it. None: no memory is left."""
    libc.fopencookie.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Functions)
    libc.fopencookie.restype = ctypes.c_void_p
    libc.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)
    stream: int | None = libc.fopencookie(None, b"w", _FUNCTIONS)
    if stream:
        libc.setvbuf(stream, None, _UNBUFFERED, 0)
    return stream


@called_by_c
def _pass_on(_cookie: int, start: int, num_bytes: int) -> int:
    """One write of the C library, which is a whole message: TensorFlow's log and `perror` hand theirs over at once."""
    data = ctypes.string_at(start, num_bytes)
    if not _CHATTER.fullmatch(data):
        _write(data)
    return num_bytes


def _write(data: bytes) -> None:
    rest = memoryview(data)
    with contextlib.suppress(OSError):  # as without the filter: nobody is told
        while rest:
            rest = rest[os.write(_STDERR, rest) :]


_FUNCTIONS = _Functions(write=_Write(_pass_on))
