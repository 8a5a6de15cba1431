"""The four IDX files of MNIST and its siblings, compressed or not, from a folder or a store.

Owns the format and the pinned checksums of the known datasets. The format is described by its author at
yann.lecun.com/exdb/mnist: magic 0x00000801 (labels) or 0x00000803 (images), big-endian sizes, then bytes.
"""

import gzip
import hashlib
import io
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from job.config import TFDS_DATASETS, DataSection
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

# The same of the unpacked files. Those of the other datasets are not known.
_PINNED_UNPACKED = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}

_NUM_CLASSES_KNOWN = 10

_IMAGES_MAGIC, _LABELS_MAGIC = 0x803, 0x801
_MAX_BYTES = 2**31
"""A header may promise anything; nothing above this is unpacked."""

_PART_BYTES = 2**20


def load(config: DataSection, *, cache_dir: object, open_folder: Callable[[str], Store | Path]) -> tuple[Dataset, str]:
    """The dataset in canonical order, and its digest, from the folder or store of `data.uri`.

    Raises:
        JobError: as from `load_idx`, and what is wrong with the arrays.
    """
    assert config.uri is not None  # the config's own check
    return with_digest(load_idx(open_folder(config.uri), dataset=config.dataset))


def load_idx(folder: Path | Store, *, dataset: str) -> Dataset:
    """Read, check and unpack the four files. There are as many classes as the training labels say.

    Raises:
        NotFoundError: the folder or one of the files is absent.
        IntegrityError: a file is not the pinned one, cut off, corrupt, or not what its name says.
    """
    files = read_files(folder, dataset=dataset)
    images = {part: _parse(*files[part], is_images=True) for part in ("train_images", "test_images")}
    labels = {part: _parse(*files[part], is_images=False).astype(np.int64) for part in ("train_labels", "test_labels")}
    is_known = dataset in PINNED_SHA256 or dataset in TFDS_DATASETS
    num_classes = _NUM_CLASSES_KNOWN if is_known else int(labels["train_labels"].max(initial=0)) + 1
    return Dataset(
        train_images=images["train_images"],
        train_labels=labels["train_labels"],
        test_images=images["test_images"],
        test_labels=labels["test_labels"],
        class_names=tuple(map(str, range(num_classes))),
    )


def read_files(folder: Path | Store, *, dataset: str, is_canonical: bool = False) -> dict[str, tuple[str, bytes]]:
    """Name and content of the four files as they are, each compared with its pinned checksum where there is one.

    Args:
        is_canonical: look for the names of `FILES` only.
    """
    files = {}
    for part, name in FILES.items():
        names = (name,) if is_canonical else _usual_names(part, dataset=dataset)
        files[part] = _read_first(folder, names)
    unpinned = [
        name for position, (name, data) in enumerate(files.values()) if not _check_pin(name, data, dataset, position)
    ]
    if unpinned:
        reason = "no checksums are known for these files; only their form is checked"
        warn("data.unpinned", dataset=dataset, files=unpinned, reason=reason)
    return files


def _usual_names(part: str, *, dataset: str) -> list[str]:
    """How a file may be called; where several are there, the first one counts: the compressed one."""
    name = FILES[part].removesuffix(".gz")
    names = [name, name.replace("-idx", ".idx")]
    if dataset.startswith("emnist/"):
        prefix = dataset.replace("/", "-")
        names.append(f"{prefix}-{name.replace('t10k', 'test')}")
    return [name + ending for name in names for ending in (".gz", "")]


def _check_pin(name: str, data: bytes, dataset: str, position: int) -> bool:
    """Whether a checksum is known, and is that of the file.

    Raises:
        IntegrityError: it is another.
    """
    pins = (PINNED_SHA256 if name.endswith(".gz") else _PINNED_UNPACKED).get(dataset)
    if pins is None:
        return False
    received = hashlib.sha256(data).hexdigest()
    if received != pins[position]:
        raise IntegrityError(
            f"data: {name} is not the {dataset} file: its SHA-256 is {received[:16]}..., "
            f"expected {pins[position][:16]}...; copy it again, or set data.dataset if these are other data"
        )
    return True


def _read_first(folder: Path | Store, names: Sequence[str]) -> tuple[str, bytes]:
    for name in names:
        data = _read(folder, name)
        if data is not None:
            return name, data
    where = folder.location(names[0]) if isinstance(folder, Store) else folder / names[0]
    raise NotFoundError(f"data.uri: {where} does not exist; {_HOW_TO_GET}")


def _read(folder: Path | Store, name: str) -> bytes | None:
    """A file; None when it is not there."""
    if isinstance(folder, Store):
        return folder.get(name)
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise AccessDeniedError(f"data.uri: {folder / name} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise UnavailableError(f"data.uri: {folder / name} cannot be read: {error.strerror}") from error


_HOW_TO_GET = "put the four .gz files there (mnist-job data prepare --to URI), or use data.source=tfds or digits"


def _parse(name: str, data: bytes, *, is_images: bool) -> NDArray[np.uint8]:
    """One unpacked IDX file as uint8 [N, height, width] or [N]."""
    packed = io.BytesIO(data)
    try:
        with gzip.GzipFile(fileobj=packed) if name.endswith(".gz") else packed as file:
            sizes = _read_header(file, name=name, is_images=is_images)
            return _read_body(file, math.prod(sizes), name=name).reshape(sizes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise IntegrityError(f"data: {name} is cut off or corrupt: {error}; copy it again") from error


def _read_header(file: gzip.GzipFile | io.BytesIO, *, name: str, is_images: bool) -> list[int]:
    num_sizes = 3 if is_images else 1
    expected_magic = _IMAGES_MAGIC if is_images else _LABELS_MAGIC
    header = file.read(4 + 4 * num_sizes)
    if len(header) < 4 + 4 * num_sizes:
        raise IntegrityError(f"data: {name} is cut off inside its header")
    magic, *sizes = struct.unpack(f">{1 + num_sizes}I", header)
    if magic != expected_magic:
        is_other = magic in (_IMAGES_MAGIC, _LABELS_MAGIC)
        advice = (
            "are images and labels swapped?" if is_other else "it is no IDX file of images or labels; copy it again"
        )
        raise IntegrityError(
            f"data: {name} must hold {'images' if is_images else 'labels'} (magic {expected_magic:#x}), "
            f"received magic {magic:#x}; {advice}"
        )
    return sizes


def _read_body(file: gzip.GzipFile | io.BytesIO, num_bytes: int, *, name: str) -> NDArray[np.uint8]:
    """The bytes that the header promises, in one array and no copy."""
    if num_bytes > _MAX_BYTES:
        raise IntegrityError(f"data: {name} promises {num_bytes} bytes in its header, at most {_MAX_BYTES} are read")
    body, received = np.empty(num_bytes, np.uint8), 0
    while received < num_bytes:
        part = file.read(min(_PART_BYTES, num_bytes - received))
        if not part:
            raise IntegrityError(f"data: {name} must hold {num_bytes} bytes after its header, received {received}")
        body[received : received + len(part)] = np.frombuffer(part, np.uint8)
        received += len(part)
    if file.read(1):
        raise IntegrityError(
            f"data: {name} must hold {num_bytes} bytes after its header, received {num_bytes + 1} or more"
        )
    return body
