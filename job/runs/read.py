"""Reads a COMMIT as a `CommittedRun`, and the objects that it names: each is checked by size and SHA-256.

The one place where a stored COMMIT becomes values. Never imports TensorFlow.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.contract import ATTEMPT_FILES, attempt_of_key, attempt_prefix, attempts_prefix, commit_key, run_key, run_prefix
from job.digests import sha256_hex
from job.errors import ConflictError, IntegrityError
from job.runs.identity import compile_of
from job.store.store import Store

ATTEMPT_FILE, METRICS_FILE, PREDICTIONS_FILE = ATTEMPT_FILES
MODEL_FOLDER = "model/"
_COMMIT_KEYS = {"run", "attempt", "result_digest", "weights_digest", "dataset", "metrics", "files"}
_CLOSED_KEYS = {"run", "abandoned"}
_LONG_AGO = "1970-01-01T00:00:00.000+00:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One object of a commit, with what proves its content."""

    key: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetIdentity:
    """Which examples a run has used.

    Attributes:
        digest: SHA-256 over both whole splits.
        evaluation_digest: of the test split as it was used; runs of old versions may not have it.
    """

    name: str
    digest: str | None
    evaluation_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedModel:
    """The part of a COMMIT that the registry's records repeat.

    Attributes:
        created: when the run's run.json was written, ISO 8601 in UTC.
        dataset: name of the data.
        evaluation_digest: of the test split that `accuracy` was measured on.
    """

    run: str
    created: str
    dataset: str
    evaluation_digest: str
    weights_digest: str
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedRun:
    """A run that has a result: its COMMIT.

    Attributes:
        files: the objects that it consists of, by their name below the attempt's folder.
        record: all that the COMMIT says, as it is stored.
    """

    run: str
    attempt: str
    result_digest: str
    weights_digest: str
    dataset: DatasetIdentity
    test_accuracy: float
    files: Mapping[str, StoredFile]
    record: Mapping[str, Any]

    def model(self, *, created: str) -> CommittedModel:
        """What the registry's records repeat."""
        return CommittedModel(
            run=self.run,
            created=created,
            dataset=self.dataset.name,
            evaluation_digest=str(self.dataset.evaluation_digest),
            weights_digest=self.weights_digest,
            accuracy=self.test_accuracy,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRun:
    """A run that can have no result any more.

    Attributes:
        closed: when it was closed, ISO 8601 in UTC.
        is_removed: retention removed it; else `gc` closed it.
    """

    run: str
    closed: str
    is_removed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a run's model predicted on its test split.

    Attributes:
        probabilities: float32 [N, C].
        labels: int64 [N].
        sample_images: uint8 or float32 [up to 64, ...], the first test images.
        class_names: C names, in label order; None where the file does not say them.
    """

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    sample_images: NDArray[Any]
    class_names: tuple[str, ...] | None = None


def read_commit(store: Store, run_id: str) -> CommittedRun | None:
    """The run's result, or None when it has none yet.

    Raises:
        IntegrityError: its COMMIT is there and cannot be read.
        ConflictError: the run was closed, and can have no result any more.
    """
    recorded = read_run(store, run_id)
    if isinstance(recorded, ClosedRun):
        raise _closed_error(recorded)
    return recorded


def read_run(store: Store, run_id: str) -> CommittedRun | ClosedRun | None:
    """What is recorded in the place of the run's COMMIT; None when nothing is.

    Raises:
        IntegrityError: it is there and is neither a COMMIT nor the record of a closed run.
    """
    data = store.get(commit_key(run_id))
    return parse_run(data, run_id) if data is not None else None


def parse_run(data: bytes, run_id: str) -> CommittedRun | ClosedRun:
    """A stored COMMIT, or the record that closes a run.

    Raises:
        IntegrityError: it is neither, or of another run.
    """
    record = parse_object(data, key=commit_key(run_id))
    is_closed = "abandoned" in record
    missing = (_CLOSED_KEYS if is_closed else _COMMIT_KEYS) - record.keys()
    if missing:
        raise _not_a_commit(run_id, f"it lacks {', '.join(sorted(missing))}")
    if record["run"] != run_id:
        raise _not_a_commit(run_id, f"it is of run {record['run']!r}")
    if is_closed:
        return ClosedRun(run=run_id, closed=str(record["abandoned"]), is_removed="by" in record)
    return _parse_commit(record, run_id)


def _parse_commit(record: Mapping[str, Any], run_id: str) -> CommittedRun:
    metrics, dataset, attempt = record["metrics"], record["dataset"], str(record["attempt"])
    if not isinstance(metrics, dict) or "test_accuracy" not in metrics:
        raise _not_a_commit(run_id, "it lacks metrics.test_accuracy")
    if not isinstance(dataset, dict) or not isinstance(dataset.get("name"), str):
        raise _not_a_commit(run_id, "it lacks dataset.name")
    try:
        test_accuracy = float(metrics["test_accuracy"])
    except (TypeError, ValueError) as error:
        raise _not_a_commit(run_id, f"metrics.test_accuracy is {metrics['test_accuracy']!r}") from error
    prefix = attempt_prefix(run_id, attempt_id=attempt)
    files = _parse_files(record)
    if not all(is_below(file.key, prefix) for file in files):
        raise _not_a_commit(run_id, f"its files are not those of its attempt {record['attempt']!r}")
    return CommittedRun(
        run=run_id,
        attempt=attempt,
        result_digest=str(record["result_digest"]),
        weights_digest=str(record["weights_digest"]),
        dataset=DatasetIdentity(
            name=dataset["name"],
            digest=dataset.get("digest"),
            evaluation_digest=dataset.get("evaluation_digest"),
        ),
        test_accuracy=test_accuracy,
        files={file.key.removeprefix(prefix): file for file in files},
        record=record,
    )


def more_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of a COMMIT's `metrics` that not every run has, by name: of `train.metrics` and of a compiled model."""
    more = {name.removeprefix("test_"): value for name, value in metrics.items() if name.startswith("test_")}
    return {name: value for name, value in more.items() if name not in ("loss", "accuracy", "examples")}


def _parse_files(record: Mapping[str, Any]) -> list[StoredFile]:
    entries, wanted = record["files"], {"key", "num_bytes", "sha256"}
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and entry.keys() == wanted for entry in entries
    ):
        raise IntegrityError(
            f"the COMMIT does not say which files it consists of: each must have {', '.join(sorted(wanted))}"
        )
    if not all(isinstance(entry["key"], str) for entry in entries):
        raise IntegrityError("the COMMIT names a file by something that is no key")
    return [StoredFile(**entry) for entry in entries]


