"""Reads a COMMIT as a `CommittedRun`, and the objects that it names: each is checked by size and SHA-256.

The one place where a stored COMMIT becomes values. Never imports TensorFlow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import records
from job.contract import ATTEMPT_FILES, attempt_of_key, attempt_prefix, attempts_prefix, commit_key, run_key, run_prefix
from job.digests import sha256_hex
from job.errors import ConflictError, IntegrityError, RetiredError
from job.runs import shapes
from job.runs.identity import compile_of
from job.store.store import Store

ATTEMPT_FILE, METRICS_FILE, PREDICTIONS_FILE = ATTEMPT_FILES
MODEL_FOLDER = "model/"
_MAX_PREDICTIONS_BYTES = 2**31
_MAX_SAMPLES = 64
MISTAKE_POSITIONS, MISTAKE_PICTURES = "mistake_positions", "mistake_pictures"
"""Arrays of the predictions file for people alone: runs of older versions, and of data that is no picture, have none."""
MOST_PICTURES, PICTURE_SIDE = 20, 56
"""So many pictures of so many pixels a side, in colour and of noise, take 250 kB of a report."""
_MAX_NAME_CHARACTERS = 1000
"""Of a class; datasets let fewer through."""
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
        is_removed: it was committed, and retention removed it; else `gc` closed it, and it never had a result.
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
        RetiredError: it had a result, which retention removed.
        ConflictError: `gc` closed the run, and it can have no result any more.
    """
    recorded = read_run(store, run_id)
    if isinstance(recorded, ClosedRun):
        raise _closed_error(recorded)
    return recorded


def is_over(store: Store, run_id: str) -> bool:
    """Whether nothing is left to train: the run has a result, or had one that retention removed.

    Raises:
        IntegrityError, ConflictError: as from `read_commit`.
    """
    try:
        return read_commit(store, run_id) is not None
    except RetiredError:
        return True


def read_run(store: Store, run_id: str) -> CommittedRun | ClosedRun | None:
    """What is recorded in the place of the run's COMMIT; None when nothing is.

    Raises:
        IntegrityError: it is there and is neither a COMMIT nor the record of a closed run.
    """
    data = get_record(store, commit_key(run_id))
    return parse_run(data, run_id) if data is not None else None


def parse_run(data: bytes, run_id: str) -> CommittedRun | ClosedRun:
    """A stored COMMIT, or the record that closes a run.

    Raises:
        IntegrityError: it is neither, or of another run.
    """
    key = commit_key(run_id)
    record, what = parse_object(data, key=key), f"store: {key} is not the COMMIT of this run"
    if record.get("run", run_id) != run_id:
        raise IntegrityError(f"{what}: it is of run {records.show(record['run'])}")
    if "abandoned" in record:
        closed = shapes.to_shape(shapes.Closed, record, name=what)
        return ClosedRun(run=run_id, closed=closed.abandoned, is_removed="by" in record)
    return _to_run(shapes.to_shape(shapes.Commit, record, name=what), record, what=what)


def _to_run(commit: shapes.Commit, record: Mapping[str, Any], *, what: str) -> CommittedRun:
    prefix = attempt_prefix(commit.run, attempt_id=commit.attempt)
    files = [StoredFile(key=file.key, num_bytes=file.num_bytes, sha256=file.sha256) for file in commit.files]
    if not all(is_below(file.key, prefix) for file in files):
        raise IntegrityError(f"{what}: its files are not those of its attempt {commit.attempt!r}")
    _check_places([file.key for file in files], what=what)
    return CommittedRun(
        run=commit.run,
        attempt=commit.attempt,
        result_digest=commit.result_digest,
        weights_digest=commit.weights_digest,
        dataset=DatasetIdentity(**commit.dataset.model_dump()),
        test_accuracy=float(commit.metrics.test_accuracy),
        files={file.key.removeprefix(prefix): file for file in files},
        record=record,
    )


def _check_places(keys: Sequence[str], *, what: str) -> None:
    """Raises:
    IntegrityError: two files have one key, or one is a folder of the other.
    """
    known = set(keys)
    inside = next((key for key in keys if any(str(outer) in known for outer in PurePosixPath(key).parents)), None)
    if inside or len(known) != len(keys):
        example = f", such as {records.show(inside)}" if inside else ""
        raise IntegrityError(f"{what}: it names two files in one place{example}")


def more_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of a COMMIT's `metrics` that not every run has, by name: of `train.metrics` and of a compiled model."""
    more = {name.removeprefix("test_"): value for name, value in metrics.items() if name.startswith("test_")}
    return {name: value for name, value in more.items() if name not in ("loss", "accuracy", "examples")}


