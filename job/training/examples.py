"""The examples of a run: brought from their source, held to the memory of the pod, and told in the log."""

from collections.abc import MutableMapping

from job.config import SOURCES, Config
from job.contract import Event
from job.datasets.dataset import Dataset
from job.datasets.load import LoadedDataset, load_dataset
from job.datasets.prepared import choose_cache_dir
from job.errors import ConfigError, IntegrityError, JobError
from job.logs import emit, warn
from job.store.open import folder_opener
from job.training import devices

_TRAINING_BYTES = 100_000_000
"""What the smallest model takes after the data are there; a large one takes more, which is not estimated."""

_SMALL_DATA_BYTES = 64_000_000
"""Examples below it are not what fills a pod."""


def load_examples(config: Config, *, environ: MutableMapping[str, str]) -> LoadedDataset:
    """The three splits, or two.

    Raises:
        JobError: as from `load_dataset`; no validation split where the settings need one.
    """
    limit = devices.memory_limit()
    try:
        with devices.held_to_memory(limit):
            data = load_dataset(
                config.data,
                cache_dir=choose_cache_dir(config.data, environ=environ),
                open_folder=folder_opener(config.store, environ=environ),
            )
    except MemoryError as error:
        raise _does_not_fit(config, f"loading them asked for more: {error}", limit=limit) from error
    _check_memory(config, data.dataset, limit=limit)
    validation_labels = data.dataset.validation_labels
    if config.train.needs_validation and validation_labels is None:
        raise ConfigError(
            "train.early_stopping_patience and train.keep=best look at a validation split; "
            f"{config.data.source} returned none: return validation_images and validation_labels, or set data.validation_fraction"
        )
    more = {"validation_examples": len(validation_labels)} if validation_labels is not None else {}
    emit(
        Event.DATA_READY,
        dataset=data.name,
        digest=data.digest,
        train_examples=len(data.dataset.train_labels),
        test_examples=len(data.dataset.test_labels),
        **more,
        image_shape=list(data.dataset.image_shape),
    )
    if config.data.source == "digits":
        warn("data.not_mnist", reason="these are 1,797 small digits that come with the package, not MNIST")
    return data


def _check_memory(config: Config, dataset: Dataset, *, limit: int | None) -> None:
    """Refuse examples beside which training cannot have what it takes at the least.

    Raises:
        ConfigError, IntegrityError: as from `_does_not_fit`.
    """
    in_use, num_bytes = devices.memory_in_use().get("RssAnon", 0), dataset.bytes_in_memory
    if limit is None or num_bytes < _SMALL_DATA_BYTES or in_use + _TRAINING_BYTES <= limit:
        return
    parts = (_megabytes(size) for size in (num_bytes, in_use, _TRAINING_BYTES))
    said = "they take {}, this process {}, and training at least {} more".format(*parts)
    raise _does_not_fit(config, said, limit=limit)


def _does_not_fit(config: Config, reason: str, *, limit: int | None) -> JobError:
    """64 where the user's own source made the examples, 65 where a built-in source did."""
    of_pod = f"the pod's memory limit of {_megabytes(limit)}" if limit is not None else "memory"
    message = f"data.source: the examples of {config.data.name} do not fit into {of_pod}: {reason}; raise the limit"
    if config.data.source in SOURCES:
        return IntegrityError(message)
    return ConfigError(f"{message}, or return a numpy.memmap, which stays in its file")


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"
