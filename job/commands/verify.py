"""Proof that a committed run is whole: hashes, weights, and predictions of the loaded SavedModel."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from job.errors import IntegrityError
from job.runs.read import MODEL_FOLDER, PREDICTIONS_FILE, parse_predictions, read_files
from job.store.store import Store
from job.training import evaluation, export

_ACCURACY_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was checked."""

    num_files: int
    num_bytes: int
    num_predicted: int
    largest_difference: float


def verify_run(store: Store, commit: Mapping[str, Any]) -> Report:
    """Follow a COMMIT to its objects and check that they are the model that was evaluated.

    Raises:
        IntegrityError: an object is missing or altered, or the model predicts something else.
    """
    files = read_files(store, commit)
    if PREDICTIONS_FILE not in files:
        raise IntegrityError(f"the COMMIT of run {commit['run']} names no {PREDICTIONS_FILE}")
    recorded = parse_predictions(files[PREDICTIONS_FILE])
    _, accuracy = evaluation.loss_and_accuracy(recorded.probabilities, recorded.labels)
    if abs(accuracy - commit["metrics"]["test_accuracy"]) > _ACCURACY_TOLERANCE:
        raise IntegrityError(
            f"run {commit['run']}: the stored predictions give accuracy {accuracy}, the COMMIT says "
            f"{commit['metrics']['test_accuracy']}"
        )
    model = {name.removeprefix(MODEL_FOLDER): data for name, data in files.items() if name.startswith(MODEL_FOLDER)}
    with tempfile.TemporaryDirectory(prefix="mnist-verify-") as temporary:
        folder = Path(temporary)
        unpack_model(model, folder)
        if export.weights_digest(export.weights_of_export(folder)) != commit["weights_digest"]:
            raise IntegrityError(f"run {commit['run']}: the SavedModel's weights are not the committed ones")
        images = recorded.sample_images
        received = export.predict_with_export(folder, images)
    export.check_predictions(received, recorded.probabilities[: len(images)])
    return Report(
        num_files=len(files),
        num_bytes=sum(map(len, files.values())),
        num_predicted=len(images),
        largest_difference=float(np.abs(received - recorded.probabilities[: len(images)]).max()),
    )


def unpack_model(files: Mapping[str, bytes], folder: Path) -> None:
    """Lay out a SavedModel in a local folder, to look at it; nothing is synced.

    Args:
        files: name below the model's folder -> content. Names come from a COMMIT, whose reader keeps them inside.
    """
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
