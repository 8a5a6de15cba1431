"""MNIST and its siblings through tensorflow-datasets, prepared into a cache folder.

Owns the calls to tensorflow-datasets and the translation of its failures. Importing this module is cheap; the
library itself is imported when a dataset is read.
"""

import contextlib
import errno
import importlib.util
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from job.config import DataSection
from job.datasets.dataset import Dataset
from job.datasets.prepared import plain_copy_path, read_or_make, read_plain_copy
from job.errors import AccessDeniedError, IntegrityError, JobError, NotFoundError, UnavailableError
from job.logs import emit
from job.texts import one_line

PROBE_SECONDS = 4.0
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
    """Read a dataset, preparing it first when the cache does not have it.

    Args:
        name: as tensorflow-datasets calls it, such as `mnist` or `emnist/digits`.
        manual_dir: folder with the downloaded files; nothing is fetched then.

    Raises:
        UnavailableError: the download could not be reached, within seconds.
        IntegrityError: a file is not what its checksum says.
        NotFoundError: a file is missing in `manual_dir`.
        AccessDeniedError: the cache cannot be written.
    """
    data_dir = cache_dir / "tfds"
    if not _is_in_tfds_cache(name, cache_dir=cache_dir):
        if manual_dir is None:
            probe(name, seconds=PROBE_SECONDS)
        else:
            check_manual_dir(name, manual_dir)
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    tfds.disable_progress_bar()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            emit("data.prepare", dataset=name, to=str(data_dir))
            _prepare(builder, tfds, data_dir=data_dir, manual_dir=manual_dir)
        return _read(builder, tfds)
    except (OSError, ValueError, RuntimeError, NonMatchingChecksumError, DownloadError) as error:
        raise _translate(error, name=name, data_dir=data_dir) from error


def is_prepared(name: str, *, cache_dir: Path) -> bool:
    """Whether the cache already holds the dataset, told without importing tensorflow-datasets."""
    has_copy = read_plain_copy(plain_copy_path(cache_dir, name=name)) is not None
    return has_copy or _is_in_tfds_cache(name, cache_dir=cache_dir)


def _is_in_tfds_cache(name: str, *, cache_dir: Path) -> bool:
    try:
        return any((cache_dir / "tfds" / name).glob("*/dataset_info.json"))
    except OSError:  # a folder that may not be entered; the write that follows says so
        return False


def probe(name: str, *, seconds: float) -> None:
    """Find out within `seconds` whether the download can be reached; the library itself tries for minutes.

    Raises:
        UnavailableError: no answer, or a refusal.
    """
    url = _download_urls(name)[0]
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


def _download_urls(name: str) -> list[str]:
    """The files of a dataset, from the checksum list inside tensorflow-datasets, read without importing it."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    assert spec is not None and spec.origin is not None  # a declared dependency
    listing = Path(spec.origin).parent / "url_checksums" / f"{name.partition('/')[0]}.txt"
    return [line.split("\t")[0] for line in listing.read_text(encoding="utf-8").splitlines() if line]


def check_manual_dir(name: str, folder: Path) -> None:
    """Raises NotFoundError when a downloaded file of the dataset is missing in the folder."""
    for url in _download_urls(name):
        path = folder / url.rpartition("/")[2]
        if not path.is_file():
            raise NotFoundError(f"data.uri: {path} does not exist; put the downloaded files of {name} there")


def _prepare(builder: Any, tfds: Any, *, data_dir: Path, manual_dir: Path | None) -> None:
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = 2  # its own 10 mean minutes of silence
    with contextlib.redirect_stdout(sys.stderr):  # it prints, and our stdout is for events
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    shutil.rmtree(data_dir / "downloads" / "extracted", ignore_errors=True)


def _read(builder: Any, tfds: Any) -> Dataset:
    splits = {split: tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1)) for split in ("train", "test")}
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

    reason = one_line(error, limit=300)
    if isinstance(error, NonMatchingChecksumError):
        return IntegrityError(
            f"data.source=tfds: a file of {name} is not what its checksum says: {reason}; fetch it again"
        )
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return AccessDeniedError(f"data.cache_dir: {data_dir} cannot be written: {reason}; choose another folder")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(f"data.cache_dir: no room to prepare {name} in {data_dir}; make room or choose another")
    if isinstance(error, (requests.RequestException, DownloadError, ConnectionError, TimeoutError)):
        return UnavailableError(f"data.source=tfds: {name} cannot be downloaded: {reason}; {_OTHER_WAYS}")
    return IntegrityError(f"data.source=tfds: {name} cannot be read from {data_dir}: {reason}; delete that folder")
