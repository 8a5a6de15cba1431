"""What a dataset is: splits of labelled images, the checks that they must pass, their canonical order and digest.

Does not know where the examples come from, nor how many of them are used.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.datasets.rows import Rows, as_rows
from job.digests import digest_of_arrays
from job.errors import ConfigError, IntegrityError
from job.logs import warn
from job.masking import masked

Images = NDArray[Any] | Rows
"""uint8 in 0..255 or float32, [N, ...]: read some by their positions, a mask or a slice."""
Labels = NDArray[np.int64]

MAX_CLASSES = 1000
_MAX_NAME_CHARACTERS = 256

_LARGEST_SCALED = 100.0
"""Floats above it are warned about: 0..255 pictures that nobody divided, or a table that nobody scaled."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_TEST_ARRAYS = ARRAYS[2:]
_VALIDATION_ARRAYS = ("validation_images", "validation_labels")

_VALIDATION_SALT = b"mnist-train validation\n"
"""Hashed before each image, so that the choice does not follow the canonical order. It can never change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Two or three splits of labelled images, or of rows of a table; what a source returns, your own included.

    Attributes:
        train_images: uint8 [N, height, width] or [N, height, width, channels], 0..255, which the job divides by 255. Or floats of
            these shapes, or floats [N, features]: they are used as they are, in float32.
        train_labels: int64 [N] in 0..len(class_names) - 1.
        test_images: [M, ...] of the same type and shape.
        test_labels: int64 [M].
        class_names: one name per class, in label order: different texts that can be printed, or numbers.
        validation_images, validation_labels: [V, ...] and int64 [V], or both None. Without them `data.validation_fraction` takes
            them from the training split.
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
        """Shape of one image, such as (28, 28), or of one row of a table, such as (13,)."""
        return self.train_images.shape[1:]

    @property
    def image_dtype(self) -> np.dtype[Any]:
        """uint8 or float32."""
        return self.train_images.dtype

    @property
    def bytes_in_memory(self) -> int:
        """Of the arrays that hold the images; those that stay in a mapped file do not count."""
        images = (as_rows(getattr(self, f"{split}_images")) for split in self.splits())
        arrays = {id(rows.array): rows.array.nbytes for rows in images if rows.is_in_memory}
        return sum(arrays.values())

    def splits(self) -> tuple[str, ...]:
        """Which splits there are: train, test, validation."""
        return ("train", "test") if self.validation_images is None else ("train", "test", "validation")


def to_canonical(dataset: Dataset) -> Dataset:
    """Check a source's arrays and sort each split by the SHA-256 of image and label.

    tensorflow-datasets shuffles while it prepares, IDX files do not: after this the source no longer matters. A
    trailing channel axis of 1 is dropped for the same reason. The arrays are not copied: their rows are read in the new order.

    Raises:
        IntegrityError: naming the array and the rule that it breaks.
    """
    class_names = _to_class_names(dataset.class_names)
    if (dataset.validation_images is None) != (dataset.validation_labels is None):
        raise IntegrityError("dataset: validation_images and validation_labels go together; return both or neither")
    arrays: dict[str, Any] = {}
    for split in dataset.splits():
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        rows, labels = _canonical_split(split, images, labels, class_names)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = rows, labels
        _check_alike(split, rows, arrays["train_images"])
    return Dataset(**arrays, class_names=class_names)


def check_arrays(dataset: Dataset) -> None:
    """Check arrays that are in canonical order, as a file says that somebody may have written.

    Raises:
        IntegrityError: as from `to_canonical`; class names are no tuple of texts.
    """
    class_names = _to_class_names(dataset.class_names)
    for split in dataset.splits():
        rows, _ = _check_split(
            split, getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels"), class_names
        )
        _check_alike(split, rows, dataset.train_images)
    if class_names != dataset.class_names:
        raise IntegrityError("dataset: class_names must be a tuple of texts")


def _to_class_names(names: object) -> tuple[str, ...]:
    """The names as texts: what the metrics, the report and the export say about a class.

    Raises:
        IntegrityError: one of them cannot be shown, or says nothing, such as None.
    """
    if isinstance(names, np.ndarray) and names.ndim == 1:
        names = names.tolist()
    if not isinstance(names, Sequence) or isinstance(names, str | bytes):
        raise IntegrityError(f"dataset: class_names must be a tuple of names, received {type(names).__name__}")
    if len(names) < 2 or len(names) > MAX_CLASSES:
        raise IntegrityError(f"dataset: class_names must hold 2 to {MAX_CLASSES}, received {len(names)}")
    texts = [_to_class_name(name) for name in names]
    if any(masked(text) != text for text in texts):
        raise IntegrityError("dataset: class_names must hold no credentials, as they are recorded; leave them out")
    odd = next((text for text in texts if texts.count(text) > 1 or not text.isprintable()), None)
    if odd is not None:
        raise IntegrityError(f"dataset: class_names must be different printable texts, received {odd[:80]!a}")
    return tuple(texts)


def _to_class_name(name: object) -> str:
    is_text = isinstance(name, str | Enum) and bool(str(name).strip())
    is_number = isinstance(name, np.bool_) or (isinstance(name, Real) and math.isfinite(name))
    if not (is_text or is_number) or len(str(name)) > _MAX_NAME_CHARACTERS:
        received = ascii(name)[:80] if isinstance(name, str | bytes | float | None) else f"a {type(name).__name__}"
        raise IntegrityError(
            f"dataset: class_names must be texts or numbers, not empty and of at most {_MAX_NAME_CHARACTERS} characters, "
            f"received {received}"
        )
    return str(name)


def _check_alike(split: str, images: Images, train_images: Images) -> None:
    for what, one, other in (
        ("shape", train_images.shape[1:], images.shape[1:]),
        ("type", train_images.dtype, images.dtype),
    ):
        if one != other:
            raise IntegrityError(f"dataset: train and {split} images must have one {what}, received {one} and {other}")


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
    limit, images = int(Fraction(fraction) * 2**256), as_rows(dataset.train_images)
    is_validation = np.fromiter((_validation_key(image) < limit for image in images.each()), bool, len(images))
    _check_sides(dataset.train_labels, is_validation, fraction=fraction, class_names=dataset.class_names)
    return replace(
        dataset,
        train_images=images.only(~is_validation),
        train_labels=dataset.train_labels[~is_validation],
        validation_images=images.only(is_validation),
        validation_labels=dataset.train_labels[is_validation],
    )


def _validation_key(image: memoryview) -> int:
    """A number in 0..2^256 - 1 that follows from the image alone."""
    hasher = hashlib.sha256(_VALIDATION_SALT)
    hasher.update(image)
    return int.from_bytes(hasher.digest(), "big")


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


def count_leaked(dataset: Dataset) -> dict[str, int]:
    """How many images of each other split are in the training split too, byte for byte, whatever their labels are."""
    sums = _sums(dataset.train_images)
    return {split: _count_leaked(dataset, split, train_sums=sums) for split in dataset.splits() if split != "train"}


def _count_leaked(dataset: Dataset, split: str, *, train_sums: NDArray[np.uint64]) -> int:
    train, images = as_rows(dataset.train_images), as_rows(getattr(dataset, f"{split}_images"))
    sums = _sums(images)
    # Equal images have equal sums; the reverse is looked at byte by byte.
    likely = images.only(np.isin(sums, train_sums))
    known = {hashlib.sha256(image).digest() for image in train.only(np.isin(train_sums, sums)).each()}
    return sum(hashlib.sha256(image).digest() in known for image in likely.each())


def _sums(images: Images) -> NDArray[np.uint64]:
    """One number for each image, equal for equal ones: its bytes as words, times constants. 70,000 SHA-256 would take 0.4 s."""
    rows = as_rows(images)
    num_words = -(-rows.row_bytes // 8)
    factors = np.random.Generator(np.random.PCG64(0)).integers(0, 2**63, num_words, np.uint64) * 2 + 1
    sums = []
    for block in rows.blocks():
        flat = block.reshape(len(block), -1).view(np.uint8)
        words = np.pad(flat, ((0, 0), (0, 8 * num_words - flat.shape[1]))).view(np.uint64)
        sums.append(words @ factors)
    return np.concatenate(sums)


def _canonical_split(split: str, images: object, labels: object, class_names: tuple[str, ...]) -> tuple[Rows, Labels]:
    rows, checked = _check_split(split, images, labels, class_names)
    order = _canonical_order(rows, checked)
    return rows.only(order), checked[order]


def _check_split(split: str, images: object, labels: object, class_names: tuple[str, ...]) -> tuple[Rows, Labels]:
    rows = _check_images(split, images)
    checked = _check_labels(split, labels, num_images=len(rows), num_classes=len(class_names))
    if rows.dtype == np.float32:
        _check_values(split, rows)
    return rows, checked


def _to_array(split: str, what: str, value: object) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # whatever the user's own array raises, such as a file that was closed
        reason = f"{type(error).__name__}: {error}"
        raise IntegrityError(f"dataset: {split} {what} must be an array: {reason}") from error


def _check_images(split: str, value: object) -> Rows:
    """Images without a channel axis of 1, as uint8 or float32."""
    images = _to_array(split, "images", value)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    is_float = images.dtype.kind == "f"
    if (
        not (is_float or images.dtype == np.uint8)
        or images.ndim not in ((2, 3, 4) if is_float else (3, 4))
        or not images.size
    ):
        raise IntegrityError(
            f"dataset: {split} images must be uint8 [N, height, width] or [N, height, width, channels], or floats of these "
            f"shapes or [N, features], with N > 0, received {images.dtype} {list(images.shape)}"
        )
    return Rows(images, dtype=np.float32 if is_float else np.uint8)


def _check_labels(split: str, value: object, *, num_images: int, num_classes: int) -> Labels:
    labels = _to_array(split, "labels", value)
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (num_images,):
        raise IntegrityError(
            f"dataset: {split} labels must be integers, one for each of {num_images} images, received {labels.dtype} "
            f"{list(labels.shape)}"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise IntegrityError(
            f"dataset: {split} labels must be 0..{num_classes - 1}, received {labels[wrong[0]]} at position {wrong[0]}"
        )
    return labels.astype(np.int64)


def _check_values(split: str, rows: Rows) -> None:
    """Refuse floats that no arithmetic survives, and warn about those that look like unscaled pictures."""
    largest, position = 0.0, 0
    for block in rows.blocks():
        is_finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not is_finite.all():
            row = position + int(is_finite.argmin())
            raise IntegrityError(f"dataset: {split} images must be finite float32 numbers, row {row} holds another")
        largest, position = max(largest, float(np.abs(block).max())), position + len(block)
    if largest > _LARGEST_SCALED:
        warn(
            "data.unscaled",
            split=split,
            largest=largest,
            reason="floats are used as they are; scale them in your source",
        )


def _canonical_order(rows: Rows, labels: Labels) -> NDArray[np.intp]:
    """Positions of the rows, sorted by the SHA-256 of image and label.

    Of each SHA-256 8 bytes are kept: all 32 would weigh as much as a narrow table. Rows with the same 8 are compared whole.
    """
    label_bytes = labels.astype("<i8").data.cast("B")

    def digest(image: memoryview, position: int) -> bytes:
        hasher = hashlib.sha256(image)
        hasher.update(label_bytes[8 * position : 8 * position + 8])
        return hasher.digest()

    keys = np.fromiter(
        (int.from_bytes(digest(image, position)[:8], "big") for position, image in enumerate(rows.each())),
        np.uint64,
        len(rows),
    )
    order = np.argsort(keys, kind="stable")
    is_equal = np.diff(keys[order]) == 0
    is_tied = np.append(is_equal, False) | np.append(False, is_equal)
    order[is_tied] = sorted(order[is_tied], key=lambda row: digest(rows[row].data.cast("B"), row))
    return order