def _not_a_commit(run_id: str, reason: str) -> IntegrityError:
    return IntegrityError(f"store: {commit_key(run_id)} is not the COMMIT of this run: {reason}")


def is_below(key: str, prefix: str) -> bool:
    """Whether a key lies in the folder `prefix`, and cannot leave it."""
    return key.startswith(prefix) and not {"", ".", ".."} & set(key.split("/"))


def check_same_result(recorded: CommittedRun | ClosedRun, *, result_digest: str) -> CommittedRun:
    """Return the recorded run when its result digest is that of this attempt.

    Raises:
        ConflictError: it has another result digest, or was closed.
    """
    if isinstance(recorded, ClosedRun):
        raise _closed_error(recorded)
    if recorded.result_digest != result_digest:
        raise ConflictError(
            f"run {recorded.run} is committed with another result digest ({recorded.result_digest[:16]}...); its "
            "result stands; choose another run.id or run.suffix"
        )
    return recorded


def _closed_error(closed: ClosedRun) -> ConflictError:
    what = "removed by retention" if closed.is_removed else "given up and removed by mnist-job gc"
    return ConflictError(
        f"run {closed.run} was {what} at {closed.closed}; choose another run.id, or another run.suffix where the id "
        "is generated"
    )


def list_attempts(store: Store, run_id: str) -> list[float]:
    """When each attempt of a run registered, in seconds since the epoch, oldest first."""
    entries = store.list_objects(attempts_prefix(run_id))
    return sorted(entry.modified_seconds for entry in entries if is_attempt_file(entry.key))


def is_attempt_file(key: str) -> bool:
    """Whether it is the key of an attempt.json."""
    parts = attempt_of_key(key)
    return parts is not None and parts[2] == ATTEMPT_FILE


def created_at(store: Store, run: CommittedRun) -> str:
    """When a committed run was first started, ISO 8601 in UTC, by the clock of its first attempt."""
    key = run_key(run.run)
    data = store.get(key)
    recorded = parse_object(data, key=key).get("created") if data is not None else None
    return str(recorded or run.record.get("committed") or _LONG_AGO)


def begun_seconds(store: Store, run_id: str) -> float | None:
    """When a run was first started, in seconds since the epoch, by the clock of the store; None when it is not there."""
    key = run_key(run_id)
    return next((entry.modified_seconds for entry in store.list_objects(run_prefix(run_id)) if entry.key == key), None)


