"""Facts about this attempt: its id, and everything that could make its bits differ from another's."""

import platform
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from job import __version__
from job.contract import Pod, is_run_id
from job.errors import ConfigError

_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "obstore", "safetensors", "tensorflow-datasets")
_INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def make_attempt_id(pod: Pod) -> str:
    """The pod's UID in a cluster, a random UUID elsewhere.

    Raises:
        ConfigError: POD_UID holds something that is no UID.
    """
    if pod.uid and not is_run_id(pod.uid):
        raise ConfigError(f"POD_UID: must be the pod's UID (metadata.uid), received {pod.uid[:80]!r}")
    return pod.uid or str(uuid.uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What computes the steps: TensorFlow's devices, its thread counts, and how the step was compiled."""

    names: tuple[str, ...]
    threads: Mapping[str, int]
    compile_with: str


def describe_attempt(
    pod: Pod, *, run_id: str, attempt_id: str, device: Device, environ: Mapping[str, str]
) -> dict[str, Any]:
    """The content of attempt.json."""
    return {
        "format": 1,
        "run": run_id,
        "attempt": attempt_id,
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "pod": {"name": pod.name, "job": pod.job_name, "release": pod.release},
        "revision": pod.revision or checked_out_revision(Path(__file__).parents[1]),
        "image": pod.image,
        "chart_version": pod.chart_version,
        "version": __version__,
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "machine": platform.machine(),
        "instruction_sets": _instruction_sets(),
        "onednn_max_cpu_isa": environ.get("ONEDNN_MAX_CPU_ISA"),
        "devices": list(device.names),
        "threads": dict(device.threads),
        "compile": device.compile_with,
    }


def bits_depend_on(attempt: Mapping[str, Any]) -> dict[str, Any]:
    """The part of attempt.json that decides the bits of a step: equal in two attempts, equal bits (docs/adr/0004)."""
    packages = attempt["packages"]
    depends = {name: attempt[name] for name in ("machine", "instruction_sets", "onednn_max_cpu_isa", "devices")}
    depends |= {name: packages[name] for name in ("tensorflow", "tensorflow-cpu", "keras") if name in packages}
    if attempt["compile"] == "xla" and not any(name.startswith("avx512") for name in attempt["instruction_sets"]):
        depends["intra_op_threads"] = attempt["threads"]["intra_op"]
    return depends


def checked_out_revision(folder: Path) -> str:
    """The git commit that a folder is at, without git; empty where it is no checkout."""
    git = folder / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).exists():
            return (git / name).read_text(encoding="ascii").strip()
        packed = (git / "packed-refs").read_text(encoding="ascii").splitlines()
        return next((line.split(" ")[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, ValueError):
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _instruction_sets() -> list[str]:
    """The vector instructions of this CPU that decide which kernels run, and so the bits."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return []
    words = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    return [name for name in _INSTRUCTION_SETS if name in words]
