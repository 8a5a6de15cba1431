"""Committed runs made of plain arrays, as a workload would leave them: no training, no TensorFlow."""

from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from job import publish
from job.contract import run_key
from job.identity import canonical_json, sha256_hex
from job.store import Store

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
) -> dict[str, Any]:
    """Publish a run whose model gets so many of the examples wrong; returns its COMMIT."""
    if created:
        record = {"format": 1, "created": created, "result_digest": sha256_hex(canonical_json({"run": run}))}
        store.create(run_key(run), canonical_json(record))
    weights = weights or f"weights of {run}"
    images = np.zeros((2, *image_shape), np.uint8)
    files = {
        "attempt.json": b"{}",
        "model/saved_model.pb": b"graph",
        "model/variables/variables.data": weights.encode(),
        "predictions.safetensors": safetensors.numpy.save(
            {"probabilities": probabilities_with(num_wrong), "labels": LABELS, "sample_images": images}
        ),
    }
    digest = publish.claim_run(store, run, inputs={"run": run}, config={})
    stored = publish.upload(store, run, attempt_id="a", files=files)
    content = {
        "format": 1,
        "run": run,
        "attempt": "a",
        "committed": "2026-03-01T00:00:00.000+00:00",
        "result_digest": digest,
        "weights_digest": sha256_hex(weights.encode()),
        "dataset": {"name": dataset, "digest": "d", "evaluation_digest": evaluation_digest},
        "metrics": {"test_accuracy": 1 - num_wrong / NUM_EXAMPLES, "test_loss": 0.1, "test_examples": NUM_EXAMPLES},
        "files": [{"key": file.key, "num_bytes": file.num_bytes, "sha256": file.sha256} for file in stored],
    }
    return publish.commit(store, run, content=content)
