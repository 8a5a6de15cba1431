"""The commands about training data: data prepare, data check."""

import os

from job import contract
from job.commands.cli import CommandLine
from job.config import Config
from job.config_sources import LoadedConfig
from job.datasets.prepared import choose_cache_dir
from job.store.open import open_store
from job.texts import quoted


def prepare(line: CommandLine, loaded: LoadedConfig) -> int:
    """Copy the dataset's four files, verified, to where data.source=idx reads them."""
    from job.datasets.mirror import prepare_mirror

    target, dataset = line.options.to, loaded.config.data.dataset
    store = open_store(loaded.config.store, environ=os.environ, uri=target)
    written = prepare_mirror(
        store,
        dataset=dataset,
        source=line.options.source,
        cache_dir=choose_cache_dir(loaded.config.data, environ=os.environ),
    )
    done = (
        f"{len(written)} files verified and written to {store.uri}"
        if written
        else f"verified, and in {store.uri} already"
    )
    print(f"{dataset}: {done}; use --data.source=idx --data.uri={quoted(target)}")
    return contract.ExitCode.OK


def check(line: CommandLine, loaded: LoadedConfig) -> int:
    """Say whether the configured data can be had: 0 when, and only when, a run would get them."""
    from job.datasets.load import check_source

    config = loaded.config
    check_source(config.data)
    way = _find_tfds(config, seconds=line.options.timeout) if config.data.source == "tfds" else None
    if way:
        print(f"{config.data.name}: {way}")
        return contract.ExitCode.OK
    from job.training.examples import load_examples

    data = load_examples(config, environ=os.environ)
    if config.data.source == "tfds":
        print(f"{data.name}: a prepared copy is in the cache")
    else:
        print(
            f"{data.name}: {len(data.dataset.train_labels)} + {len(data.dataset.test_labels)} examples, {data.digest}"
        )
    return contract.ExitCode.OK


def _find_tfds(config: Config, *, seconds: float) -> str:
    """Where the dataset would come from; empty when the cache holds it, whose content is then looked at.

    Raises:
        UnavailableError: it would be downloaded, and cannot be reached within `seconds`.
        NotFoundError, IntegrityError: a file is missing in the folder of downloads, or is another.
        AccessDeniedError: it would be prepared, and the cache cannot be written.
    """
    from job.datasets.tfds import find_files, has_copy, read_prepared

    name, downloads_dir = config.data.dataset, config.data.downloads_dir
    cache_dir = choose_cache_dir(config.data, environ=os.environ)
    if has_copy(name, cache_dir=cache_dir) or read_prepared(name, cache_dir=cache_dir):
        return ""
    find_files(name, cache_dir=cache_dir, manual_dir=downloads_dir, seconds=seconds)
    return f"the downloaded files are in {downloads_dir}" if downloads_dir else "the download can be reached"
