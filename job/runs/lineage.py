"""Facts about an attempt, attempt.json: its id, where it comes from, and what could make its bits differ from another's."""

import functools
import importlib.resources
import json
import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from job import __version__, ambient, clock
from job.config import Config
from job.contract import Pod, is_run_id
from job.digests import canonical_json, sha256_hex
from job.errors import ConfigError, IntegrityError
from job.plugins import describe_sources
from job.runs.identity import AttemptIdentity, own_functions

FORMAT = 1
_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "obstore", "safetensors", "tensorflow-datasets")
_BITS = ("packages", "machine", "instruction_sets", "onednn_max_cpu_isa", "devices", "threads", "compile")
_PACKAGES_OF_BITS = ("tensorflow", "tensorflow-cpu", "keras")
_THIS_PROJECT = "mnist-train"
_LISTS_OF_SYSTEM = ("/etc/os-release", "/var/lib/dpkg/status", "/lib/apk/db/installed", "/var/lib/rpm/rpmdb.sqlite")
"""Where a Linux system says which packages it has."""
_INSTRUCTION_SETS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")


def make_attempt_id(pod: Pod) -> str:
    """The pod's UID in a cluster, a random UUID elsewhere.

    Raises:
        ConfigError: POD_UID holds something that is no UID.
    """
    if pod.uid and not is_run_id(pod.uid):
        raise ConfigError(f"POD_UID: must be the pod's UID (metadata.uid), received {pod.uid[:80]!r}")
    return pod.uid or str(uuid.UUID(hex=clock.token(16), version=4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What computes the steps: TensorFlow's devices of all workers, its thread counts, and how the step was compiled."""

    names: tuple[str, ...]
    threads: Mapping[str, int]
    compile_with: str
    num_workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The content of attempt.json: where an attempt comes from, and what computed its steps.

    Attributes:
        started: ISO 8601 in UTC.
        pod: name of the pod, its Job and its release; empty outside a cluster.
        revision: git commit of the program; empty when it is not known.
        packages: name -> version.
        compile: `xla` or `graph`.
        devices: one for each replica.
        workers: processes that share the devices in equal parts.
        code: of each function of the user's own, see `plugins.describe_sources`.
        software: SHA-256 of what has run, by part: see `describe_software`.
        environment: variables that libraries read and that may change bits, speed or the way, see `ambient.TABLE`.
    """

    run: str
    attempt: str
    started: str
    pod: Mapping[str, str]
    revision: str
    image: str
    chart_version: str
    version: str
    python: str
    packages: Mapping[str, str]
    machine: str
    instruction_sets: Sequence[str]
    onednn_max_cpu_isa: str | None
    devices: Sequence[str]
    threads: Mapping[str, int]
    compile: str
    workers: int
    code: Sequence[Mapping[str, Any]]
    software: Mapping[str, str]
    environment: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """As it is stored, and as COMMIT repeats it."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Lineage":
        """Parse a stored record; what an older version did not write is empty, unless bits depend on it.

        Raises:
            IntegrityError: something that bits depend on is missing.
        """
        missing = [name for name in _BITS if name not in record]
        if missing:
            raise IntegrityError(f"the record of attempt {record.get('attempt')!r} lacks {', '.join(missing)}")
        empty: dict[str, Any] = {"pod": {}, "workers": 1, "code": [], "software": {}, "environment": {}}
        return cls(**{field.name: record.get(field.name, empty.get(field.name, "")) for field in fields(cls)})


def describe_attempt(
    pod: Pod, identity: AttemptIdentity, *, device: Device, environ: Mapping[str, str], config: Config
) -> Lineage:
    """Collect the content of attempt.json."""
    return Lineage(
        run=identity.run,
        attempt=identity.attempt,
        started=clock.timestamp(),
        pod={"name": pod.name, "job": pod.job_name, "release": pod.release},
        revision=_revision(pod),
        image=pod.image,
        chart_version=pod.chart_version,
        version=__version__,
        python=platform.python_version(),
        packages={name: found for name in _PACKAGES if (found := _version(name))},
        machine=platform.machine(),
        instruction_sets=_instruction_sets(),
        onednn_max_cpu_isa=environ.get("ONEDNN_MAX_CPU_ISA"),
        devices=list(device.names),
        threads=dict(device.threads),
        compile=device.compile_with,
        workers=device.num_workers,
        code=[describe_sources(name) for name in own_functions(config).values()],
        software=describe_software(),
        environment=ambient.recorded(environ),
    )


def describe_software() -> dict[str, str]:
    """SHA-256 of the program's files, of what is installed beside it, and of the system's list of packages; empty: not known.

    The id of the pod's image would say it all, and no pod is told it: the downward API has no field of the status for it.
    """
    return {"program": _digest_of_program(), "packages": _digest_of_packages(), "system": _digest_of_system()}


@functools.cache
def _digest_of_program() -> str:
    folder = Path(str(importlib.resources.files("job")))
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    digests = {path.relative_to(folder).as_posix(): sha256_hex(path.read_bytes()) for path in files}
    return sha256_hex(canonical_json(digests)) if digests else ""


@functools.cache
def _digest_of_packages() -> str:
    """Of the RECORD of each installed package: it has the package's version, and the SHA-256 of each of its files."""
    found = sorted(map(_digest_of_record, distributions()))
    return sha256_hex(canonical_json(found)) if found and all(found) else ""


def _digest_of_record(package: Distribution) -> str:
    """Empty where other code may run under the same RECORD, or none is there: a package that is edited where it lies."""
    try:
        record, origin = package.read_text("RECORD"), json.loads(package.read_text("direct_url.json") or "{}")
        is_editable = bool(origin.get("dir_info", {}).get("editable")) and package.name != _THIS_PROJECT
    except (ValueError, AttributeError, OSError):  # it is damaged: what it is cannot be known
        return ""
    return sha256_hex(record.encode()) if record and not is_editable else ""


@functools.cache
def _digest_of_system() -> str:
    try:
        lists = {name: sha256_hex(Path(name).read_bytes()) for name in _LISTS_OF_SYSTEM if Path(name).is_file()}
    except OSError:
        return ""
    return sha256_hex(canonical_json(lists)) if lists else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeComparison:
    """Whether this attempt runs the code that made a result.

    Attributes:
        changed: what differs, for the log; empty when nothing does.
        unknown: what cannot be compared, because one of the two does not say it.
    """

    changed: str
    unknown: str

    @property
    def is_same(self) -> bool:
        """Whether all is known, and equal."""
        return not self.changed and not self.unknown


def compare_code(pod: Pod, recorded: Mapping[str, Any]) -> CodeComparison:
    """Compare what runs here with the `lineage` of a COMMIT.

    An image that is named by its digest is the same to the last library; under a tag it may be another one every night.
    """
    facts = {
        "image": pod.image,
        "revision": _revision(pod),
        "version": __version__,
        "python": platform.python_version(),
    }
    ours, theirs = describe_software(), recorded.get("software", {})
    asked = [name for name in ours if name != "system" or "@sha256:" not in pod.image]
    unknown = [name for name in asked if not ours[name] or not theirs.get(name)]
    changed = [
        f"{name} was {recorded.get(name, '')!r}, is {now!r}"
        for name, now in facts.items()
        if recorded.get(name, "") != now
    ]
    changed += [f"other {name}" for name in asked if name not in unknown and ours[name] != theirs[name]]
    return CodeComparison(changed="; ".join(changed), unknown=", ".join(unknown))


def _revision(pod: Pod) -> str:
    return pod.revision or checked_out_revision(_source_folder())


def bits_depend_on(lineage: Lineage) -> dict[str, Any]:
    """The part of attempt.json that decides the bits of a step: attempts that agree in it make equal bits (docs/adr/0004)."""
    depends: dict[str, Any] = {
        "machine": lineage.machine,
        "instruction_sets": list(lineage.instruction_sets),
        "onednn_max_cpu_isa": lineage.onednn_max_cpu_isa,
        "devices": list(lineage.devices),
    }
    depends |= {name: lineage.packages[name] for name in _PACKAGES_OF_BITS if name in lineage.packages}
    if lineage.compile == "xla" and not any(name.startswith("avx512") for name in lineage.instruction_sets):
        depends["intra_op_threads"] = lineage.threads["intra_op"]
    environment = {name: value for name, value in lineage.environment.items() if ambient.decides_bits(name)}
    environment.pop("ONEDNN_MAX_CPU_ISA", None)  # above, as records of older versions have it
    return depends | ({"environment": environment} if environment else {})


def _source_folder() -> Path:
    """The folder that holds the package `job`, wherever this module lies in it."""
    return Path(str(importlib.resources.files("job"))).parent


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
