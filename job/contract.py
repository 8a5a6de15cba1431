"""What the outside world relies on: exit codes, store keys and environment names. Standard library only.

Owns the names that users, the chart, dashboards and tests may depend on. A change here is a breaking change.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

ENV_PREFIX = "MNIST_"

# A DNS-1123 subdomain: what Kubernetes accepts as an object name, and safe as one segment of a store key.
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
RUN_ID_PATTERN = rf"^{_LABEL}(\.{_LABEL})*$"
RUN_ID_MAX_CHARACTERS = 253

TERMINATION_MESSAGE_MAX_BYTES = 4096
"""The kubelet cuts a termination message at this length."""


class ExitCode(enum.IntEnum):
    """Exit codes of `mnist-job`; the chart's podFailurePolicy is written against them."""

    OK = 0
    UNKNOWN = 1
    CONFIG = 64
    INTEGRITY = 65
    NOT_FOUND = 66
    UNAVAILABLE = 69
    TRAINING_FAILED = 70
    CONFLICT = 73
    STALLED = 74
    INTERRUPTED = 75
    PEER_LOST = 76
    ACCESS_DENIED = 77
    GATE_REFUSED = 78


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """Facts about the pod that the chart passes in; all empty outside a cluster."""

    uid: str = ""
    name: str = ""
    namespace: str = ""
    job_name: str = ""
    release: str = ""
    image: str = ""
    chart_version: str = ""
    revision: str = ""
    """Of the source that the image was built from."""


def pod_from_environment(environ: Mapping[str, str]) -> Pod:
    """Read the pod's facts; their names carry no `MNIST_` prefix, so that they are never taken for config."""
    return Pod(
        uid=environ.get("POD_UID", ""),
        name=environ.get("POD_NAME", ""),
        namespace=environ.get("POD_NAMESPACE", ""),
        job_name=environ.get("JOB_NAME", ""),
        release=environ.get("RELEASE", ""),
        image=environ.get("IMAGE", ""),
        chart_version=environ.get("CHART_VERSION", ""),
        revision=environ.get("REVISION", ""),
    )


def is_run_id(text: str) -> bool:
    """Whether `text` may name a run."""
    return len(text) <= RUN_ID_MAX_CHARACTERS and re.fullmatch(RUN_ID_PATTERN, text) is not None


RUNS_PREFIX = "runs/"
CHECKS_PREFIX = "checks/"
"""Where `store check` tries the store out."""


def run_prefix(run_id: str) -> str:
    """Where everything of a run lies."""
    return f"{RUNS_PREFIX}{run_id}/"


def run_key(run_id: str) -> str:
    """What decides the run's result: create-only."""
    return f"{run_prefix(run_id)}run.json"


def commit_key(run_id: str) -> str:
    """The one object whose existence means that the run has a result: create-only."""
    return f"{run_prefix(run_id)}COMMIT.json"


def attempts_prefix(run_id: str) -> str:
    """Where all attempts of a run lie, one folder each."""
    return f"{run_prefix(run_id)}attempts/"


def attempt_prefix(run_id: str, *, attempt_id: str) -> str:
    """Where one attempt writes its objects, each of them once."""
    return f"{attempts_prefix(run_id)}{attempt_id}/"


def log_prefix(run_id: str) -> str:
    """Where the log segments of all attempts lie, create-only, and `metrics.prom` beside them: outside COMMIT."""
    return f"{run_prefix(run_id)}logs/"


LOG_SUFFIX = ".jsonl"
"""Of a log segment."""


def checkpoint_prefix(run_id: str) -> str:
    """Where a run's checkpoints lie, named by step and content."""
    return f"{run_prefix(run_id)}checkpoints/"


def gate_key(run_id: str) -> str:
    """What the gate decided about a committed run: create-only."""
    return f"{run_prefix(run_id)}gate.json"


def claims_prefix(run_id: str) -> str:
    """Which champion versions were tried for this run, each written before its version."""
    return f"{run_prefix(run_id)}claims/"


def claim_key(run_id: str, *, model: str, version: int) -> str:
    """Says that this run may be about to become that version: create-only."""
    return f"{claims_prefix(run_id)}{model}.{version:09d}"


def retirements_prefix(run_id: str) -> str:
    """Marks of whoever is about to remove a run, or has removed it: none may become champion any more."""
    return f"{run_prefix(run_id)}retirements/"


MODELS_PREFIX = "models/"


def champions_prefix(model: str) -> str:
    """Where a model's champion versions lie; the highest number is the champion."""
    return f"{MODELS_PREFIX}{model}/champion/"


def champion_key(model: str, *, version: int) -> str:
    """One move of the champion: create-only."""
    return f"{champions_prefix(model)}{version:09d}.json"


def versions_prefix(model: str) -> str:
    """TensorFlow Serving's layout: one folder a version."""
    return f"{MODELS_PREFIX}{model}/versions/"


def version_prefix(model: str, *, version: int) -> str:
    """The SavedModel of one champion version."""
    return f"{versions_prefix(model)}{version}/"
