"""The four IDX files of MNIST and its siblings, compressed or not, from a folder or a store.

Owns the format, the pinned checksums of the known datasets, and how much of such files is read: what all four promise in their
headers is compared with their sizes and with `data.max_bytes` before any of them is unpacked.

The format is described by its author at yann.lecun.com/exdb/mnist: magic 0x00000801 (labels) or 0x00000803 (images), big-endian
sizes, then bytes.
"""

import contextlib
import gzip
import hashlib
import io
import math
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from job.config import MAX_DATA_BYTES, TFDS_DATASETS, DataSection
from job.datasets.dataset import Dataset, with_digest
from job.errors import AccessDeniedError, IntegrityError, NotFoundError, UnavailableError
from job.logs import warn
from job.records import check_size
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
_EXAMPLE_BYTES = 200
"""Of memory for each example beside its image: its label, its place in the canonical order, and what sorting them takes: 178
were measured where all images are equal."""

_MOST_PACKED = 1032
"""Bytes that one byte of a gzip file can become (zlib.net/zlib_tech.html)."""

_PART_BYTES = 2**20

_GZIP, _GZIP_MAGIC = 16 + zlib.MAX_WBITS, b"\x1f\x8b"
_PACKED_PART_BYTES = 2**14
_SPARE_MEMBERS, _MEMBER_BYTES = 1000, 1024
"""A gzip file may have so many members, and one more for each so many bytes of content: bgzip's hold 65,280 bytes each."""
_MAX_IDLE_BYTES = 2**17
"""Of a gzip file, in a row, that become no content: a header has a few dozen, and 64 KiB where its binary field is full."""

_LABELS_OF = {"train_images": "train_labels", "test_images": "test_labels"}


def load(config: DataSection, *, cache_dir: object, open_folder: Callable[[str], Store | Path]) -> tuple[Dataset, str]:
    """The dataset in canonical order, and its digest, from the folder or store of `data.uri`.

    Raises:
        JobError: as from `load_idx`, and what is wrong with the arrays.
    """
    assert config.uri is not None  # the config's own check
    return with_digest(load_idx(open_folder(config.uri), dataset=config.dataset, max_bytes=config.max_bytes))


def load_idx(folder: Path | Store, *, dataset: str, max_bytes: int = MAX_DATA_BYTES) -> Dataset:
    """Read, check and unpack the four files. There are as many classes as the training labels say.

    Args:
        max_bytes: of memory, for the files and for the examples in them.

    Raises:
        NotFoundError: the folder or one of the files is absent.
        IntegrityError: a file is not the pinned one, cut off, corrupt, or not what its name says; or they take more memory.
    """
    files = read_files(folder, dataset=dataset, max_bytes=max_bytes)
    _check_promises(files, max_bytes=max_bytes)
    images = {part: _parse(*files.pop(part), is_images=True) for part in _LABELS_OF}
    labels = {part: _parse(*files.pop(part), is_images=False).astype(np.int64) for part in _LABELS_OF.values()}
    is_known = dataset in PINNED_SHA256 or dataset in TFDS_DATASETS
    num_classes = _NUM_CLASSES_KNOWN if is_known else int(labels["train_labels"].max(initial=0)) + 1
    return Dataset(
        train_images=images["train_images"],
        train_labels=labels["train_labels"],
        test_images=images["test_images"],
        test_labels=labels["test_labels"],
        class_names=tuple(map(str, range(num_classes))),
    )


def _check_promises(files: Mapping[str, tuple[str, bytes]], *, max_bytes: int) -> None:
    """Compare what the four headers promise with each other, with the sizes of the files and with the limit.

    Raises:
        IntegrityError: they do not fit.
    """
    sizes = {part: _promised(*file, is_images=part in _LABELS_OF) for part, file in files.items()}
    for images, labels in _LABELS_OF.items():
        if sizes[images][0] != sizes[labels][0]:
            raise IntegrityError(
                f"data: {files[labels][0]} must hold one label for each of the {sizes[images][0]} images of "
                f"{files[images][0]}, received {sizes[labels][0]}; copy both again"
            )
    num_bytes = sum(math.prod(sizes[images]) + _EXAMPLE_BYTES * sizes[images][0] for images in _LABELS_OF)
    if num_bytes > max_bytes:
        raise IntegrityError(
            f"data: the headers of {' and '.join(files[images][0] for images in _LABELS_OF)} promise examples that take "
            f"{num_bytes} bytes of memory, at most {max_bytes} may be taken; raise data.max_bytes if they are right"
        )


def _promised(name: str, data: bytes, *, is_images: bool) -> list[int]:
    """Sizes in the header of a file that is long enough for them: number of examples, and for images height and width."""
    with _opened(name, data) as file:
        sizes = _read_header(file, name=name, is_images=is_images)
    num_bytes = math.prod(sizes)
    if num_bytes > len(data) * (_MOST_PACKED if name.endswith(".gz") else 1):
        raise IntegrityError(
            f"data: {name} must hold {num_bytes} bytes after its header, its {len(data)} bytes cannot; copy it again"
        )
    return sizes


