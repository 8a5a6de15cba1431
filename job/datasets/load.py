"""Brings the configured dataset: from its source, in canonical order with its digest, cut to the configured limits."""

import importlib
import socket
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from job.config import SOURCES, DataSection
from job.datasets.dataset import Dataset, count_leaked, split_validation, with_digest
from job.datasets.rows import as_rows
from job.errors import ConfigError, IntegrityError, UnavailableError
from job.logs import warn
from job.plugins import call_function, check_exists
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


def check_source(config: DataSection) -> None:
    """Find a typo in the name or the arguments of an own source, without importing it.

    Raises:
        ConfigError: there is no such function, or it does not take `data.args`.
    """
    if config.source not in SOURCES:
        check_exists(config.source, field="data.source", keywords=config.args)


def load_dataset(config: DataSection, *, cache_dir: Path, open_folder: Callable[[str], Store | Path]) -> LoadedDataset:
    """Bring the configured dataset.

    Args:
        open_folder: opens `data.uri`, as a local folder or a store.

    Raises:
        IntegrityError: corrupt, mis-shaped or mislabelled data of a built-in source.
        NotFoundError, UnavailableError, AccessDeniedError: the source could not be read.
        ConfigError: limits above what the dataset has; an own source that cannot be imported, raises, or returns something wrong;
            a validation split that is given twice, or that cannot be taken.
    """
    canonical, digest = _from_source(config, cache_dir=cache_dir, open_folder=open_folder)
    # The limits come after the split: an image is on the same side whatever `data.train_examples` is.
    dataset = _limit(_split(canonical, config), config)
    _warn_of_leakage(dataset)
    return LoadedDataset(name=config.name, digest=digest, dataset=dataset)


def _warn_of_leakage(dataset: Dataset) -> None:
    leaked = count_leaked(dataset)
    if any(leaked.values()):
        reason = "these images are in the training split too: what a model remembers counts as what it learned"
        warn("data.leakage", **leaked, reason=reason)


def _from_source(
    config: DataSection, *, cache_dir: Path, open_folder: Callable[[str], Store | Path]
) -> tuple[Dataset, str]:
    """The dataset in canonical order, and its digest."""
    if config.source in SOURCES:
        source: Source = importlib.import_module(SOURCES[config.source])
        return source.load(config, cache_dir=cache_dir, open_folder=open_folder)
    return _from_own_source(config)


def _from_own_source(config: DataSection) -> tuple[Dataset, str]:
    """What the user's function returns. What is wrong with it is a bug in that function, unless the network failed it."""
    try:
        made = call_function(config.source, field="data.source", keywords=config.args)
    except ConfigError as error:
        if _is_network_failure(error.__cause__):
            raise UnavailableError(str(error)) from error
        raise
    if not isinstance(made, Dataset):
        raise ConfigError(
            f"data.source: {config.source} must return job.datasets.Dataset, received {type(made).__name__}"
        )
    try:
        return with_digest(made)
    except IntegrityError as error:
        raise ConfigError(f"data.source: {config.source} returned a {error}") from error


def _is_network_failure(error: BaseException | None) -> bool:
    import requests

    return isinstance(
        error, (ConnectionError, TimeoutError, socket.gaierror, urllib.error.URLError, requests.RequestException)
    )


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
