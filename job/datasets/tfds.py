"""MNIST and its siblings through tensorflow-datasets, prepared into a cache folder.

Owns the calls to tensorflow-datasets and the translation of its failures. Importing this module is cheap; the
library itself is imported when a dataset is read.
"""

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from job import clock
from job.config import DataSection
from job.datasets.dataset import Dataset
from job.datasets.prepared import plain_copy_path, read_or_make, read_plain_copy
from job.errors import AccessDeniedError, IntegrityError, JobError, NotFoundError, UnavailableError
from job.logs import emit, warn
from job.texts import one_line

PROBE_SECONDS = 4.0
_STALE_SECONDS = 86_400.0
_OWN_PREFIX = ".preparing-"
_NO_ROOM = ("Not enough disk space", "No space left on device", "Disk quota exceeded")
"""What tensorflow-datasets and TensorFlow say without an errno."""
_OTHER_WAYS = (
    "other ways: data.uri=FOLDER with the downloaded files, data.source=idx with the four .gz files in a folder or store, "
    "or the embedded data.source=digits"
)


def load(config: DataSection, *, cache_dir: Path, open_folder: object) -> tuple[Dataset, str]:
    """The dataset in canonical order, and its digest; through the plain copy in the cache.

    Raises:
        JobError: as from `load_tfds`, and what is wrong with the arrays.
    """
    return read_or_make(
        plain_copy_path(cache_dir, name=config.dataset),
        lambda: load_tfds(config.dataset, cache_dir=cache_dir, manual_dir=config.downloads_dir),
    )


def load_tfds(name: str, *, cache_dir: Path, manual_dir: Path | None) -> Dataset:
    """Read a dataset, preparing it first when the cache does not have it, or has one that cannot be read.

    It is prepared in a folder of this process and moved into the cache in one step: several processes may do so at once, and one
    that is killed leaves nothing that another would read.

    Args:
        name: as tensorflow-datasets calls it, such as `mnist` or `emnist/digits`.
        manual_dir: folder with the downloaded files; nothing is fetched then.

    Raises:
        UnavailableError: the download could not be reached, within seconds; no room.
        IntegrityError: a file is not what its checksum says.
        NotFoundError: a file is missing in `manual_dir`.
        AccessDeniedError: the cache cannot be written.
    """
    dataset = read_prepared(name, cache_dir=cache_dir)
    if dataset:
        return dataset
    files = find_files(name, cache_dir=cache_dir, manual_dir=manual_dir, seconds=PROBE_SECONDS)
    return _prepare(name, files, data_dir=cache_dir / "tfds")


def download_files(name: str, *, cache_dir: Path) -> dict[str, Path]:
    """The downloaded files of a dataset, each what its checksum says: name -> path. Downloads those that the cache has not.

    Raises:
        JobError: as from `load_tfds`.
    """
    files = find_files(name, cache_dir=cache_dir, manual_dir=None, seconds=PROBE_SECONDS)
    if len(files) < len(_downloads(name)):
        _prepare(name, files, data_dir=cache_dir / "tfds")
        files = _find_downloads(name, cache_dir=cache_dir)
    if len(files) < len(_downloads(name)):
        raise NotFoundError(
            f"the downloaded files of {name} cannot be kept in {cache_dir}/tfds/downloads; use --from DIR"
        )
    return files


def has_copy(name: str, *, cache_dir: Path) -> bool:
    """Whether the cache holds a plain copy that can be used; does not import tensorflow-datasets."""
    return read_plain_copy(plain_copy_path(cache_dir, name=name)) is not None


def read_prepared(name: str, *, cache_dir: Path) -> Dataset | None:
    """What tensorflow-datasets has prepared in the cache; None when there is nothing, or nothing that can be used."""
    data_dir = cache_dir / "tfds"
    if not _has_prepared(data_dir / name):
        return None
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        return _read(builder, tfds) if builder.is_prepared() else None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes the library raise
        warn(
            "data.cache_unusable", path=str(data_dir / name), reason=one_line(error, limit=300), action="prepared again"
        )
        return None


def _has_prepared(folder: Path) -> bool:
    """Whether some version of a dataset may be there, told without importing tensorflow-datasets."""
    try:
        return any(folder.glob("*/dataset_info.json"))
    except OSError:  # a folder that may not be entered; the write that follows says so
        return False


