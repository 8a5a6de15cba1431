"""What a dataset is: two splits of labelled images, the checks that they must pass, their canonical order and digest.

Does not know where the examples come from, nor how many of them are used.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from job.digests import digest_of_arrays
from job.errors import IntegrityError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

MAX_CLASSES = 1000

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_TEST_ARRAYS = ARRAYS[2:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Two splits of labelled images; what a source returns, your own included.

    Attributes:
        train_images: uint8 [N, height, width] or [N, height, width, channels], 0..255.
        train_labels: int64 [N] in 0..len(class_names) - 1.
        test_images: uint8 [M, ...] of the same image shape.
        test_labels: int64 [M].
        class_names: one name per class, in label order.
        validation_images, validation_labels: a third split, or None: without one, `data.validation_fraction` takes it from the
            training split.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    class_names: tuple[str, ...]
    validation_images: Images | None = None
    validation_labels: Labels | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, such as (28, 28)."""
        return self.train_images.shape[1:]


def to_canonical(dataset: Dataset) -> Dataset:
    """Check a source's arrays and sort each split by the SHA-256 of image and label.

    tensorflow-datasets shuffles while it prepares, IDX files do not: after this the source no longer matters. A
    trailing channel axis of 1 is dropped for the same reason.

    Raises:
        IntegrityError: naming the array and the rule that it breaks.
    """
    if len(dataset.class_names) < 2 or len(dataset.class_names) > MAX_CLASSES:
        raise IntegrityError(f"dataset: class_names must hold 2 to {MAX_CLASSES}, received {len(dataset.class_names)}")
    train_images, train_labels = _canonical_split(
        "train", dataset.train_images, dataset.train_labels, dataset.class_names
    )
    test_images, test_labels = _canonical_split("test", dataset.test_images, dataset.test_labels, dataset.class_names)
    if train_images.shape[1:] != test_images.shape[1:]:
        raise IntegrityError(
            f"dataset: train and test images must have one shape, received {train_images.shape[1:]} and "
            f"{test_images.shape[1:]}"
        )
    return Dataset(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(dataset.class_names),
    )


def with_digest(dataset: Dataset) -> tuple[Dataset, str]:
    """A source's arrays in canonical order, and the digest over them.

    Raises:
        IntegrityError: as from `to_canonical`.
    """
    canonical = to_canonical(dataset)
    return canonical, digest_of(canonical)


def digest_of(dataset: Dataset) -> str:
    """SHA-256 over the arrays' shapes and bytes, in the order they have now. Class names are not part of it."""
    return _digest(dataset, ARRAYS)


def evaluation_digest_of(dataset: Dataset) -> str:
    """SHA-256 over the test split as it is used: two models scored on one such digest saw the same examples."""
    return _digest(dataset, _TEST_ARRAYS)


def _digest(dataset: Dataset, names: tuple[str, ...]) -> str:
    return digest_of_arrays((name, getattr(dataset, name)) for name in names)


def _canonical_split(split: str, images: Images, labels: Labels, class_names: tuple[str, ...]) -> tuple[Images, Labels]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise IntegrityError(
            f"dataset: {split} images must be uint8 [N, height, width] or [N, height, width, channels] with N > 0, "
            f"received {images.dtype} {list(images.shape)}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise IntegrityError(
            f"dataset: {split} labels must be integers, one for each of {len(images)} images, received {labels.dtype} "
            f"{list(labels.shape)}"
        )
    labels = labels.astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if wrong.size:
        raise IntegrityError(
            f"dataset: {split} labels must be 0..{len(class_names) - 1}, received {labels[wrong[0]]} at position {wrong[0]}"
        )
    images = np.ascontiguousarray(images)
    label_bytes = labels.astype("<i8").tobytes()
    keys = [
        hashlib.sha256(image.tobytes() + label_bytes[8 * position : 8 * position + 8]).digest()
        for position, image in enumerate(images)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return images[order], labels[order]
