"""The plain copy of a prepared dataset: whatever else is in its place costs a new preparation, and no memory."""

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from job.config import MAX_DATA_BYTES
from job.datasets.dataset import ARRAYS, Dataset, digest_of
from job.datasets.prepared import read_or_make, read_plain_copy

pytestmark = pytest.mark.security("S5")

NAMES = ("a", "b")


def small(num_labels: int = 40, label: int = 0) -> Dataset:
    images = np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4)
    labels = np.arange(num_labels, dtype=np.int64) % 2 + label
    return Dataset(
        train_images=images, train_labels=labels, test_images=images, test_labels=labels, class_names=NAMES
    )  # fmt: skip


def write(path: Path, dataset: Dataset, class_names: object = NAMES) -> None:
    """As `prepared.py` writes it, with a digest that is right, whatever the arrays are."""
    meta = {"class_names": class_names, "digest": digest_of(dataset), "order": "sha256(image, label)"}
    arrays = {name: np.asarray(getattr(dataset, name)) for name in ARRAYS}
    path.write_bytes(save(arrays, {"dataset": json.dumps(meta)}))


def write_header(path: Path, header: bytes, *, num_bytes: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if num_bytes is None else num_bytes) + header)


def write_longer(path: Path) -> None:
    write(path, small())
    os.truncate(path, MAX_DATA_BYTES + 1)  # with a hole, which takes no room


def shape(*sizes: int, end: int = 0) -> bytes:
    return json.dumps({"train_images": {"dtype": "U8", "shape": sizes, "data_offsets": [0, end]}}).encode()


LIES: dict[str, Callable[[Path], object]] = {
    "longer than any": write_longer,
    "pipe": os.mkfifo,
    "header of 2^63 bytes": lambda path: write_header(path, b"{}", num_bytes=2**63),
    "header of 1 GB": lambda path: write_header(path, b"{}", num_bytes=10**9),
    "terabytes": lambda path: write_header(path, shape(10**6, 10**6, end=10**12)),
    "product beyond 64 bits": lambda path: write_header(path, shape(2**40, 2**40, 2**40)),
    "negative": lambda path: write_header(path, shape(-1, 1)),
    "deep": lambda path: write_header(path, b"[" * 100_000),
    "deep beside arrays": lambda path: path.write_bytes(save({"x": np.zeros(1)}, {"dataset": "[" * 100_000})),
    "fewer labels": lambda path: write(path, small(num_labels=10)),
    "labels without a class": lambda path: write(path, small(label=5)),
    "names that are none": lambda path: write(path, small(), class_names=[1, {"a": 2}]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_copy_that_lies_is_prepared_again(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "mnist.safetensors"
    LIES[lie](path)
    tracemalloc.start()
    try:
        assert read_plain_copy(path) is None
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    dataset, digest = read_or_make(path, small)
    assert (len(dataset.train_labels), digest) == (40, digest_of(dataset))


def test_a_good_copy_is_read(tmp_path: Path) -> None:
    _, digest = read_or_make(tmp_path / "mnist.safetensors", small)
    copy = read_plain_copy(tmp_path / "mnist.safetensors")
    assert copy
    assert copy[1] == digest