def recorded_compile(store: Store, run_id: str, *, cpu_replicas: int) -> str | None:
    """How the standing run compiles its steps; None when it was not begun, or with another number of replicas.

    Raises:
        IntegrityError: its run.json cannot be read.
    """
    key = run_key(run_id)
    data = store.get(key)
    record = parse_object(data, key=key) if data is not None else {}
    config = record.get("config")
    cluster = config.get("cluster") if isinstance(config, dict) else None
    if isinstance(cluster, dict) and cluster.get("cpu_replicas", cpu_replicas) != cpu_replicas:
        return None  # records before ADR 11 do not say the replicas elsewhere: only the step's compilation tells them apart
    return compile_of(record)


def read_files(store: Store, run: CommittedRun) -> dict[str, bytes]:
    """Every object that a COMMIT names, verified: name below the attempt's folder -> content.

    Raises:
        IntegrityError: an object is missing, or has another size or hash.
    """
    return {name: _read(store, file) for name, file in run.files.items()}


def read_model(store: Store, run: CommittedRun) -> dict[str, bytes]:
    """The files of the SavedModel, verified: name below the model's folder -> content.

    Raises:
        IntegrityError: as from `read_files`.
    """
    return {name: _read(store, file) for name, file in _model_files(run).items()}


def model_digests(run: CommittedRun) -> dict[str, str]:
    """SHA-256 of the files of the SavedModel, as committed: name below the model's folder -> 64 hex characters."""
    return {name: file.sha256 for name, file in _model_files(run).items()}


def _model_files(run: CommittedRun) -> dict[str, StoredFile]:
    files = run.files.items()
    return {name.removeprefix(MODEL_FOLDER): file for name, file in files if name.startswith(MODEL_FOLDER)}


def read_predictions(store: Store, run: CommittedRun) -> Predictions:
    """The stored predictions, verified.

    Raises:
        IntegrityError: they are missing, altered, or not what such a file holds.
    """
    return parse_predictions(_read(store, _file(run, PREDICTIONS_FILE)))


def read_metrics(store: Store, run: CommittedRun) -> dict[str, Any]:
    """The stored metrics.json, verified.

    Raises:
        IntegrityError: it is missing, or altered.
    """
    file = _file(run, METRICS_FILE)
    return parse_object(_read(store, file), key=file.key)


def _file(run: CommittedRun, name: str) -> StoredFile:
    if name not in run.files:
        raise IntegrityError(f"the COMMIT of run {run.run} names no {name}")
    return run.files[name]


def _read(store: Store, file: StoredFile) -> bytes:
    data = store.get(file.key)
    if data is None:
        raise IntegrityError(f"store {store.uri}: {file.key} is named by the COMMIT and does not exist")
    if len(data) != file.num_bytes or sha256_hex(data) != file.sha256:
        raise IntegrityError(f"store {store.uri}: {file.key} is not the object that was committed (size or SHA-256)")
    return data


def parse_predictions(data: bytes) -> Predictions:
    """The arrays in a predictions file.

    Raises:
        IntegrityError: it is not one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        probabilities = arrays["probabilities"]
        return Predictions(
            probabilities=probabilities,
            labels=arrays["labels"],
            sample_images=arrays["sample_images"],
            class_names=_parse_class_names(data, num_classes=probabilities.shape[1]),
        )
    except (KeyError, SafetensorError) as error:
        raise IntegrityError(f"{PREDICTIONS_FILE} cannot be read: {error}") from error


def _parse_class_names(data: bytes, *, num_classes: int) -> tuple[str, ...] | None:
    """The names in the header of a predictions file, which safetensors' own `load` leaves out; None when it says none.

    The format: 8 bytes with the header's length, then the header as JSON (github.com/huggingface/safetensors).
    """
    length = int.from_bytes(data[:8], "little")
    meta = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("predictions")
    names = json.loads(meta).get("class_names") if meta else None
    if not isinstance(names, list) or len(names) != num_classes:
        return None
    return tuple(str(name) for name in names)


def parse_object(data: bytes, *, key: str) -> dict[str, Any]:
    """A stored JSON object.

    Raises:
        IntegrityError: it is not one.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"store: {key} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise IntegrityError(f"store: {key} must hold a JSON object, received {type(content).__name__}")
    return content


def unpack_model(files: Mapping[str, bytes], folder: Path) -> None:
    """Lay out a SavedModel in a local folder, to look at it; nothing is synced.

    Args:
        files: name below the model's folder -> content. `_parse_commit` has refused names that leave the folder.
    """
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
