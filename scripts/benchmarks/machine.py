"""What the figures were measured on: processor, memory, system, versions, settings."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("tensorflow-cpu", "keras", "torch", "jax", "jaxlib", "numpy")
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def describe_machine() -> list[tuple[str, str]]:
    """Rows of (what, value), in the order in which they are shown."""
    return [
        ("Date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        (
            "Processor",
            " ".join([_cpu_field("model name"), "family", _cpu_field("cpu family"), "model", _cpu_field("model")]),
        ),
        ("Instruction sets", ", ".join(_instruction_sets()) or "none of " + ", ".join(_INSTRUCTION_SETS)),
        ("Cores usable", str(len(os.sched_getaffinity(0)))),
        ("Memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"),
        ("System", f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}"),
        ("Versions", ", ".join([f"Python {platform.python_version()}", *_package_versions()])),
        ("Commit", _commit()),
        ("Load before the run", f"{os.getloadavg()[0]:.2f} (one-minute average)"),
    ]


def _cpu_field(name: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _instruction_sets() -> list[str]:
    flags = _cpu_field("flags").split()
    return [name for name in _INSTRUCTION_SETS if name in flags]


def _package_versions() -> Iterator[str]:
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # only some programs are measured
            yield f"{package} {version(package)}"


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"