def find_files(name: str, *, cache_dir: Path, manual_dir: Path | None, seconds: float) -> dict[str, Path]:
    """The downloaded files of a dataset that are at hand, each what its checksum says: name -> path.

    They are all in `manual_dir`, or some were downloaded before and the others can be.

    Raises:
        NotFoundError: one is missing in `manual_dir`.
        IntegrityError: one in `manual_dir` is another.
        UnavailableError: one has to be downloaded, and no answer comes within `seconds`.
        AccessDeniedError: the cache cannot be written.
    """
    if manual_dir is not None:
        files = _files_in(name, manual_dir)
    else:
        files = _find_downloads(name, cache_dir=cache_dir)
        if len(files) < len(_downloads(name)):
            probe(name, seconds=seconds)
    _check_writable(cache_dir / "tfds")
    return files


def _check_writable(folder: Path) -> None:
    """Refuse at once what a preparation of half a minute would find at its end."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))  # noqa: PTH110 - never raises
    if not there.is_dir():
        raise NotFoundError(f"data.cache_dir: {there} is a file, and must be a folder; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise AccessDeniedError(f"data.cache_dir: {folder} cannot be written; choose another folder")


def probe(name: str, *, seconds: float) -> None:
    """Find out within `seconds` whether the download can be reached; the library itself tries for minutes.

    Raises:
        UnavailableError: no answer, or a refusal.
    """
    url = _downloads(name)[0].url
    failure: list[str] = ["no answer"]

    def ask() -> None:
        import requests

        try:
            reply = requests.head(url, timeout=seconds, allow_redirects=True)
            failure[0] = "" if reply.status_code < 400 else f"status {reply.status_code}"
        except requests.RequestException as error:
            failure[0] = type(error).__name__

    # A name look-up has no time-out of its own: the thread is left behind when it takes too long.
    thread = threading.Thread(target=ask, daemon=True, name="probe")
    thread.start()
    thread.join(seconds)
    if failure[0]:
        raise UnavailableError(f"data.source=tfds: {url} cannot be reached ({failure[0]}); {_OTHER_WAYS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Download:
    """A file that a dataset is made of, as tensorflow-datasets knows it."""

    url: str
    sha256: str
    name: str


def _downloads(name: str) -> list[_Download]:
    """From the checksum list inside tensorflow-datasets, read without importing it."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    if spec is None or spec.origin is None:
        raise NotFoundError(
            "data.source: tfds needs tensorflow-datasets, which is not installed; install what uv.lock names"
        )
    listing = Path(spec.origin).parent / "url_checksums" / f"{name.partition('/')[0]}.txt"
    lines = (line.split("\t") for line in listing.read_text(encoding="utf-8").splitlines() if line)
    return [_Download(url=url, sha256=sha256, name=file_name) for url, _, sha256, file_name in lines]


def _files_in(name: str, folder: Path) -> dict[str, Path]:
    """The downloaded files of a dataset in a folder of the user's."""
    files = {download.name: folder / download.name for download in _downloads(name)}
    missing = next((path for path in files.values() if not path.is_file()), None)
    if missing:
        raise NotFoundError(f"data.uri: {missing} does not exist; put the downloaded files of {name} there")
    for download in _downloads(name):
        path = files[download.name]
        try:
            received = _sha256_of(path)
        except OSError as error:
            raise AccessDeniedError(f"data.uri: {path} cannot be read: {error.strerror}") from error
        if received != download.sha256:
            raise IntegrityError(
                f"data.source=tfds: a file of {name} is not what its checksum says: the SHA-256 of {path} is "
                f"{received[:16]}..., expected {download.sha256[:16]}...; fetch it again"
            )
    return files


def _find_downloads(name: str, *, cache_dir: Path) -> dict[str, Path]:
    """What tensorflow-datasets has downloaded into the cache, found by its checksum: name -> path."""
    wanted, found = {download.sha256: download.name for download in _downloads(name)}, {}
    for folder, _, names in os.walk(
        cache_dir / "tfds" / "downloads"
    ):  # which passes over folders that may not be entered
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):  # of somebody else, or removed since it was listed
                file_name = wanted.get(_sha256_of(path))
                if file_name:
                    found[file_name] = path
    return found


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prepare(name: str, files: Mapping[str, Path], *, data_dir: Path) -> Dataset:
    """Prepare a dataset of its files, and leave it in the cache for the next run. Files that are missing are downloaded."""
    emit("data.prepare", dataset=name, to=str(data_dir))
    try:
        return _prepare_apart(name, files, data_dir=data_dir)
    except MemoryError:
        raise
    except Exception as error:  # whatever the library lets through: of its own, of TensorFlow, of what unpacks
        raise _translate(error, name=name, data_dir=data_dir) from error


