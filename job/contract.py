"""What the outside world relies on: exit codes, store keys and environment names. Standard library only.

Owns the names that users, the chart, dashboards and tests may depend on. A change here is a breaking change.
"""

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from job.masking import masked

ENV_PREFIX = "MNIST_"

# A DNS-1123 subdomain: what Kubernetes accepts as an object name, and safe as one segment of a store key.
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
RUN_ID_PATTERN = rf"^{_LABEL}(\.{_LABEL})*$"
RUN_ID_MAX_CHARACTERS = 253
_MODEL = r"[a-z0-9](?:[-a-z0-9._]*[a-z0-9])?"

TERMINATION_MESSAGE_MAX_BYTES = 4096
"""The kubelet cuts a termination message at this length."""


class ExitCode(enum.IntEnum):
    """Exit codes of `mnist-job`: (number, the client's word, what it means, whether to start it again, what to do).

    docs/reference.md, the chart's podFailurePolicy and the client's explanations are made of this table.
    """

    word: str
    """One word, as in Kubernetes' own conditions."""
    meaning: str
    """What happened, for docs/reference.md."""
    again: str
    """Whether another start may end otherwise; after `no` the chart fails the Job."""
    action: str
    """What a person does about it, as the client says it."""

    def __new__(cls, code: int, word: str = "", meaning: str = "", again: str = "", action: str = "") -> "ExitCode":
        """A member whose value is its number."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.word, member.meaning, member.again, member.action = word, meaning, again, action
        return member

    OK = (
        0,
        "Completed",
        "committed and verified, promoted or not; or committed before with the same result digest, even if retention has "
        "removed the result since; or skipped because the champion came from the same inputs, image and code",
        "nothing to do",
        "",
    )
    UNKNOWN = (
        1,
        "UnknownError",
        "unknown error, with a traceback; or the last net of the stall watchdog",
        "may help",
        "read the log",
    )
    CONFIG = (
        64,
        "BadConfig",
        "bad config",
        "no",
        "submit again with a right setting, or helm upgrade",
    )
    INTEGRITY = (
        65,
        "IntegrityError",
        "data or a published object is not what its digest or format says",
        "no",
        "restore the data; when all checkpoints are bad, submit a new run",
    )
    NOT_FOUND = (
        66,
        "NotFound",
        "the other side answered that it does not exist: dataset, bucket, key; GPUs asked for and not visible",
        "no",
        "correct data.uri, store.uri or the GPU limit of the release, then resume",
    )
    UNAVAILABLE = (
        69,
        "Unavailable",
        "store or data source unreachable until the deadline; no space; the last checkpoint could not be saved in time; what a "
        "command was asked to print could not be written",
        "yes",
        "repair the store or the network, then resume",
    )
    TRAINING_FAILED = (
        70,
        "TrainingFailed",
        "the loss is not finite, or an assertion failed",
        "no",
        "submit again with another learning rate or model",
    )
    CONFLICT = (
        73,
        "Conflict",
        "the run exists with another result digest, or was given up (`gc`); a command needs the result of a run that retention "
        "has removed; the champion moved during a `rollback`; a folder of `fetch` has a higher number than the champion's",
        "no",
        "submit a new run: this id belongs to other settings",
    )
    STALLED = (
        74,
        "Stalled",
        "stalled: no step within `observe.stall_timeout_seconds`; stacks of all threads are in the log",
        "yes",
        "look for the stacks in the log; if it is only slow, raise observe.stall_timeout_seconds",
    )
    INTERRUPTED = (
        75,
        "Interrupted",
        "interrupted by SIGTERM, SIGINT or SIGHUP; where training stood is saved, and the same run id goes on from there",
        "yes",
        "nothing: a checkpoint is saved, and the next pod goes on from it",
    )
    PEER_LOST = (
        76,
        "PeerLost",
        "another worker was lost, came too late, or was silent for too long; all start again from the newest checkpoint",
        "yes",
        "nothing: it is tried again",
    )
    ACCESS_DENIED = (
        77,
        "AccessDenied",
        "access denied, or no credentials",
        "no",
        "correct the Secret or the identity of the release, then resume",
    )
    GATE_REFUSED = (
        78,
        "GateRefused",
        "committed, and refused by the gate: only with `promotion.refused_is_failure`, and from `mnist-job promote`",
        "no",
        "the model is not good enough to be promoted; see gate.json in the store",
    )


class Event(enum.StrEnum):
    """Log events of a run, in the order in which they come; the client reads some of them. Warnings have names of their own."""

    RUN_START = "run.start"
    DATA_READY = "data.ready"
    MODEL_BUILT = "model.built"
    TRAIN_START = "train.start"
    TRAIN_PROGRESS = "train.progress"
    EPOCH_END = "epoch.end"
    TRAIN_STOPPED_EARLY = "train.stopped_early"
    CHECKPOINT_SAVED = "checkpoint.saved"
    CHECKPOINT_RESTORED = "checkpoint.restored"
    RUN_INTERRUPTED = "run.interrupted"
    EVALUATE_END = "evaluate.end"
    EXPORT_END = "export.end"
    COMMIT_DONE = "commit.done"
    GATE_DECIDED = "gate.decided"
    RUN_END = "run.end"
    ERROR = "error"


class Field(enum.StrEnum):
    """Fields of log events and of the termination message that other programs read."""

    EVENT = "event"
    RUN = "run"
    ATTEMPT = "attempt"
    OUTCOME = "outcome"
    CODE = "code"
    REASON = "reason"
    STEP = "step"
    EPOCH = "epoch"
    ACCURACY = "accuracy"
    TEST_ACCURACY = "test_accuracy"
    VAL_ACCURACY = "val_accuracy"
    ETA_SECONDS = "eta_seconds"
    PROMOTED = "promoted"
    VERDICT = "verdict"
    COMMIT = "commit"
    SECONDS = "seconds"


TERMINATION_FIELDS = (
    *(Field.RUN, Field.ATTEMPT, Field.OUTCOME, Field.CODE, Field.REASON, Field.STEP, Field.EPOCH),
    *(Field.ACCURACY, Field.VERDICT, Field.PROMOTED, Field.COMMIT, Field.SECONDS),
)
"""Of the termination message, in this order."""


ORIGIN_VARIABLE = "RUN_ORIGIN"
ORIGIN_SCHEDULE, ORIGIN_MANUAL = "schedule", "manual"
"""Of a run: what its release starts itself, and what anybody starts beside that. Part of the group of a push."""


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
    origin: str = ORIGIN_MANUAL
    """Who started the run: the release itself (`schedule`), or a person or another program (`manual`)."""


def pod_from_environment(environ: Mapping[str, str]) -> Pod:
    """Read the pod's facts, without credentials, as they are recorded and are labels of metrics.

    Their names carry no `MNIST_` prefix, so that they are never taken for config.
    """
    return Pod(
        uid=masked(environ.get("POD_UID", "")),
        name=masked(environ.get("POD_NAME", "")),
        namespace=masked(environ.get("POD_NAMESPACE", "")),
        job_name=masked(environ.get("JOB_NAME", "")),
        release=masked(environ.get("RELEASE", "")),
        image=masked(environ.get("IMAGE", "")),
        chart_version=masked(environ.get("CHART_VERSION", "")),
        revision=masked(environ.get("REVISION", "")),
        origin=ORIGIN_SCHEDULE if environ.get(ORIGIN_VARIABLE) == ORIGIN_SCHEDULE else ORIGIN_MANUAL,
    )


def is_run_id(text: str) -> bool:
    """Whether `text` may name a run."""
    return len(text) <= RUN_ID_MAX_CHARACTERS and re.fullmatch(RUN_ID_PATTERN, text) is not None


def is_model_name(text: str) -> bool:
    """Whether `text` may name a model: `promotion.model_name`, or what is made of a dataset's name."""
    return re.fullmatch(_MODEL, text) is not None


