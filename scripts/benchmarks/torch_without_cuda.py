"""Lets PyTorch's wheel for Linux start without the CUDA libraries that a CPU benchmark never calls.

PyPI's only wheel for x86-64 Linux links against 2.3 GB (packed) of them, so `pyproject.toml` leaves most out
and their names are given to a library that is loaded anyway. A missing function is looked up when it is first
called, which is never. Without effect where the real libraries are installed.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What libtorch_cuda.so and libtorch_python.so of torch 2.15 link against and pyproject.toml overrides away.
# The CUDA runtime, CUPTI and NVSHMEM stay: start-up code calls them or reads their data.
LEFT_OUT = (
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcudnn.so.9",
    "libcufft.so.12",
    "libcufile.so.0",
    "libcusparse.so.12",
    "libcusparseLt.so.0",
    "libnccl.so.2",
    "libnvrtc.so.13",
)


def make_stand_ins(folder: Path) -> dict[str, str]:
    """Fill `folder` with a link for each library; return the variables that a process needs at its start."""
    spec = importlib.util.find_spec("torch")
    if sys.platform != "linux" or spec is None or spec.origin is None:
        return {}
    # Any library without symbol versions of its own will do: the loader sees one file and loads it once.
    present = Path(spec.origin).parent / "lib" / "libc10.so"
    for name in LEFT_OUT:
        (folder / name).symlink_to(present)
    # The wheel's own search path comes before this one, so a real library wins.
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{folder}:{inherited}" if inherited else str(folder)}


@contextmanager
def late_binding() -> Iterator[None]:
    """Let extension modules look functions up at their first call; Python's default is at import."""
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        yield
    finally:
        sys.setdlopenflags(flags)
