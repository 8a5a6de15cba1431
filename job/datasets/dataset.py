"""Examples from any source as verified arrays in one canonical order, with one digest.

Owns what a dataset is, the checks it must pass before step 1, canonical order, digest, limits, and the plain copy in
the cache. The sources themselves are in `idx.py`, `tfds_source.py` and `digits/`.
"""

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.config import BUILT_IN_SOURCES, DataSection
from job.errors import ConfigError, IntegrityError
from job.logs import warn
from job.store.store import Store

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

MAX_CLASSES = 1000
_ORDER = "sha256(image, label)"
"""Canonical order; a cached copy in another one would silently give another digest."""

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_TEST_ARRAYS = _ARRAYS[2:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Two splits of labelled images; what a source returns, your own included.

    Attributes:
        train_images: uint8 [N, height, width] or [N, height, width, channels], 0..255.
        train_labels: int64 [N] in 0..len(class_names) - 1.
        test_images: uint8 [M, ...] of the same image shape.
        test_labels: int64 [M].
        class_names: one name per class, in label order.
    """

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, such as (28, 28)."""
        return self.train_images.shape[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDataset:
    """A dataset ready for training: verified, in canonical order, cut to the configured limits."""

    name: str
    digest: str
    """SHA-256 over both whole splits in canonical order, before the limits."""
    dataset: Dataset


def load_dataset(config: DataSection, *, cache_dir: Path, open_folder: Callable[[str], Store | Path]) -> LoadedDataset:
    """Bring the configured dataset.

    Args:
        open_folder: opens `data.uri`, as a local folder or a store.

    Raises:
        IntegrityError: corrupt, mis-shaped or mislabelled data.
        NotFoundError, UnavailableError, AccessDeniedError: the source could not be read.
        ConfigError: limits above what the dataset has; an own source that cannot be imported.
    """
    if config.source == "tfds":
        canonical, digest = _through_cache(config, cache_dir=cache_dir)
    else:
        canonical = to_canonical(_from_source(config, open_folder=open_folder))
        digest = digest_of(canonical)
    return LoadedDataset(name=config.name, digest=digest, dataset=_limit(canonical, config))


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


def digest_of(dataset: Dataset) -> str:
    """SHA-256 over the arrays' shapes and bytes, in the order they have now. Class names are not part of it."""
    return _digest(dataset, _ARRAYS)


def evaluation_digest_of(dataset: Dataset) -> str:
    """SHA-256 over the test split as it is used: two models scored on one such digest saw the same examples."""
    return _digest(dataset, _TEST_ARRAYS)


def _digest(dataset: Dataset, names: tuple[str, ...]) -> str:
    sha256 = hashlib.sha256()
    for name in names:
        array = np.ascontiguousarray(getattr(dataset, name))
        sha256.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha256.update(array.data)
    return sha256.hexdigest()


def plain_copy_path(cache_dir: Path, *, name: str) -> Path:
    """Where the prepared plain copy of a dataset is kept."""
    return cache_dir / f"{name.replace('/', '_')}.safetensors"


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


def _limit(dataset: Dataset, config: DataSection) -> Dataset:
    """Keep the first rows; canonical order is by hash, so they are a fair sample."""
    for field, limit, available in (
        ("train_examples", config.train_examples, len(dataset.train_labels)),
        ("test_examples", config.test_examples, len(dataset.test_labels)),
    ):
        if limit is not None and limit > available:
            raise ConfigError(f"data.{field}: must be at most the {available} that {config.name} has, received {limit}")
    return replace(
        dataset,
        train_images=dataset.train_images[: config.train_examples],
        train_labels=dataset.train_labels[: config.train_examples],
        test_images=dataset.test_images[: config.test_examples],
        test_labels=dataset.test_labels[: config.test_examples],
    )


def _from_source(config: DataSection, *, open_folder: Callable[[str], Store | Path]) -> Dataset:
    if config.source == "digits":
        from job.datasets.digits import load_digits

        return load_digits()
    if config.source == "idx":
        from job.datasets.idx import load_idx

        assert config.uri is not None  # the config's own check
        return load_idx(open_folder(config.uri), dataset=config.dataset)
    assert config.source not in BUILT_IN_SOURCES
    made = import_function(config.source, field="data.source")()
    if not isinstance(made, Dataset):
        raise ConfigError(
            f"data.source: {config.source} must return job.datasets.dataset.Dataset, received {type(made).__name__}"
        )
    return made


def import_function(name: str, *, field: str) -> Callable[..., object]:
    """Import `package.module:function`.

    Raises:
        ConfigError: no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{field}: {name} cannot be imported: {error}; is its package in the image?") from error
    if not callable(function):
        raise ConfigError(f"{field}: {name} must be a function, received {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def _through_cache(config: DataSection, *, cache_dir: Path) -> tuple[Dataset, str]:
    """tensorflow-datasets takes seconds to import and read; a plain copy of what it gave takes 0.1 s."""
    path = plain_copy_path(cache_dir, name=config.dataset)
    copy = read_plain_copy(path)
    if copy:
        return copy
    from job.datasets.tfds import load_tfds

    dataset = to_canonical(load_tfds(config.dataset, cache_dir=cache_dir, manual_dir=config.uri))
    digest = digest_of(dataset)
    _write_plain_copy(path, dataset, digest=digest)
    return dataset, digest


def read_plain_copy(path: Path) -> tuple[Dataset, str] | None:
    """A prepared dataset and its digest from the cache; None when there is none, or none that can be used."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.exists():
            return None
        with safe_open(path, framework="numpy") as file:
            meta = json.loads(file.metadata()["dataset"])
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        dataset = Dataset(**arrays, class_names=tuple(meta["class_names"]))
        if meta["order"] != _ORDER:
            raise ValueError("it is in the order of another version")
        if digest_of(dataset) != meta["digest"]:
            raise ValueError("the content does not match its digest")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        warn("data.cache_unusable", path=str(path), reason=str(error), action="prepared again")
        return None
    return dataset, meta["digest"]


def _write_plain_copy(path: Path, dataset: Dataset, *, digest: str) -> None:
    """Keep the copy for the next run; a cache that cannot be written costs time, never the run."""
    from safetensors.numpy import save

    from job.store.folder import FolderBackend

    meta = {"class_names": dataset.class_names, "digest": digest, "order": _ORDER}
    data = save({name: getattr(dataset, name) for name in _ARRAYS}, {"dataset": json.dumps(meta, sort_keys=True)})
    try:
        FolderBackend(path.parent).put(path.name, data)
    except Exception as error:  # noqa: BLE001
        warn("data.cache_not_written", path=str(path), reason=str(error))