def read_files(
    folder: Path | Store, *, dataset: str, is_canonical: bool = False, max_bytes: int = MAX_DATA_BYTES
) -> dict[str, tuple[str, bytes]]:
    """Name and content of the four files as they are, each compared with its pinned checksum where there is one.

    Args:
        is_canonical: look for the names of `FILES` only.
        max_bytes: of the four together.
    """
    files: dict[str, tuple[str, bytes]] = {}
    for part, name in FILES.items():
        names = (name,) if is_canonical else _usual_names(part, dataset=dataset)
        files[part] = _read_first(folder, names, max_bytes=max_bytes - sum(len(data) for _, data in files.values()))
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


def _read_first(folder: Path | Store, names: Sequence[str], *, max_bytes: int) -> tuple[str, bytes]:
    for name in names:
        data = _read(folder, name, max_bytes=max_bytes)
        if data is not None:
            return name, data
    where = folder.location(names[0]) if isinstance(folder, Store) else folder / names[0]
    raise NotFoundError(f"data.uri: {where} does not exist; {_HOW_TO_GET}")


def _read(folder: Path | Store, name: str, *, max_bytes: int) -> bytes | None:
    """A file; None when it is not there.

    Raises:
        IntegrityError: it is longer, or no file.
    """
    try:
        return (
            folder.get(name, max_bytes=max_bytes) if isinstance(folder, Store) else _read_file(folder / name, max_bytes)
        )
    except IntegrityError as error:
        raise IntegrityError(f"data.uri: {error}; copy it again, or raise data.max_bytes") from error


def _read_file(path: Path, max_bytes: int) -> bytes | None:
    """A file whose size is known before it is read; a pipe or a device may have no end."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise IntegrityError(f"{path} is a pipe or a device, and must be a file")
            check_size(status.st_size, name=str(path), max_bytes=max_bytes)
            return file.read(status.st_size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise AccessDeniedError(f"data.uri: {path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise UnavailableError(f"data.uri: {path} cannot be read: {error.strerror}") from error


_HOW_TO_GET = "put the four .gz files there (mnist-job data prepare --to URI), or use data.source=tfds or digits"


def _parse(name: str, data: bytes, *, is_images: bool) -> NDArray[np.uint8]:
    """One unpacked IDX file as uint8 [N, height, width] or [N]."""
    with _opened(name, data) as file:
        sizes = _read_header(file, name=name, is_images=is_images)
        return _read_body(file, math.prod(sizes), name=name).reshape(sizes)


@contextlib.contextmanager
def _opened(name: str, data: bytes) -> Iterator[BinaryIO]:
    """The content, unpacked as it is read."""
    try:
        yield io.BufferedReader(_Unpacked(data), _PART_BYTES) if name.endswith(".gz") else io.BytesIO(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise IntegrityError(f"data: {name} is cut off or corrupt: {error}; copy it again") from error


class _Unpacked(io.RawIOBase):
    """The content of a gzip file of one or more members, and of zeros after them (RFC 1952).

    `gzip.GzipFile` reads headers and zeros byte by byte, in Python: 60 MB of them took 15 s, 3 million empty members 33 s.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._position, self._idle_bytes = data, 0, 0
        self._num_members, self._num_bytes = 0, 0
        self._member = zlib.decompressobj(_GZIP)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes of the content, as many as there are in one part of the file; 0 at its end.

        Raises:
            gzip.BadGzipFile, zlib.error: what is there is no gzip, or made to take time.
            EOFError: a member is cut off.
        """
        part = b""
        while not part and self._is_in_member():
            part = self._next(len(buffer))
        buffer[: len(part)] = part
        self._num_bytes += len(part)
        return len(part)

    def _is_in_member(self) -> bool:
        """Whether there is more to unpack; begins the next member where one has ended."""
        if self._num_members and not self._member.eof:
            return True
        num_left = len(self._data) - self._position
        is_zero = num_left > 0 and self._num_members > 0 and self._data[self._position] == 0
        if not num_left or (is_zero and self._data.count(0, self._position) == num_left):
            return False
        self._begin_member()
        return True

    def _begin_member(self) -> None:
        magic = self._data[self._position : self._position + 2]
        if magic != _GZIP_MAGIC:
            raise gzip.BadGzipFile(f"Not a gzipped file ({magic!r})")
        self._num_members += 1
        most = _SPARE_MEMBERS + self._num_bytes // _MEMBER_BYTES
        if self._num_members > most:
            raise gzip.BadGzipFile(f"more than {most} gzip members in {self._num_bytes} bytes of content")
        self._member = zlib.decompressobj(_GZIP)

    def _next(self, max_bytes: int) -> bytes:
        packed = self._data[self._position : self._position + _PACKED_PART_BYTES]
        part = self._member.decompress(packed, max_bytes)
        num_taken = len(packed) - len(self._member.unconsumed_tail) - len(self._member.unused_data)
        self._position += num_taken
        self._idle_bytes = 0 if part else self._idle_bytes + num_taken
        if self._idle_bytes > _MAX_IDLE_BYTES:
            raise gzip.BadGzipFile(f"more than {_MAX_IDLE_BYTES} bytes in a row without content")
        if not (packed or part or self._member.eof):
            raise EOFError("it ends before its last gzip member does")
        return part


def _read_header(file: BinaryIO, *, name: str, is_images: bool) -> list[int]:
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


def _read_body(file: BinaryIO, num_bytes: int, *, name: str) -> NDArray[np.uint8]:
    """The bytes that the header promises, in one array and no copy."""
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
