"""tf.data from arrays to chunks of batches: reshape, cast, /255, one-hot.

Owns the order of the examples, which is a pure function of (seed, epoch, step): a position is one integer and nothing
about an iterator is ever saved. Shapes: K steps in a chunk, B examples in a global batch, C classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.datasets.dataset import Images, Labels

MAX_STEPS_PER_CHUNK = 67
"""The grain at which signals are seen: tens of milliseconds of MNIST. Results do not depend on it."""

MAX_SLOW_STEPS_PER_CHUNK = 8
"""The same for an own model that is not dense, whose step may take a second: a signal has to be seen within the grace period."""

MAX_CHUNK_BYTES = 30_000_000
"""Above 32 MiB glibc maps every chunk anew, which costs more than training on it (`devices.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The rows of up to K consecutive steps of one epoch.

    Attributes:
        start_step: global step of the first one.
        num_steps: how many of the K are real; the others are padding.
        rows: int32 [K, B], positions in the training split; padding repeats row 0.
        weights: float32 [K, B], 1 for a real example and 0 for padding.
    """

    start_step: int
    num_steps: int
    rows: NDArray[np.int32]
    weights: NDArray[np.float32]

    def share(self, worker: int, *, num_workers: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows and weights [K, B / workers] of one of several workers: consecutive columns, in the order of their indexes."""
        size = self.rows.shape[1] // num_workers
        mine = slice(worker * size, (worker + 1) * size)
        return self.rows[:, mine], self.weights[:, mine]


def steps_per_epoch(num_examples: int, *, global_batch_size: int) -> int:
    """Steps in one pass; the last batch may be smaller and is kept."""
    return math.ceil(num_examples / global_batch_size)


def choose_steps_per_chunk(
    steps: int, *, num_pixels: int, global_batch_size: int, most_steps: int = MAX_STEPS_PER_CHUNK
) -> int:
    """Steps in a chunk, for epochs of `steps`: as many as time and memory allow, and dividing the epoch where possible.

    A chunk that does not divide leaves a shorter last one, which costs a little and is correct as well.

    Args:
        most_steps: `MAX_STEPS_PER_CHUNK`, or `MAX_SLOW_STEPS_PER_CHUNK`.
    """
    bytes_per_step = num_pixels * global_batch_size * np.dtype(np.float32).itemsize
    most = max(1, min(most_steps, MAX_CHUNK_BYTES // bytes_per_step, steps))
    return next((size for size in range(most, most // 2, -1) if steps % size == 0), most)


def epoch_order(*, seed: int, epoch: int, num_examples: int) -> NDArray[np.int64]:
    """The permutation of one epoch (0-based): numpy's PCG64 seeded with [seed, epoch]."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_examples)


def chunk_rows(
    *, num_examples: int, global_batch_size: int, steps_per_chunk: int, seed: int, start_step: int, stop_step: int
) -> Iterator[Chunk]:
    """Chunks from `start_step` up to, not including, `stop_step`; none crosses the end of an epoch."""
    steps = steps_per_epoch(num_examples, global_batch_size=global_batch_size)
    order, order_epoch = np.empty(0, np.int64), -1
    step = start_step
    while step < stop_step:
        epoch, step_in_epoch = divmod(step, steps)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(seed=seed, epoch=epoch, num_examples=num_examples), epoch
        # Chunk borders stay where they are in an uninterrupted epoch, wherever this one starts.
        end_in_epoch = min((step_in_epoch // steps_per_chunk + 1) * steps_per_chunk, steps)
        num_steps = min(end_in_epoch - step_in_epoch, stop_step - step)
        real = order[step_in_epoch * global_batch_size : (step_in_epoch + num_steps) * global_batch_size]
        rows = np.zeros(steps_per_chunk * global_batch_size, np.int32)
        weights = np.zeros(steps_per_chunk * global_batch_size, np.float32)
        rows[: len(real)], weights[: len(real)] = real, 1.0
        shape = (steps_per_chunk, global_batch_size)
        yield Chunk(start_step=step, num_steps=num_steps, rows=rows.reshape(shape), weights=weights.reshape(shape))
        step += num_steps


def make_chunks(
    *,
    images: Images,
    labels: Labels,
    num_classes: int,
    image_shape: tuple[int, ...],
    global_batch_size: int,
    steps_per_chunk: int,
    seed: int,
    start_step: int,
    stop_step: int,
    worker: int = 0,
    num_workers: int = 1,
) -> Any:
    """A tf.data.Dataset of chunks from `start_step`: this worker's share B' = B / workers of each batch.

    Args:
        images: uint8 or float32 [N, ...]; labels: int64 [N].
        image_shape: what the model takes, such as (784,).

    Returns:
        Elements (images float32 [K, B', *image_shape], one-hot float32 [K, B', C], weights float32 [K, B'],
        total weights of the whole batches float32 [K], start_step int64, num_steps int32).
    """
    import tensorflow as tf

    small_labels = labels.astype(np.int32)

    def rows_of_chunks() -> Iterator[tuple[Any, ...]]:
        for chunk in chunk_rows(
            num_examples=len(labels),
            global_batch_size=global_batch_size,
            steps_per_chunk=steps_per_chunk,
            seed=seed,
            start_step=start_step,
            stop_step=stop_step,
        ):
            totals = chunk.weights.sum(axis=1, dtype=np.float32)
            rows, weights = chunk.share(worker, num_workers=num_workers)
            # Read here, and not from one tensor: that would be a second copy of all images, and is no faster.
            yield images[rows], small_labels[rows], weights, totals, chunk.start_step, chunk.num_steps

    shape = (steps_per_chunk, global_batch_size // num_workers)

    def to_examples(pixels: Any, classes: Any, *others: Any) -> tuple[Any, ...]:
        # One cast and one-hot for the whole chunk: 50 times faster than example by example.
        scaled = preprocess(tf.reshape(pixels, (*shape, *image_shape)))
        return scaled, tf.one_hot(classes, num_classes, dtype=tf.float32), *others

    signature = _signature(shape, image_shape=images.shape[1:], dtype=images.dtype)
    dataset = tf.data.Dataset.from_generator(rows_of_chunks, output_signature=signature)
    return dataset.map(to_examples).prefetch(2).with_options(_make_options())


def _signature(shape: tuple[int, int], *, image_shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Of (images [K, B', ...], labels [K, B'], weights [K, B'], total weights [K], start_step, num_steps)."""
    import tensorflow as tf

    return (
        tf.TensorSpec((*shape, *image_shape), dtype),
        tf.TensorSpec(shape, tf.int32),
        tf.TensorSpec(shape, tf.float32),
        tf.TensorSpec(shape[:1], tf.float32),
        tf.TensorSpec((), tf.int64),
        tf.TensorSpec((), tf.int32),
    )


def preprocess(images: Any) -> Any:
    """What the model sees of a tensor of images: uint8 0..255 -> float32 0..1; float32 as it is.

    The one place for it: training, evaluation and the export call it.
    """
    import tensorflow as tf

    return tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images


def _make_options() -> Any:
    """One thread beside the training step, and no tuner."""
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1  # leave the cores to the training step
    options.deterministic = True
    # Nothing here is left to tune, and the tuner's thread can hold the end of an iterator back for seconds: it sleeps for
    # longer and longer, and sometimes misses the call to stop (4.7 s of a run of 46 s).
    options.autotune.enabled = False
    return options