# What people, consoles and file systems put beside the program's own objects (`runs/`, `.DS_Store`, `@eaDir/x`, `07`) is
# foreign: no parser below knows it. Each `_of_key` is the inverse of a maker of keys: it knows what that one makes, no more.

_NINE_DIGITS, _SIX_DIGITS = "([0-9]{9}|[1-9][0-9]{9,})", "([0-9]{6}|[1-9][0-9]{6,})"
_SIXTEEN_HEX = "[0-9a-f]{16}"
_MODEL_FILE = r"(?:saved_model|fingerprint|keras_metadata)\.pb|variables/variables\.[^/]+|assets/.+"
"""A file of a SavedModel, as TensorFlow lays it out."""

RUNS_PREFIX = "runs/"
CHECKS_PREFIX = "checks/"
"""Where `store check` tries the store out."""


def check_key(token: str) -> str:
    """What `store check` writes and deletes again; `token`: 16 hex digits."""
    return f"{CHECKS_PREFIX}{token}"


def is_check_key(key: str) -> bool:
    """Whether `store check` may have left this object."""
    return re.fullmatch(CHECKS_PREFIX + _SIXTEEN_HEX, key) is not None


def run_prefix(run_id: str) -> str:
    """Where everything of a run lies."""
    return f"{RUNS_PREFIX}{run_id}/"


