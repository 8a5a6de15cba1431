"""Images that are in the training split and in another one are counted and warned about."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from job.config import DataSection
from job.datasets.dataset import Dataset, count_leaked, to_canonical
from tests.job.datasets.test_dataset import array, load

NAMES = tuple("0123456789")
OWN = """
import numpy as np
from job.datasets import Dataset

def make(shared):
    images = np.random.default_rng(0).integers(0, 256, (60, 5, 5), np.uint8)
    labels = np.arange(60) % 2
    test = images[40 - shared:]
    return Dataset(train_images=images[:40], train_labels=labels[:40], test_images=test, test_labels=1 - labels[40 - shared:],
                   class_names=("no", "yes"))
"""


def make(*, dtype: type = np.uint8, size: int = 5) -> Dataset:
    """100 different images, of a size that is no multiple of 8 bytes."""
    random = np.random.default_rng(0)
    return Dataset(
        train_images=random.integers(0, 256, (100, size, size)).astype(dtype),
        train_labels=random.integers(0, 10, 100),
        test_images=random.integers(0, 256, (40, size, size)).astype(dtype),
        test_labels=random.integers(0, 10, 40),
        class_names=NAMES,
    )


@pytest.mark.parametrize(("dtype", "size"), [(np.uint8, 5), (np.uint8, 4), (np.float32, 3)])
def test_shared_images_are_counted_whatever_their_labels(dtype: type, size: int) -> None:
    dataset = make(dtype=dtype, size=size)
    assert count_leaked(to_canonical(dataset)) == {"test": 0}
    train, test = array(dataset, "train_images"), array(dataset, "test_images").copy()
    test[[3, 5, 9]] = train[[7, 7, 50]]
    leaky = replace(dataset, test_images=test, validation_images=train[:4], validation_labels=np.zeros(4, np.int64))
    assert count_leaked(to_canonical(leaky)) == {"test": 3, "validation": 4}


def test_one_changed_bit_is_another_image() -> None:
    dataset = make()
    train, test = array(dataset, "train_images"), array(dataset, "test_images").copy()
    test[:30] = train[:30]
    test[range(30), 4, 4] ^= np.uint8(1)
    assert count_leaked(to_canonical(replace(dataset, test_images=test))) == {"test": 0}


@pytest.mark.parametrize("shared", [0, 6])
def test_leakage_is_warned_about_once_with_the_count(
    shared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own_leakage.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    with caplog.at_level(logging.WARNING, logger="job"):
        load(DataSection(source="own_leakage:make", args={"shared": shared}))
    found = [(record.getMessage(), record.fields["test"]) for record in caplog.records]  # type: ignore[attr-defined]
    assert found == ([("data.leakage", 6)] if shared else [])


def test_digits_have_none_and_their_validation_split_neither(caplog: pytest.LogCaptureFixture) -> None:
    load(DataSection(source="digits", validation_fraction=0.2))
    assert not caplog.records
