"""The cached plain copy of a prepared dataset, and where it is kept."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from stat import S_ISDIR, S_IWOTH

import numpy as np

from job import ambient, records
from job.config import MAX_DATA_BYTES, DataSection
from job.datasets.dataset import ARRAYS, Dataset, check_arrays, digest_of, with_digest
from job.errors import AccessDeniedError, IntegrityError
from job.logs import warn

_ORDER = "sha256(image, label)"
"""Canonical order; a cached copy in another one would silently give another digest."""


def plain_copy_path(cache_dir: Path, *, name: str) -> Path:
    """Where the prepared plain copy of a dataset is kept."""
    return cache_dir / f"{name.replace('/', '_')}.safetensors"


def read_or_make(path: Path, make: Callable[[], Dataset]) -> tuple[Dataset, str]:
    """The dataset in canonical order, and its digest: from the copy, or made and copied.

    tensorflow-datasets takes seconds to import and read; a plain copy of what it gave takes 0.1 s.
    """
    copy = read_plain_copy(path)
    if copy:
        return copy
    dataset, digest = with_digest(make())
    _write_plain_copy(path, dataset, digest=digest)
    return dataset, digest


def read_plain_copy(path: Path) -> tuple[Dataset, str] | None:
    """A prepared dataset and its digest from the cache; None when there is none, or none that can be used."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.exists():
            return None
        if not path.is_file():  # such as a pipe, which may never say anything
            raise ValueError("it is no file")
        records.check_size(path.stat().st_size, name="it", max_bytes=MAX_DATA_BYTES)
        with safe_open(path, framework="numpy") as file:
            meta = records.parse_object(file.metadata()["dataset"], name="what it says of its arrays")
            arrays = {name: file.get_tensor(name) for name in ARRAYS}
        dataset = Dataset(**arrays, class_names=tuple(meta["class_names"]))
        if meta["order"] != _ORDER:
            raise ValueError("it is in the order of another version")
        if digest_of(dataset) != meta["digest"]:
            raise ValueError("the content does not match its digest")
        check_arrays(dataset)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IntegrityError) as error:
        warn("data.cache_unusable", path=str(path), reason=str(error), action="prepared again")
        return None
    return dataset, meta["digest"]


def _write_plain_copy(path: Path, dataset: Dataset, *, digest: str) -> None:
    """Keep the copy for the next run; a cache that cannot be written costs time, never the run."""
    from safetensors.numpy import save

    from job.store.folder import FolderBackend

    meta = {"class_names": dataset.class_names, "digest": digest, "order": _ORDER}
    data = save(
        {name: np.asarray(getattr(dataset, name)) for name in ARRAYS}, {"dataset": json.dumps(meta, sort_keys=True)}
    )
    try:
        FolderBackend(path.parent).put(path.name, data)
    except Exception as error:  # noqa: BLE001
        warn("data.cache_not_written", path=str(path), reason=str(error))


def choose_cache_dir(config: DataSection, *, environ: Mapping[str, str]) -> Path:
    """Where prepared data is kept: as configured, in the user's cache folder, or without a home in a temporary one.

    Raises:
        NotFoundError: a file stands there, or a link that leads nowhere.
        AccessDeniedError: without a home, the folder in the temporary one is not this user's own.
    """
    from job.store.folder import check_way

    base, home = environ.get("XDG_CACHE_HOME"), ambient.home_folder()
    if config.cache_dir:
        cache_dir = config.cache_dir
    elif base or home:
        cache_dir = (Path(base) if base else Path(home or "") / ".cache") / "mnist-train"
    else:
        cache_dir = ambient.temporary_root() / f"mnist-train-{os.getuid()}"
    if config.source == "tfds":  # the others keep nothing there
        check_way(cache_dir, name="data.cache_dir")
        if not (config.cache_dir or base or home):
            _check_is_ours(cache_dir)
    return cache_dir


def _check_is_ours(folder: Path) -> None:
    """Refuse a folder in a place where everybody may make one, when another user has made it, or may write in it."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    is_shared = status.st_mode & S_IWOTH
    if not S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or is_shared:
        raise AccessDeniedError(
            f"data.cache_dir: {folder} is a link, of another user, or writable for all: what is cached there may be of somebody "
            "else; remove it, or set data.cache_dir"
        )