def run_key(run_id: str) -> str:
    """What decides the run's result: create-only."""
    return f"{run_prefix(run_id)}run.json"


def commit_key(run_id: str) -> str:
    """COMMIT.json, create-only: the run has a result. The record of a closed run is under the same key."""
    return f"{run_prefix(run_id)}COMMIT.json"


ATTEMPT_FILES = ("attempt.json", "metrics.json", "predictions.safetensors")
"""In an attempt's folder, beside the model."""

SERIES_FILE, REPORT_FILE = "metrics.prom", "report.html"
"""Of an attempt, beside its log segments: all series at its end, and the page for people."""


def attempts_prefix(run_id: str) -> str:
    """Where all attempts of a run lie, one folder each."""
    return f"{run_prefix(run_id)}attempts/"


def attempt_prefix(run_id: str, *, attempt_id: str) -> str:
    """Where one attempt writes its objects, each of them once."""
    return f"{attempts_prefix(run_id)}{attempt_id}/"


def attempt_of_key(key: str) -> tuple[str, str, str] | None:
    """(run, attempt, name of the file in the attempt's folder) of one of the files that an attempt writes."""
    found = _parts_of(rf"attempts/([^/]+)/({_any_of(ATTEMPT_FILES)}|model/(?:{_MODEL_FILE}))", key)
    return (found[0], found[1], found[2]) if found and is_run_id(found[1]) else None


def log_prefix(run_id: str) -> str:
    """Where the log segments of all attempts lie, create-only, and `metrics.prom` beside them: outside COMMIT."""
    return f"{run_prefix(run_id)}logs/"


def log_key(run_id: str, *, attempt_id: str, number: int) -> str:
    """One log segment of an attempt; they are numbered from 0."""
    return f"{log_prefix(run_id)}{attempt_id}/{number:06d}.jsonl"


def event_file_key(run_id: str, *, attempt_id: str, number: int) -> str:
    """One file of TensorBoard's events, create-only; they are numbered from 0. TensorBoard looks for `tfevents` in the name."""
    return f"{log_prefix(run_id)}{attempt_id}/events.out.tfevents.{number:06d}"


def event_file_of_key(key: str) -> tuple[str, str, int] | None:
    """(run, attempt, number) of a file of TensorBoard's events."""
    found = _parts_of(rf"logs/([^/]+)/events\.out\.tfevents\.{_SIX_DIGITS}", key)
    return (found[0], found[1], int(found[2])) if found and is_run_id(found[1]) else None


def beside_log_of_key(key: str) -> tuple[str, str, str] | None:
    """(run, attempt, name) of a file beside a log: the report, or all series of an attempt at its end."""
    found = _parts_of(rf"logs/([^/]+)/({_any_of((SERIES_FILE, REPORT_FILE))})", key)
    return (found[0], found[1], found[2]) if found and is_run_id(found[1]) else None


def log_of_key(key: str) -> tuple[str, str, int] | None:
    """(run, attempt, number) of a log segment."""
    found = _parts_of(rf"logs/([^/]+)/{_SIX_DIGITS}\.jsonl", key)
    return (found[0], found[1], int(found[2])) if found and is_run_id(found[1]) else None


def checkpoint_prefix(run_id: str) -> str:
    """Where a run's checkpoints lie, named by step and content."""
    return f"{run_prefix(run_id)}checkpoints/"


def checkpoint_key(run_id: str, *, step: int, content_hash: str) -> str:
    """One checkpoint; `content_hash`: the first 16 hex digits of its SHA-256."""
    return f"{checkpoint_prefix(run_id)}{step:09d}-{content_hash}.safetensors"


