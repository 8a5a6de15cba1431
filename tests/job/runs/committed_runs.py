"""Committed runs made of plain arrays, as a workload would leave them: no training, no TensorFlow."""

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from job.contract import run_key
from job.digests import canonical_json, sha256_hex
from job.runs import read, write
from job.runs.read import CommittedRun
from job.store.store import Store

NUM_EXAMPLES, NUM_CLASSES = 50, 4
LABELS = np.arange(NUM_EXAMPLES, dtype=np.int64) % NUM_CLASSES


def probabilities_with(num_wrong: int) -> NDArray[np.float32]:
    """Sure predictions of the 50 examples, of which the first `num_wrong` are wrong."""
    return np.eye(NUM_CLASSES, dtype=np.float32)[(LABELS + (np.arange(NUM_EXAMPLES) < num_wrong)) % NUM_CLASSES]


def commit_run(
    store: Store,
    run: str,
    *,
    num_wrong: int = 5,
    dataset: str = "plain",
    evaluation_digest: str = "e",
    weights: str | None = None,
    image_shape: tuple[int, ...] = (2, 2),
    created: str | None = None,
    class_names: tuple[str, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
    model_name: str | None = None,
    model: Mapping[str, bytes] | None = None,
) -> CommittedRun:
    """Publish a run whose model gets so many of the examples wrong; returns its COMMIT.

    Args:
        model_name: the setting `promotion.model_name` that the COMMIT records.
        model: files of a SavedModel; those of the run when None.
    """
    if created:
        record = {"format": 1, "created": created, "result_digest": sha256_hex(canonical_json({"run": run}))}
        store.create(run_key(run), canonical_json(record))
    weights = weights or f"weights of {run}"
    files = files_of(weights, num_wrong=num_wrong, image_shape=image_shape, class_names=class_names)
    if model is not None:
        files = {name: data for name, data in files.items() if not name.startswith(read.MODEL_FOLDER)}
        files |= {f"{read.MODEL_FOLDER}{name}": data for name, data in model.items()}
    digest = write.begin_run(store, run, inputs={"run": run}, config={})
    stored = write.upload(store, run, attempt_id="a", files={read.ATTEMPT_FILE: b"{}", **files})
    content = content_of(run, "a", stored, digest=digest, weights=weights, num_wrong=num_wrong)
    content["dataset"] |= {"name": dataset, "evaluation_digest": evaluation_digest}
    content["metrics"] |= metrics or {}
    content["config"] = {"promotion": {"model_name": model_name}}
    return write.commit(store, run, content=content)


@functools.cache
def files_of(
    weights: str,
    *,
    num_wrong: int,
    image_shape: tuple[int, ...] = (2, 2),
    class_names: tuple[str, ...] | None = None,
) -> Mapping[str, bytes]:
    """What an attempt uploads: name below its folder -> content."""
    arrays: dict[str, NDArray[Any]] = {
        "probabilities": probabilities_with(num_wrong),
        "labels": LABELS,
        "sample_images": np.zeros((2, *image_shape), np.uint8),
    }
    return {
        "model/saved_model.pb": b"graph",
        "model/variables/variables.data": weights.encode(),
        "predictions.safetensors": safetensors.numpy.save(arrays, _names(class_names)),
    }


def _names(class_names: tuple[str, ...] | None) -> dict[str, str] | None:
    """The header of a predictions file; runs of plain arrays have none."""
    return {"predictions": json.dumps({"class_names": class_names})} if class_names else None


def content_of(
    run: str, attempt: str, stored: Iterable[read.StoredFile], *, digest: str, weights: str, num_wrong: int
) -> dict[str, Any]:
    """The COMMIT of what was stored."""
    return {
        "format": 1,
        "run": run,
        "attempt": attempt,
        "committed": "2026-03-01T00:00:00.000+00:00",
        "result_digest": digest,
        "weights_digest": sha256_hex(weights.encode()),
        "dataset": {"name": "plain", "digest": "d", "evaluation_digest": "e"},
        "metrics": {"test_accuracy": 1 - num_wrong / NUM_EXAMPLES, "test_loss": 0.1, "test_examples": NUM_EXAMPLES},
        "files": [asdict(file) for file in stored],
    }
