"""The one task that every measured program does: data, order of examples, first weights, what it prints.

Owns the constants of the reference model and the reading of the four IDX files. Imports no framework, so that
a program's whole-process time contains no other's start-up.
"""

import argparse
import gzip
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WIDTHS = (784, 512, 512, 10)
BATCH_SIZE = 128
LEARNING_RATE = 0.01
SEED = 1337
NUM_CLASSES = WIDTHS[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What each program is called with."""

    data_dir: Path
    prepared_path: Path
    output_dir: Path
    epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Images: float32 [N, 784] in 0..1; labels: int64 [N]; weights: kernel [in, out], bias [out], ..."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    weights: list[NDArray[np.float32]]


def parse_arguments() -> Arguments:
    """Read the flags that the harness passes to every program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    flags = parser.parse_args()
    return Arguments(data_dir=flags.data, prepared_path=flags.prepared, output_dir=flags.output, epochs=flags.epochs)


def read_split(data_dir: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one split ("train" or "t10k") as images uint8 [N, 28, 28] and labels int64 [N]."""
    images = gzip.decompress((data_dir / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((data_dir / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    return pixels, np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)


def load_task(arguments: Arguments) -> Task:
    """Read the data, put the training rows into the job's order, and read the job's first weights."""
    train_images, train_labels = read_split(arguments.data_dir, "train")
    test_images, test_labels = read_split(arguments.data_dir, "t10k")
    with np.load(arguments.prepared_path) as prepared:
        order = prepared["order"]
        weights = [prepared[f"weight_{index}"] for index in range(2 * (len(WIDTHS) - 1))]
    return Task(
        train_images=to_pixels(train_images[order]),
        train_labels=train_labels[order],
        test_images=to_pixels(test_images),
        test_labels=test_labels,
        weights=weights,
    )


def to_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Flatten to float32 [N, 784] in 0..1."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def to_one_hot(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Turn labels into float32 [N, 10]."""
    return np.eye(NUM_CLASSES, dtype=np.float32)[labels]


def permutation(epoch: int, count: int) -> NDArray[np.int64]:
    """Order of the examples in `epoch` (the first is 0): the job's rule, so that all see the same batches."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([SEED, epoch]))).permutation(count)


def emit(event: str, **fields: object) -> None:
    """Print one event the way the job does: a JSON object on a line."""
    print(json.dumps({"event": event} | fields), flush=True)


class Clock:
    """Names the phases of a program: each `lap` ends one."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Give the time since the last lap to `phase`."""
        now = time.perf_counter()
        self.phases[phase] = now - self._last
        self._last = now


def emit_epoch(
    epoch: int, *, seconds: float, loss: float, accuracy: float, test_loss: float, test_accuracy: float
) -> None:
    """Report one epoch; `seconds` covers its training part only, and `epoch` counts from 1."""
    emit(
        "epoch.end",
        epoch=epoch,
        seconds=seconds,
        loss=loss,
        accuracy=accuracy,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
    )


def require(condition: bool, message: str) -> None:
    """Stop with one line when a measurement would be meaningless."""
    if not condition:
        sys.exit(message)