def checkpoint_of_key(key: str) -> tuple[str, int, str] | None:
    """(run, step, content hash) of a checkpoint."""
    found = _parts_of(rf"checkpoints/{_NINE_DIGITS}-({_SIXTEEN_HEX})\.safetensors", key)
    return (found[0], int(found[1]), found[2]) if found else None


def gate_key(run_id: str) -> str:
    """What the gate decided about a committed run; the attempt that moved the champion may correct it."""
    return f"{run_prefix(run_id)}gate.json"


def claims_prefix(run_id: str) -> str:
    """Which champion versions were tried for this run, each written before its version."""
    return f"{run_prefix(run_id)}claims/"


def claim_key(run_id: str, *, model: str, version: int) -> str:
    """Says that this run may be about to become that version: create-only."""
    return f"{claims_prefix(run_id)}{model}.{version:09d}"


def claim_of_key(key: str) -> tuple[str, str, int] | None:
    """(run, model, version) of a claim."""
    found = _parts_of(rf"claims/({_MODEL})\.{_NINE_DIGITS}", key)
    return (found[0], found[1], int(found[2])) if found and int(found[2]) else None


def retirements_prefix(run_id: str) -> str:
    """Marks of retention, which is about to remove the run or has removed it: it may not become champion any more."""
    return f"{run_prefix(run_id)}retirements/"


def retirement_key(run_id: str, *, token: str) -> str:
    """One mark of retention; `token`: 16 hex digits."""
    return f"{retirements_prefix(run_id)}{token}"


def retirement_of_key(key: str) -> tuple[str, ...] | None:
    """(run,) of a mark of retention."""
    return _parts_of(f"retirements/{_SIXTEEN_HEX}", key)


def _record_of_key(key: str) -> tuple[str, ...] | None:
    """(run,) of run.json, COMMIT.json and gate.json."""
    return _parts_of(r"(?:run|COMMIT|gate)\.json", key)


def run_of_key(key: str) -> str | None:
    """The run that an object of this program belongs to; None for a foreign object."""
    of_logs = (log_of_key, event_file_of_key, beside_log_of_key)
    parsers = (_record_of_key, attempt_of_key, *of_logs, checkpoint_of_key, claim_of_key, retirement_of_key)
    return next((str(parts[0]) for parse in parsers if (parts := parse(key))), None)


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in names)


def _parts_of(pattern: str, key: str) -> tuple[str, ...] | None:
    """The run, and the groups of `pattern`, which describes the rest of a key of a run."""
    match = re.fullmatch(f"{RUNS_PREFIX}([^/]+)/(?:{pattern})", key)
    return match.groups() if match and is_run_id(match[1]) else None


MODELS_PREFIX = "models/"


def champions_prefix(model: str) -> str:
    """Where a model's champion versions lie; the highest number is the champion."""
    return f"{MODELS_PREFIX}{model}/champion/"


def champion_key(model: str, *, version: int) -> str:
    """One move of the champion: create-only."""
    return f"{champions_prefix(model)}{version:09d}.json"


def champion_of_key(key: str) -> tuple[str, int] | None:
    """(model, version) of a move."""
    match = re.fullmatch(rf"{MODELS_PREFIX}({_MODEL})/champion/{_NINE_DIGITS}\.json", key)
    return (match[1], int(match[2])) if match and int(match[2]) else None


def index_key(model: str) -> str:
    """The page for people about all runs of a model: derived, written again after each run, read by nothing."""
    return f"{MODELS_PREFIX}{model}/index.html"


def versions_prefix(model: str) -> str:
    """TensorFlow Serving's layout: one folder a version."""
    return f"{MODELS_PREFIX}{model}/versions/"


def version_prefix(model: str, *, version: int) -> str:
    """The SavedModel of one champion version."""
    return f"{versions_prefix(model)}{version}/"


def version_of_folder(name: str) -> int | None:
    """The champion version that a folder of this name holds; None for any name but `str(version)`, such as `07` or `+7`."""
    return int(name) if re.fullmatch("[1-9][0-9]*", name) else None


def version_of_key(key: str) -> tuple[str, int, str] | None:
    """(model, version, name of the file in the version's folder) of a file of a serving layout."""
    match = re.fullmatch(rf"{MODELS_PREFIX}({_MODEL})/versions/([1-9][0-9]*)/({_MODEL_FILE})", key)
    return (match[1], int(match[2]), match[3]) if match else None
