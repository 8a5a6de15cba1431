"""The embedded digits: what is shipped, and how it is scaled."""

import gzip
import hashlib
import importlib.resources
from pathlib import Path

import numpy as np
import pytest

from job.config import DataSection
from job.datasets.digits import FILE_NAME, load_digits
from job.datasets.load import load_dataset
from job.errors import IntegrityError


def shipped() -> bytes:
    return importlib.resources.files("job.datasets.digits").joinpath(FILE_NAME).read_bytes()


def test_digits_are_whole_and_split_80_to_20() -> None:
    digits = load_digits()
    assert (digits.train_images.shape, digits.test_images.shape) == ((1437, 28, 28), (360, 28, 28))
    assert digits.train_images.dtype == np.uint8
    counts = np.bincount(np.concatenate([digits.train_labels, digits.test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as UCI describes its test file
    assert np.bincount(digits.test_labels).min() >= 25, "every class is tested"
    assert digits.class_names == tuple("0123456789")


def test_scaling_keeps_range_and_brightness() -> None:
    digits = load_digits()
    rows = np.genfromtxt(gzip.decompress(shipped()).decode("ascii").splitlines(), delimiter=",")
    small = rows[:, :-1]
    large = np.zeros((len(rows), 28, 28))
    is_test = np.arange(len(rows)) % 5 == 0
    large[is_test], large[~is_test] = digits.test_images, digits.train_images
    assert (large.min(), large.max()) == (0, 255)
    # Bilinear scaling is linear: the mean of an image stays within rounding and the clamped edges.
    assert np.abs(large.mean((1, 2)) / 255 - small.mean(1) / 16).max() < 0.03
    assert (large.max((1, 2))[small.max(1) == 16] > 200).all()
    assert np.array_equal(rows[is_test, -1], digits.test_labels)


def test_digest_is_the_recorded_one() -> None:
    """Another digest would make every recorded run on the digits another run."""
    loaded = load_dataset(DataSection(source="digits"), cache_dir=Path("/nonexistent"), open_folder=Path)
    assert loaded.name == "digits"
    assert loaded.digest == "313c9eaa021e2760214ed36a931c764b7592eed14624e6a037355f4fcb5d99d9"


def test_file_is_the_pinned_one() -> None:
    assert hashlib.sha256(shipped()).hexdigest() == "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


def test_altered_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE_NAME).write_bytes(shipped()[:-1] + b"\1")
    monkeypatch.setattr("job.datasets.digits.importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(IntegrityError, match=rf"{FILE_NAME} in the package is not the shipped file; install"):
        load_digits()
