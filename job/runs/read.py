"""Reading what was published: every object through the COMMIT that names it, verified by size and SHA-256."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.contract import attempt_prefix, run_key
from job.errors import IntegrityError
from job.runs.identity import sha256_hex
from job.runs.write import StoredFile, is_below, parse_object, stored_files
from job.store.store import Store

MODEL_FOLDER, PREDICTIONS_FILE, METRICS_FILE = "model/", "predictions.safetensors", "metrics.json"
_LONG_AGO = "1970-01-01T00:00:00.000+00:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a run's model predicted on its test split.

    Attributes:
        probabilities: float32 [N, C].
        labels: int64 [N].
        sample_images: uint8 [up to 64, ...], the first test images.
    """

    probabilities: NDArray[np.float32]
    labels: NDArray[np.int64]
    sample_images: NDArray[np.uint8]


def created_at(store: Store, commit_record: Mapping[str, Any]) -> str:
    """When a committed run was first started, ISO 8601 in UTC, by the clock of its first attempt."""
    key = run_key(str(commit_record["run"]))
    data = store.get(key)
    recorded = parse_object(data, key=key).get("created") if data is not None else None
    return str(recorded or commit_record.get("committed") or _LONG_AGO)


def read_files(store: Store, commit_record: Mapping[str, Any]) -> dict[str, bytes]:
    """Every object that a COMMIT names, verified: name below the attempt's folder -> content.

    Raises:
        IntegrityError: an object is missing, or has another size or hash.
    """
    return {name: _read(store, file) for name, file in _by_name(store, commit_record).items()}


def read_model(store: Store, commit_record: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of the SavedModel, verified: name below the model's folder -> content.

    Raises:
        IntegrityError: as in `read_files`; a name leaves the folder.
    """
    files = _by_name(store, commit_record)
    return {
        name.removeprefix(MODEL_FOLDER): _read(store, file)
        for name, file in files.items()
        if name.startswith(MODEL_FOLDER)
    }


def read_predictions(store: Store, commit_record: Mapping[str, Any]) -> Predictions:
    """The stored predictions, verified.

    Raises:
        IntegrityError: they are missing, altered, or not what such a file holds.
    """
    file = _by_name(store, commit_record).get(PREDICTIONS_FILE)
    if file is None:
        raise IntegrityError(f"the COMMIT of run {commit_record['run']} names no {PREDICTIONS_FILE}")
    return parse_predictions(_read(store, file))


def read_metrics(store: Store, commit_record: Mapping[str, Any]) -> dict[str, Any]:
    """The stored metrics.json, verified.

    Raises:
        IntegrityError: it is missing, or altered.
    """
    file = _by_name(store, commit_record).get(METRICS_FILE)
    if file is None:
        raise IntegrityError(f"the COMMIT of run {commit_record['run']} names no {METRICS_FILE}")
    return parse_object(_read(store, file), key=file.key)


def parse_predictions(data: bytes) -> Predictions:
    """The arrays in a predictions file.

    Raises:
        IntegrityError: it is not one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        return Predictions(
            probabilities=arrays["probabilities"], labels=arrays["labels"], sample_images=arrays["sample_images"]
        )
    except (KeyError, SafetensorError) as error:
        raise IntegrityError(f"{PREDICTIONS_FILE} cannot be read: {error}") from error


def _by_name(store: Store, commit_record: Mapping[str, Any]) -> dict[str, StoredFile]:
    prefix = attempt_prefix(str(commit_record["run"]), attempt_id=str(commit_record["attempt"]))
    files = {}
    for file in stored_files(commit_record):
        if not is_below(file.key, prefix):
            raise IntegrityError(f"store {store.uri}: the COMMIT names {file.key}, outside {prefix}")
        files[file.key.removeprefix(prefix)] = file
    return files


def _read(store: Store, file: StoredFile) -> bytes:
    data = store.get(file.key)
    if data is None:
        raise IntegrityError(f"store {store.uri}: {file.key} is named by the COMMIT and does not exist")
    if len(data) != file.num_bytes or sha256_hex(data) != file.sha256:
        raise IntegrityError(f"store {store.uri}: {file.key} is not the object that was committed (size or SHA-256)")
    return data
