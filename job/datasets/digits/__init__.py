"""The embedded dataset of the quickstart: 1,797 real handwritten 8x8 digits (UCI, CC BY 4.0; see LICENSE here).

Scaled to 28x28 and split 80/20. It is not MNIST, and a run on it says so.
"""

import csv
import gzip
import hashlib
import importlib.resources
import io

import numpy as np
from numpy.typing import NDArray

from job.datasets.dataset import Dataset, with_digest
from job.errors import IntegrityError

FILE_NAME = "digits.csv.gz"
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
_TEST_EVERY = 5
_SOURCE_SIZE, _SIZE = 8, 28
_SOURCE_MAX = 16


def load(config: object, *, cache_dir: object, open_folder: object) -> tuple[Dataset, str]:
    """The digits in canonical order, and their digest.

    Raises:
        IntegrityError: as from `load_digits`.
    """
    return with_digest(load_digits())


def load_digits() -> Dataset:
    """The digits as uint8 [N, 28, 28]; every fifth row of the file is a test example.

    Raises:
        IntegrityError: the file in the package is not the one that was shipped.
    """
    data = importlib.resources.files(__name__).joinpath(FILE_NAME).read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise IntegrityError(f"data: {FILE_NAME} in the package is not the shipped file; install the package again")
    text = io.StringIO(gzip.decompress(data).decode("ascii"))
    rows = np.array([[int(float(value)) for value in row] for row in csv.reader(text)], np.int64)
    images, labels = _scale(rows[:, :-1].reshape(-1, _SOURCE_SIZE, _SOURCE_SIZE)), rows[:, -1]
    is_test = np.arange(len(rows)) % _TEST_EVERY == 0
    return Dataset(
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _scale(digits: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Bilinear 8x8 [0..16] -> 28x28 [0..255], as one matrix from each side (half-pixel centres, edges clamped)."""
    position = (np.arange(_SIZE) + 0.5) * _SOURCE_SIZE / _SIZE - 0.5
    low = np.clip(np.floor(position).astype(int), 0, _SOURCE_SIZE - 1)
    high = np.clip(low + 1, 0, _SOURCE_SIZE - 1)
    share = np.clip(position - low, 0, 1)
    weights = np.zeros((_SIZE, _SOURCE_SIZE))
    weights[range(_SIZE), low] += 1 - share
    weights[range(_SIZE), high] += share
    scaled = weights @ digits @ weights.T * (255 / _SOURCE_MAX)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
