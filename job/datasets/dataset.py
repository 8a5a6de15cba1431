"""What a dataset is: splits of labelled images, the checks that they must pass, their canonical order and digest.

Does not know where the examples come from, nor how many of them are used.
"""

import hashlib
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.digests import digest_of_arrays
from job.errors import ConfigError, IntegrityError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

MAX_CLASSES = 1000

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_TEST_ARRAYS = ARRAYS[2:]
_VALIDATION_ARRAYS = ("validation_images", "validation_labels")

_VALIDATION_SALT = b"mnist-train validation\n"
"""Hashed before each image, so that the choice does not follow the canonical order. It can never change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Two or three splits of labelled images; what a source returns, your own included.

    Attributes:
        train_images: uint8 [N, height, width] or [N, height, width, channels], 0..255.
        train_labels: int64 [N] in 0..len(class_names) - 1.
        test_images: uint8 [M, ...] of the same image shape.
        test_labels: int64 [M].
        class_names: one name per class, in label order.
        validation_images, validation_labels: uint8 [V, ...] and int64 [V], or both None. Without them
            `data.validation_fraction` takes a validation split from the training split.
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
    splits = ["train", "test"]
    if (dataset.validation_images is None) != (dataset.validation_labels is None):
        raise IntegrityError("dataset: validation_images and validation_labels go together; return both or neither")
    if dataset.validation_images is not None:
        splits.append("validation")
    arrays: dict[str, Any] = {}
    for split in splits:
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = _canonical_split(
            split, images, labels, dataset.class_names
        )
        shape, train_shape = arrays[f"{split}_images"].shape[1:], arrays["train_images"].shape[1:]
        if shape != train_shape:
            raise IntegrityError(
                f"dataset: train and {split} images must have one shape, received {train_shape} and {shape}"
            )
    return Dataset(**arrays, class_names=tuple(dataset.class_names))


def split_validation(dataset: Dataset, fraction: float) -> Dataset:
    """Move a share of the training split into a validation split, by the SHA-256 of each image alone.

    An image is on the same side in every source, on every night and whatever the rest of the split is. Equal images are on one
    side. A larger fraction takes the images of a smaller one, and more. The order within each side stays.

    Args:
        dataset: without a validation split.
        fraction: 0..1; the share is met up to chance.

    Raises:
        ConfigError: a side would be empty, or training would lose a class.
    """
    limit = int(Fraction(fraction) * 2**256)
    salted = hashlib.sha256(_VALIDATION_SALT)
    is_validation = np.fromiter(
        (_is_below(limit, image, salted.copy()) for image in dataset.train_images), bool, len(dataset.train_images)
    )
    _check_sides(dataset.train_labels, is_validation, fraction=fraction, class_names=dataset.class_names)
    return replace(
        dataset,
        train_images=dataset.train_images[~is_validation],
        train_labels=dataset.train_labels[~is_validation],
        validation_images=dataset.train_images[is_validation],
        validation_labels=dataset.train_labels[is_validation],
    )


def _is_below(limit: int, image: Images, hasher: "hashlib._Hash") -> bool:
    hasher.update(image.tobytes())
    return int.from_bytes(hasher.digest(), "big") < limit


def _check_sides(
    labels: Labels, is_validation: NDArray[np.bool_], *, fraction: float, class_names: tuple[str, ...]
) -> None:
    num_validation, num_train = int(is_validation.sum()), int((~is_validation).sum())
    if not num_validation or not num_train:
        raise ConfigError(
            f"data.validation_fraction: must leave examples on both sides, received {fraction}: {num_train} for training and "
            f"{num_validation} for validation of {len(labels)}; choose another fraction"
        )
    lost = np.setdiff1d(labels, labels[~is_validation])
    if lost.size:
        raise ConfigError(
            f"data.validation_fraction: must leave every class in the training split, received {fraction}: none is left of "
            f"{class_names[lost[0]]!r}; choose a smaller fraction"
        )


def with_digest(dataset: Dataset) -> tuple[Dataset, str]:
    """A source's arrays in canonical order, and the digest over them.

    Raises:
        IntegrityError: as from `to_canonical`.
    """
    canonical = to_canonical(dataset)
    return canonical, digest_of(canonical)


def digest_of(dataset: Dataset) -> str:
    """SHA-256 over the arrays' shapes and bytes, in the order they have now. Class names are not part of it.

    The arrays of a validation split are part of it where there is one.
    """
    more = _VALIDATION_ARRAYS if dataset.validation_images is not None else ()
    return _digest(dataset, ARRAYS + more)


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