def _prepare_apart(name: str, files: Mapping[str, Path], *, data_dir: Path) -> Dataset:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    tfds.disable_progress_bar()
    downloader.MAX_RETRIES = 2  # its own 10 mean minutes of silence
    _sweep(data_dir)
    with _own_folder(data_dir) as folder:
        at_hand = folder / "at-hand"
        at_hand.mkdir()
        for file_name, path in files.items():
            (at_hand / file_name).symlink_to(path.absolute())
        builder = tfds.builder(name, data_dir=folder)
        target = data_dir / Path(builder.data_dir).relative_to(folder)
        stood = _stamp(target)
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and our stdout is for events
            builder.download_and_prepare(
                download_dir=folder / "downloads",
                download_config=tfds.download.DownloadConfig(manual_dir=at_hand, extract_dir=folder / "extracted"),
            )
        dataset = _read(builder, tfds)
        _move_downloads(folder / "downloads", data_dir / "downloads")
        if _stamp(target) == stood:  # else another process was quicker, and what it made is as good
            _replace(target, Path(builder.data_dir), aside=folder / "replaced")
    return dataset


@contextlib.contextmanager
def _own_folder(data_dir: Path) -> Iterator[Path]:
    """A folder beside the prepared datasets that only this process uses; gone afterwards."""
    folder = data_dir.absolute() / f"{_OWN_PREFIX}{clock.token(8)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Tells a folder from another one of the same name; None when there is none."""
    with contextlib.suppress(OSError):
        status = folder.stat()
        return status.st_ino, status.st_ctime_ns
    return None


def _move_downloads(folder: Path, target: Path) -> None:
    """Keep what was downloaded. A fault costs the next run time, this one nothing."""
    try:
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            kept = target / path.relative_to(folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.replace(kept)
    except OSError as error:
        warn("data.cache_not_written", path=str(target), reason=str(error))


def _replace(target: Path, prepared: Path, *, aside: Path) -> None:
    """Put what was prepared in the place of what could not be read, if anything. A fault costs the next run time."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            target.rename(aside)
        prepared.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was quicker
            warn("data.cache_not_written", path=str(target), reason=str(error))


def _sweep(data_dir: Path) -> None:
    """Remove what processes that were killed a day ago or earlier left of their preparations, of older versions too."""
    for pattern in (f"{_OWN_PREFIX}*", "*/incomplete.*", "*/*/incomplete.*"):
        for path in data_dir.glob(pattern):
            with contextlib.suppress(OSError):
                if clock.now() - path.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)


def _read(builder: Any, tfds: Any) -> Dataset:
    splits = {split: tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1)) for split in ("train", "test")}
    for split, arrays in splits.items():
        received, expected = len(arrays["label"]), builder.info.splits[split].num_examples
        if received != expected:  # a file that ends between two examples is no fault to the library
            raise ValueError(f"the {split} split has {received} examples, its dataset_info.json says {expected}")
    return Dataset(
        train_images=splits["train"]["image"],
        train_labels=splits["train"]["label"].astype(np.int64),
        test_images=splits["test"]["image"],
        test_labels=splits["test"]["label"].astype(np.int64),
        class_names=tuple(builder.info.features["label"].names),
    )


def _translate(error: Exception, *, name: str, data_dir: Path) -> JobError:
    import requests
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    reason, number = one_line(error, limit=300), getattr(error, "errno", None)
    if isinstance(error, NonMatchingChecksumError):
        return IntegrityError(
            f"data.source=tfds: a file of {name} is not what its checksum says: {reason}; fetch it again"
        )
    if isinstance(error, PermissionError) or number == errno.EROFS or "Permission denied" in reason:
        return AccessDeniedError(f"data.cache_dir: {data_dir} cannot be written: {reason}; choose another folder")
    if number in (errno.ENOSPC, errno.EDQUOT) or any(text in reason for text in _NO_ROOM):
        return UnavailableError(f"data.cache_dir: no room to prepare {name} in {data_dir}; make room or choose another")
    if isinstance(error, (requests.RequestException, DownloadError, ConnectionError, TimeoutError)):
        return UnavailableError(f"data.source=tfds: {name} cannot be downloaded: {reason}; {_OTHER_WAYS}")
    return IntegrityError(f"data.source=tfds: {name} cannot be prepared in {data_dir}: {reason}; {_OTHER_WAYS}")
