"""Feeding alone, without training: the job's chunks against a pipeline that maps one example at a time."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import BATCH_SIZE, NUM_CLASSES, SEED, WIDTHS, emit, read_split, require

STEPS_PER_CHUNK = 67
WARM_UP_EXAMPLES = 5_000

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def main(data_dir: Path) -> None:
    """Time both; the fast one for more epochs, so that a clock can tell."""
    images, labels = read_split(data_dir, "train")
    measure("job", make_job_chunks, images, labels, num_epochs=10)
    measure("per_example", make_per_example, images, labels, num_epochs=1)


def measure(
    name: str, make: Callable[[Images, Labels, int], Any], images: Images, labels: Labels, *, num_epochs: int
) -> None:
    """Warm up on a few examples, then go through `num_epochs` and report."""
    count_images(make(images[:WARM_UP_EXAMPLES], labels[:WARM_UP_EXAMPLES], 1))
    dataset = make(images, labels, num_epochs)
    start = time.perf_counter()
    count = count_images(dataset)
    seconds = time.perf_counter() - start
    require(count == num_epochs * len(images), f"bench: {name} gave {count} images in {num_epochs} epochs")
    emit("pipeline.end", pipeline=name, images=count, seconds=seconds, images_per_second=count / seconds)


def make_job_chunks(images: Images, labels: Labels, num_epochs: int) -> Any:
    """Make the job's own dataset of chunks [K, B, 784]."""
    from job.training.pipeline import make_chunks, steps_per_epoch

    return make_chunks(
        images=images,
        labels=labels,
        num_classes=NUM_CLASSES,
        image_shape=(WIDTHS[0],),
        global_batch_size=BATCH_SIZE,
        steps_per_chunk=STEPS_PER_CHUNK,
        seed=SEED,
        start_step=0,
        stop_step=num_epochs * steps_per_epoch(len(images), global_batch_size=BATCH_SIZE),
    )


def make_per_example(images: Images, labels: Labels, num_epochs: int) -> Any:
    """Do what tutorials do: shuffle; reshape, cast, divide and one-hot each image; batch."""
    import tensorflow as tf

    def prepare(image: Any, label: Any) -> tuple[Any, Any, Any]:
        pixels = tf.cast(tf.reshape(image, (WIDTHS[0],)), tf.float32) / 255.0
        return pixels, tf.one_hot(label, NUM_CLASSES), tf.constant(1.0)

    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).repeat(num_epochs)
    return dataset.shuffle(len(images)).map(prepare).batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)


def count_images(dataset: Any) -> int:
    """Go through the dataset; padding, which carries weight 0, is not counted."""
    return sum(int(np.count_nonzero(element[2])) for element in dataset)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    main(parser.parse_args().data)
