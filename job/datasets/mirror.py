"""A mirror of a dataset's four files in a folder or store, for clusters without a network: `data prepare`."""

from pathlib import Path

from job.datasets.idx import FILES, PINNED_SHA256, read_files
from job.errors import ConfigError, ConflictError
from job.store.store import Store


def prepare_mirror(store: Store, *, dataset: str, source: Path | None, cache_dir: Path) -> list[str]:
    """Write the verified files to the root of `store`; returns their names.

    Args:
        source: folder that holds the files; None downloads them through tensorflow-datasets.

    Raises:
        ConfigError: the dataset does not come as four files.
        ConflictError: other content is there already.
        IntegrityError, NotFoundError, UnavailableError: the source's own failures.
    """
    if dataset not in PINNED_SHA256:
        raise ConfigError(f"data.dataset: must be one of {', '.join(PINNED_SHA256)} to be mirrored, received {dataset}")
    files = _copy(source, dataset) if source else _download(dataset, cache_dir=cache_dir)
    for part, data in files.items():
        if store.create(FILES[part], data) != data:
            raise ConflictError(f"{store.location(FILES[part])} holds other content; choose an empty place")
    return [FILES[part] for part in files]


def _copy(source: Path, dataset: str) -> dict[str, bytes]:
    return {part: data for part, (_, data) in read_files(source, dataset=dataset, is_canonical=True).items()}


def _download(dataset: str, *, cache_dir: Path) -> dict[str, bytes]:
    """The files as tensorflow-datasets downloads them."""
    from job.datasets.tfds import download_files

    paths = download_files(dataset, cache_dir=cache_dir)
    return {part: paths[name].read_bytes() for part, name in FILES.items()}
