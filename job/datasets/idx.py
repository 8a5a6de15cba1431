"""The four canonical IDX `.gz` files of MNIST and its siblings, from a folder or a store.

Owns the format and the pinned checksums of the known datasets. The format is described by its author at
yann.lecun.com/exdb/mnist: magic 0x00000801 (labels) or 0x00000803 (images), big-endian sizes, then bytes.
"""

import gzip
import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.config import DataSection
from job.datasets.dataset import Dataset, with_digest
from job.errors import AccessDeniedError, IntegrityError, NotFoundError, UnavailableError
from job.logs import warn
from job.store.store import Store

FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}

# SHA-256 of the four files in the order of FILES; the same values as in tensorflow-datasets 4.9.10.
PINNED_SHA256 = {
    "mnist": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion_mnist": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    "kmnist": (
        "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    ),
}

NUM_CLASSES = 10
CLASS_NAMES = tuple(str(digit) for digit in range(NUM_CLASSES))

_IMAGES_MAGIC, _LABELS_MAGIC = 0x803, 0x801
_MAX_BYTES = 2**31
"""A header may promise anything; nothing above this is unpacked."""


def load(config: DataSection, *, cache_dir: object, open_folder: Callable[[str], Store | Path]) -> tuple[Dataset, str]:
    """The dataset in canonical order, and its digest, from the folder or store of `data.uri`.

    Raises:
        JobError: as from `load_idx`, and what is wrong with the arrays.
    """
    assert config.uri is not None  # the config's own check
    return with_digest(load_idx(open_folder(config.uri), dataset=config.dataset))


def load_idx(folder: Path | Store, *, dataset: str) -> Dataset:
    """Read, check and unpack the four files.

    Raises:
        NotFoundError: the folder or one of the files is absent.
        IntegrityError: a file is not the pinned one, cut off, corrupt, or not what its name says.
    """
    files = read_files(folder, dataset=dataset)
    arrays = {part: _parse(data, name=FILES[part], is_images=part.endswith("images")) for part, data in files.items()}
    return Dataset(
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"].astype(np.int64),
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"].astype(np.int64),
        class_names=CLASS_NAMES,
    )


def read_files(folder: Path | Store, *, dataset: str) -> dict[str, bytes]:
    """The four files as they are, each compared with its pinned checksum where the dataset is a known one."""
    pinned = PINNED_SHA256.get(dataset)
    if pinned is None:
        warn(
            "data.unpinned", dataset=dataset, reason="no checksums are known for this dataset; only its form is checked"
        )
    files = {}
    for position, (part, name) in enumerate(FILES.items()):
        data = _read(folder, name)
        if pinned and hashlib.sha256(data).hexdigest() != pinned[position]:
            raise IntegrityError(
                f"data: {name} is not the {dataset} file: its SHA-256 is {hashlib.sha256(data).hexdigest()[:16]}..., "
                f"expected {pinned[position][:16]}...; copy it again, or set data.dataset if these are other data"
            )
        files[part] = data
    return files


def _read(folder: Path | Store, name: str) -> bytes:
    if isinstance(folder, Store):
        data = folder.get(name)
        if data is None:
            raise NotFoundError(f"data.uri: {folder.location(name)} does not exist; {_HOW_TO_GET}")
        return data
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"data.uri: {folder / name} does not exist; {_HOW_TO_GET}") from error
    except PermissionError as error:
        raise AccessDeniedError(f"data.uri: {folder / name} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise UnavailableError(f"data.uri: {folder / name} cannot be read: {error.strerror}") from error


_HOW_TO_GET = "put the four .gz files there (mnist-job data prepare --to URI), or use data.source=tfds or digits"


def _parse(data: bytes, *, name: str, is_images: bool) -> NDArray[np.uint8]:
    """One unpacked IDX file as uint8 [N, height, width] or [N]."""
    num_sizes = 3 if is_images else 1
    expected_magic = _IMAGES_MAGIC if is_images else _LABELS_MAGIC
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            header = file.read(4 + 4 * num_sizes)
            if len(header) < 4 + 4 * num_sizes:
                raise IntegrityError(f"data: {name} is cut off inside its header")
            magic, *sizes = struct.unpack(f">{1 + num_sizes}I", header)
            if magic != expected_magic:
                raise IntegrityError(
                    f"data: {name} must hold {'images' if is_images else 'labels'} (magic {expected_magic:#x}), "
                    f"received magic {magic:#x}; are images and labels swapped?"
                )
            num_bytes = int(np.prod([int(size) for size in sizes], dtype=object))
            if num_bytes > _MAX_BYTES:
                raise IntegrityError(
                    f"data: {name} promises {num_bytes} bytes in its header, at most {_MAX_BYTES} are read"
                )
            body = file.read(num_bytes + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise IntegrityError(f"data: {name} is cut off or corrupt: {error}; copy it again") from error
    if len(body) != num_bytes:
        raise IntegrityError(f"data: {name} must hold {num_bytes} bytes after its header, received {len(body)} or more")
    return np.frombuffer(body, np.uint8).reshape(sizes)
