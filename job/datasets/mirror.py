"""A mirror of a dataset's four files in a folder or store, for clusters without a network: `data prepare`."""

from pathlib import Path

from job.datasets.idx import FILES, PINNED_SHA256, read_files
from job.errors import ConfigError, ConflictError, IntegrityError, NotFoundError
from job.store.store import Store


def prepare_mirror(store: Store, *, dataset: str, source: Path | None, cache_dir: Path) -> list[str]:
    """Write the verified files to the root of `store`; returns the names of those that were not there yet.

    Args:
        source: folder that holds the files; None downloads them through tensorflow-datasets.

    Raises:
        ConfigError: the dataset does not come as four files.
        ConflictError: other content is there already: nothing is written.
        IntegrityError, NotFoundError, UnavailableError: the source's own failures.
    """
    if dataset not in PINNED_SHA256:
        raise ConfigError(f"data.dataset: must be one of {', '.join(PINNED_SHA256)} to be mirrored, received {dataset}")
    files = _copy(source, dataset) if source else _download(dataset, cache_dir=cache_dir)
    wanted = {FILES[part]: data for part, data in files.items()}
    standing = {name: _read_standing(store, name, num_bytes=len(data)) for name, data in wanted.items()}
    for name, data in wanted.items():
        _refuse_other(store, name, is_same=standing[name] in (None, data))
    missing = [name for name, data in standing.items() if data is None]
    for name in missing:
        _refuse_other(store, name, is_same=store.create(name, wanted[name]) == wanted[name])
    return missing


def _read_standing(store: Store, name: str, *, num_bytes: int) -> bytes | None:
    """What is there already, and is no longer than what shall be there."""
    try:
        return store.get(name, max_bytes=num_bytes)
    except IntegrityError as error:
        raise ConflictError(f"{error}: it is other content; choose an empty place") from error


def _refuse_other(store: Store, name: str, *, is_same: bool) -> None:
    if not is_same:
        raise ConflictError(f"{store.location(name)} holds other content; choose an empty place")


def _copy(source: Path, dataset: str) -> dict[str, bytes]:
    missing = [source / name for name in FILES.values() if not (source / name).is_file()]
    if missing:
        raise NotFoundError(f"--from: {missing[0]} does not exist; name the folder that holds the four .gz files")
    return {part: data for part, (_, data) in read_files(source, dataset=dataset, is_canonical=True).items()}


def _download(dataset: str, *, cache_dir: Path) -> dict[str, bytes]:
    """The files as tensorflow-datasets downloads them."""
    from job.datasets.tfds import download_files

    paths = download_files(dataset, cache_dir=cache_dir)
    return {part: paths[name].read_bytes() for part, name in FILES.items()}
