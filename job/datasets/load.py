"""Brings the configured dataset: from its source, in canonical order with its digest, cut to the configured limits."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from job.config import SOURCES, DataSection
from job.datasets.dataset import Dataset, split_validation, with_digest
from job.datasets.rows import as_rows
from job.errors import ConfigError
from job.plugins import import_function
from job.store.store import Store


class Source(Protocol):
    """The module of a built-in source."""

    def load(
        self, config: DataSection, *, cache_dir: Path, open_folder: Callable[[str], Store | Path]
    ) -> tuple[Dataset, str]:
        """The dataset in canonical order, and its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDataset:
    """A dataset ready for training: verified, in canonical order, split as configured, then cut to the configured limits."""

    name: str
    digest: str
    """SHA-256 over the source's whole splits in canonical order, before `data.validation_fraction` and the limits."""
    dataset: Dataset


def load_dataset(config: DataSection, *, cache_dir: Path, open_folder: Callable[[str], Store | Path]) -> LoadedDataset:
    """Bring the configured dataset.

    Args:
        open_folder: opens `data.uri`, as a local folder or a store.

    Raises:
        IntegrityError: corrupt, mis-shaped or mislabelled data.
        NotFoundError, UnavailableError, AccessDeniedError: the source could not be read.
        ConfigError: limits above what the dataset has; an own source that cannot be imported; a validation split that is given
            twice, or that cannot be taken.
    """
    canonical, digest = _from_source(config, cache_dir=cache_dir, open_folder=open_folder)
    # The limits come after the split: an image is on the same side whatever `data.train_examples` is.
    return LoadedDataset(name=config.name, digest=digest, dataset=_limit(_split(canonical, config), config))


def _from_source(
    config: DataSection, *, cache_dir: Path, open_folder: Callable[[str], Store | Path]
) -> tuple[Dataset, str]:
    """The dataset in canonical order, and its digest."""
    if config.source in SOURCES:
        source: Source = importlib.import_module(SOURCES[config.source])
        return source.load(config, cache_dir=cache_dir, open_folder=open_folder)
    made = import_function(config.source, field="data.source")()
    if not isinstance(made, Dataset):
        raise ConfigError(
            f"data.source: {config.source} must return job.datasets.Dataset, received {type(made).__name__}"
        )
    return with_digest(made)


def _split(dataset: Dataset, config: DataSection) -> Dataset:
    """With the source's own validation split, or the configured one, or none."""
    if not config.validation_fraction:
        return dataset
    if dataset.validation_labels is not None:
        raise ConfigError(
            f"data.validation_fraction: must be 0 with a source that has its own validation split, received "
            f"{config.validation_fraction} and {len(dataset.validation_labels)} examples of {config.source}; drop one of the two"
        )
    return split_validation(dataset, config.validation_fraction)


def _limit(dataset: Dataset, config: DataSection) -> Dataset:
    """Keep the first rows; canonical order is by hash, so they are a fair sample."""
    for field, limit, available in (
        ("train_examples", config.train_examples, len(dataset.train_labels)),
        ("test_examples", config.test_examples, len(dataset.test_labels)),
    ):
        if limit is not None and limit > available:
            rest = " after data.validation_fraction" if field == "train_examples" and config.validation_fraction else ""
            raise ConfigError(
                f"data.{field}: must be at most the {available} that {config.name} has{rest}, received {limit}"
            )
    return replace(
        dataset,
        train_images=as_rows(dataset.train_images).only(slice(config.train_examples)),
        train_labels=dataset.train_labels[: config.train_examples],
        test_images=as_rows(dataset.test_images).only(slice(config.test_examples)),
        test_labels=dataset.test_labels[: config.test_examples],
    )