def wall_seconds_of(record: Mapping[str, Any]) -> float | None:
    """Wall time of all attempts. Older versions took it from the calendar: a step back made it negative."""
    seconds = record.get("goodput", {}).get("wall_seconds")
    return max(0.0, seconds) if isinstance(seconds, int | float) else None


def start_seconds(record: Mapping[str, Any], *, recorded: float, committed: float) -> float:
    """When its first record was written, or as long before its COMMIT as its attempts and its pauses took: what is earlier.

    A store that was copied has younger files than its records say.
    """
    goodput = record.get("goodput", {})
    took_seconds = (goodput.get("wall_seconds") or 0.0) + (goodput.get("down_seconds") or 0.0)
    return min(recorded, committed - max(0.0, took_seconds))


def is_below(key: str, prefix: str) -> bool:
    """Whether a key lies in the folder `prefix`, and cannot leave it."""
    return key.startswith(prefix) and not {"", ".", ".."} & set(key.split("/"))


def check_same_result(recorded: CommittedRun | ClosedRun, *, result_digest: str) -> CommittedRun:
    """Return the recorded run when its result digest is that of this attempt.

    Raises:
        RetiredError, ConflictError: it was closed.
        ConflictError: it has another result digest.
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
    what = "committed, and removed by retention" if closed.is_removed else "given up and removed by mnist-job gc"
    kind = RetiredError if closed.is_removed else ConflictError
    return kind(
        f"run {closed.run} was {what} at {closed.closed}; to train again choose another run.id, or another run.suffix where "
        "the id is generated"
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
    """When a committed run was first started, ISO 8601 in UTC, by the clock of its first attempt.

    Raises:
        IntegrityError: its run.json cannot be read.
    """
    recorded = read_begun(store, run.run).get("created")
    return str(recorded or run.record.get("committed") or _LONG_AGO)


def read_begun(store: Store, run_id: str) -> dict[str, Any]:
    """The run.json of a run; empty when it was not begun.

    Raises:
        IntegrityError: it cannot be read.
    """
    data = get_record(store, run_key(run_id))
    return parse_begun(data, run_id) if data is not None else {}


def parse_begun(data: bytes, run_id: str) -> dict[str, Any]:
    """A stored run.json.

    Raises:
        IntegrityError: it is none.
    """
    key = run_key(run_id)
    record = parse_object(data, key=key)
    shapes.to_shape(shapes.Run, record, name=f"store: {key} does not say what decides this run")
    return record


def begun_seconds(store: Store, run_id: str) -> float | None:
    """When a run was first started, in seconds since the epoch, by the clock of the store; None when it is not there."""
    key = run_key(run_id)
    return next((entry.modified_seconds for entry in store.list_objects(run_prefix(run_id)) if entry.key == key), None)


def recorded_compile(store: Store, run_id: str, *, cpu_replicas: int) -> str | None:
    """How the standing run compiles its steps; None when it was not begun, or with another number of replicas.

    Raises:
        IntegrityError: its run.json cannot be read.
    """
    record = read_begun(store, run_id)
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
    return parse_predictions(_read(store, predictions_file(run)))


def predictions_file(run: CommittedRun) -> StoredFile:
    """The object that holds the predictions, which is yet to be read.

    Raises:
        IntegrityError: the COMMIT names none, or one that is too long to be read.
    """
    file = _file(run, PREDICTIONS_FILE)
    records.check_size(file.num_bytes, name=f"store: {file.key}", max_bytes=_MAX_PREDICTIONS_BYTES)
    return file


def read_metrics(store: Store, run: CommittedRun) -> dict[str, Any]:
    """The stored metrics.json, verified.

    Raises:
        IntegrityError: it is missing, altered, or not what such a file holds.
    """
    file = _file(run, METRICS_FILE)
    name = f"store: {file.key}"
    records.check_size(file.num_bytes, name=name, max_bytes=records.MAX_HISTORY_BYTES)
    metrics = records.parse_object(_read(store, file), name=name, max_bytes=records.MAX_HISTORY_BYTES)
    shapes.to_shape(shapes.MetricsFile, metrics, name=f"{name} does not hold the metrics of a run")
    return metrics


def _file(run: CommittedRun, name: str) -> StoredFile:
    if name not in run.files:
        raise IntegrityError(f"the COMMIT of run {run.run} names no {name}")
    return run.files[name]


def _read(store: Store, file: StoredFile) -> bytes:
    altered = f"store {store.uri}: {file.key} is not the object that was committed (size or SHA-256)"
    try:
        data = store.get(file.key, max_bytes=file.num_bytes)
    except IntegrityError as error:
        raise IntegrityError(altered) from error
    if data is None:
        raise IntegrityError(f"store {store.uri}: {file.key} is named by the COMMIT and does not exist")
    if len(data) != file.num_bytes or sha256_hex(data) != file.sha256:
        raise IntegrityError(altered)
    return data


def parse_predictions(data: bytes) -> Predictions:
    """The arrays in a predictions file.

    Raises:
        IntegrityError: it is not one.
    """
    try:
        arrays = records.parse_arrays(data, name=PREDICTIONS_FILE)
        said = records.parse_beside_arrays(data, key="predictions", name=PREDICTIONS_FILE)
        parsed = Predictions(
            **{name: arrays[name] for name in ("probabilities", "labels", "sample_images")},
            class_names=_parse_class_names(said),
        )
        _check_predictions(parsed)
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{PREDICTIONS_FILE} cannot be read: {error}") from error
    return parsed


def read_mistakes(store: Store, run: CommittedRun) -> dict[int, NDArray[np.uint8]]:
    """Pictures of the most confident mistakes, uint8 [h, w] or [h, w, 3], by their positions in the test split.

    Raises:
        IntegrityError: the predictions file is missing or altered, or holds something else in their place.
    """
    arrays = records.parse_arrays(_read(store, predictions_file(run)), name=PREDICTIONS_FILE)
    positions, pictures = arrays.get(MISTAKE_POSITIONS), arrays.get(MISTAKE_PICTURES)
    if positions is None and pictures is None:
        return {}
    if positions is None or pictures is None or not _are_pictures(positions, pictures):
        what = [f"{_describe(array)}" if array is not None else "nothing" for array in (positions, pictures)]
        raise IntegrityError(
            f"{PREDICTIONS_FILE}: {MISTAKE_POSITIONS} and {MISTAKE_PICTURES} must be int64 [n] and uint8 [n, h, w] or "
            f"[n, h, w, 3] with n up to {MOST_PICTURES}, h and w up to {PICTURE_SIDE}, received {' and '.join(what)}"
        )
    return dict(zip(positions.tolist(), pictures, strict=True))


def _are_pictures(positions: NDArray[Any], pictures: NDArray[Any]) -> bool:
    return (
        positions.dtype == np.int64
        and positions.ndim == 1
        and pictures.dtype == np.uint8
        and (pictures.ndim == 3 or (pictures.ndim == 4 and pictures.shape[3] == 3))
        and len(positions) == len(pictures) <= MOST_PICTURES
        and all(0 < side <= PICTURE_SIDE for side in pictures.shape[1:3])
    )


def _check_predictions(parsed: Predictions) -> None:
    """Raises:
    ValueError: the arrays are not those of one model on one test split.
    """
    probabilities, labels, samples = parsed.probabilities, parsed.labels, parsed.sample_images
    if probabilities.dtype != np.float32 or probabilities.ndim != 2 or not probabilities.size:
        raise ValueError(f"probabilities must be float32 [N, C], received {_describe(probabilities)}")
    if labels.dtype != np.int64 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"labels must be int64 [{len(probabilities)}], received {_describe(labels)}")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(f"labels must be 0 to {probabilities.shape[1] - 1}, received {labels.min()} to {labels.max()}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    if samples.dtype not in (np.uint8, np.float32) or not samples.ndim or len(samples) > _MAX_SAMPLES:
        raise ValueError(
            f"sample_images must be uint8 or float32 [up to {_MAX_SAMPLES}, ...], received {_describe(samples)}"
        )
    if not samples.size:
        raise ValueError(f"sample_images must hold an image, received {_describe(samples)}")
    if len(samples) > len(labels):
        raise ValueError(f"sample_images must be of the {len(labels)} test images, received {len(samples)}")
    if parsed.class_names is not None and len(parsed.class_names) != probabilities.shape[1]:
        raise ValueError(f"class_names must be {probabilities.shape[1]}, received {len(parsed.class_names)}")


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _parse_class_names(said: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    names = said.get("class_names") if said is not None else None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a list of texts, received {records.show(names)}")
    longest = max(map(len, names), default=0)
    if longest > _MAX_NAME_CHARACTERS:
        raise ValueError(f"class_names must have {_MAX_NAME_CHARACTERS} characters at most, received one of {longest}")
    return tuple(names)


def get_record(store: Store, key: str) -> bytes | None:
    """A stored record; None when absent.

    Raises:
        IntegrityError: it is longer than a record can be; it was not read.
    """
    return store.get(key, max_bytes=records.MAX_BYTES)


def parse_object(data: bytes, *, key: str) -> dict[str, Any]:
    """A stored JSON object.

    Raises:
        IntegrityError: it is not one, or is beyond what a record may hold (`records.parse_object`).
    """
    return records.parse_object(data, name=f"store: {key}")


def unpack_model(files: Mapping[str, bytes], folder: Path) -> None:
    """Lay out a SavedModel in a local folder, to look at it; nothing is synced.

    Args:
        files: name below the model's folder -> content. `_parse_commit` has refused names that leave the folder.
    """
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
