"""What the other programs take from the job before anything is timed: its order of rows, its first weights.

With `input_pipeline.py` the only place here that imports `job`. Checks that both sides order alike.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import NUM_CLASSES, SEED, permutation, read_split, require
from job.config import ModelSection
from job.datasets.dataset import Dataset, to_canonical
from job.training.model import build_model
from job.training.pipeline import epoch_order


def main(data_dir: Path, output_path: Path) -> None:
    """Write `order` (int64 [N], file row of each row in the job's order) and `weight_0`, `weight_1`, ..."""
    images, labels = read_split(data_dir, "train")
    ours, theirs = permutation(3, len(labels)), epoch_order(seed=SEED, epoch=3, num_examples=len(labels))
    require(np.array_equal(ours, theirs), "bench: the job's order of examples is no longer the one in task.py")
    weights = build_model(
        ModelSection.model_validate({}),
        image_shape=images.shape[1:],
        num_classes=NUM_CLASSES,
        seed=SEED,
        precision="float32",
    ).get_weights()
    named = {f"weight_{index}": weight for index, weight in enumerate(weights)}
    np.savez(output_path, order=canonical_order(images, labels), **named)


def canonical_order(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find each row of the job's sorted training split in the file; equal rows may stand for each other."""
    names = tuple(str(label) for label in range(NUM_CLASSES))
    sorted_rows = to_canonical(
        Dataset(
            train_images=images,
            train_labels=labels,
            test_images=images[:1],
            test_labels=labels[:1],
            class_names=names,
        )
    )
    position = {row: index for index, row in enumerate(_rows(images, labels))}
    return np.array([position[row] for row in _rows(np.asarray(sorted_rows.train_images), sorted_rows.train_labels)])


def _rows(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[bytes]:
    return [image.tobytes() + bytes([label]) for image, label in zip(images, labels.tolist(), strict=True)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    main(flags.data, flags.output)
