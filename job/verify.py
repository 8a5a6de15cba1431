"""Proof that a committed run is whole: hashes, weights, and predictions of the loaded SavedModel."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from job import evaluation, export
from job.errors import IntegrityError
from job.publish import read_files
from job.store import Store

_MODEL_FOLDER = "model/"
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
    recorded = _load_predictions(files)
    _, accuracy = evaluation.loss_and_accuracy(recorded["probabilities"], recorded["labels"])
    if abs(accuracy - commit["metrics"]["test_accuracy"]) > _ACCURACY_TOLERANCE:
        raise IntegrityError(
            f"run {commit['run']}: the stored predictions give accuracy {accuracy}, the COMMIT says "
            f"{commit['metrics']['test_accuracy']}"
        )
    with tempfile.TemporaryDirectory(prefix="mnist-verify-") as temporary:
        folder = _write_model(files, Path(temporary))
        if export.weights_digest(export.weights_of_export(folder)) != commit["weights_digest"]:
            raise IntegrityError(f"run {commit['run']}: the SavedModel's weights are not the committed ones")
        images = recorded["sample_images"]
        received = export.predict_with_export(folder, images)
    export.check_predictions(received, recorded["probabilities"][: len(images)])
    return Report(
        num_files=len(files),
        num_bytes=sum(map(len, files.values())),
        num_predicted=len(images),
        largest_difference=float(np.abs(received - recorded["probabilities"][: len(images)]).max()),
    )


def _load_predictions(files: Mapping[str, bytes]) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(files["predictions.safetensors"])
        return {name: arrays[name] for name in ("probabilities", "labels", "sample_images")}
    except (KeyError, SafetensorError) as error:
        raise IntegrityError(f"predictions.safetensors is missing or cannot be read: {error}") from error


def _write_model(files: Mapping[str, bytes], folder: Path) -> Path:
    """Lay out the SavedModel locally; names come from a COMMIT, so they must stay inside the folder."""
    for name, data in files.items():
        if not name.startswith(_MODEL_FOLDER):
            continue
        path = folder / name
        if ".." in path.parts:
            raise IntegrityError(f"the COMMIT names {name!r}, which leaves the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "model"
