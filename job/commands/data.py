"""The commands about training data: data prepare, data check."""

import os
from pathlib import Path

from job import contract
from job.commands.cli import CommandLine
from job.config import Config
from job.config_sources import LoadedConfig
from job.datasets.prepared import choose_cache_dir
from job.store.open import folder_opener, is_store_uri, open_store


def prepare(line: CommandLine, loaded: LoadedConfig) -> int:
    """Copy the dataset's four files, verified, to where data.source=idx reads them."""
    from job.datasets.mirror import prepare_mirror

    target, dataset = line.options.to, loaded.config.data.dataset
    uri = target if is_store_uri(target) else f"file:{Path(target).absolute()}"
    store = open_store(loaded.config.store, environ=os.environ, uri=uri)
    written = prepare_mirror(
        store,
        dataset=dataset,
        source=Path(line.options.source) if line.options.source else None,
        cache_dir=choose_cache_dir(loaded.config.data, environ=os.environ),
    )
    done = (
        f"{len(written)} files verified and written to {store.uri}"
        if written
        else f"verified, and in {store.uri} already"
    )
    print(f"{dataset}: {done}; use --data.source=idx --data.uri={target}")
    return contract.ExitCode.OK


def check(line: CommandLine, loaded: LoadedConfig) -> int:
    """Say quickly whether the configured data can be had."""
    config = loaded.config
    if config.data.source == "tfds":
        print(f"{config.data.name}: {_find_tfds(config, seconds=line.options.timeout)}")
        return contract.ExitCode.OK
    from job.datasets.load import load_dataset

    data = load_dataset(
        config.data,
        cache_dir=choose_cache_dir(config.data, environ=os.environ),
        open_folder=folder_opener(config.store, environ=os.environ),
    )
    print(f"{data.name}: {len(data.dataset.train_labels)} + {len(data.dataset.test_labels)} examples, {data.digest}")
    return contract.ExitCode.OK


def _find_tfds(config: Config, *, seconds: float) -> str:
    """Where the dataset would come from.

    Raises:
        UnavailableError: it would be downloaded, and cannot be reached within `seconds`.
        NotFoundError: a file is missing in the folder of downloads.
    """
    from job.datasets.tfds import check_manual_dir, is_prepared, probe

    if is_prepared(config.data.dataset, cache_dir=choose_cache_dir(config.data, environ=os.environ)):
        return "a prepared copy is in the cache"
    if config.data.uri is not None:
        check_manual_dir(config.data.dataset, Path(config.data.uri))
        return f"the downloaded files are in {config.data.uri}"
    probe(config.data.dataset, seconds=seconds)
    return "the download can be reached"
