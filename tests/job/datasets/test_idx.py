"""The four IDX files: what is read, and everything that is refused before step 1."""

import gzip
import os
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.config import DataSection, StoreSection
from job.datasets.idx import FILES, load_idx
from job.datasets.load import LoadedDataset, load_dataset
from job.errors import AccessDeniedError, IntegrityError, JobError, NotFoundError
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import IDX_FILES, S3, RunJob, to_idx

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = IDX_FILES
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


def load(uri: object, *, dataset: str = "unknown") -> LoadedDataset:
    return load_dataset(
        DataSection(source="idx", uri=str(uri), dataset=dataset), cache_dir=Path("/nonexistent"), open_folder=Path
    )


def write(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


def read(folder: Path, name: str) -> bytes:
    return gzip.decompress((folder / name).read_bytes())


def write_raw(folder: Path, name: str, content: bytes) -> None:
    write(folder, name, gzip.compress(content, 1, mtime=0))


@pytest.fixture
def mnist_copy(mnist_dir: Path, tmp_path: Path) -> Path:
    """The real files as links, each of which a test may replace."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in IDX_FILES:
        (folder / name).symlink_to(mnist_dir / name)
    return folder


def replace(folder: Path, name: str, data: bytes) -> None:
    (folder / name).unlink()
    write(folder, name, data)


class TestReading:
    def test_real_mnist_is_read(self, mnist_dir: Path) -> None:
        mnist = load_idx(mnist_dir, dataset="mnist")
        assert [getattr(mnist, name).shape for name in ARRAYS] == [(60000, 28, 28), (60000,), (10000, 28, 28), (10000,)]
        assert mnist.train_images.dtype == np.uint8
        assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert np.bincount(mnist.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert round(float(np.asarray(mnist.train_images).mean()) / 255, 4) == 0.1307

    def test_other_data_are_read_with_a_warning(self, small_idx: Path, caplog: pytest.LogCaptureFixture) -> None:
        loaded = load(small_idx)
        assert (loaded.name, loaded.dataset.image_shape, len(loaded.dataset.test_labels)) == ("unknown", (28, 28), 100)
        assert "data.unpinned" in [record.getMessage() for record in caplog.records]

    @pytest.mark.parametrize("num_bytes", [65_280, 100])
    def test_file_in_several_gzip_members_is_one_file(self, num_bytes: int, small_idx: Path) -> None:
        """As bgzip and `cat` make them, with the empty member and the zeros that some leave at the end."""
        before, raw = load(small_idx).digest, read(small_idx, TEST_IMAGES)
        members = [gzip.compress(raw[start : start + num_bytes]) for start in range(0, len(raw), num_bytes)]
        write(small_idx, TEST_IMAGES, b"".join([*members, gzip.compress(b""), bytes(512)]))
        assert load(small_idx).digest == before


def header(*sizes: int, magic: int | None = None) -> bytes:
    return struct.pack(f">{1 + len(sizes)}I", 0x800 + len(sizes) if magic is None else magic, *sizes)


def cut_in_half(folder: Path) -> None:
    write(folder, TRAIN_IMAGES, (folder / TRAIN_IMAGES).read_bytes()[:100_000])


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / TRAIN_IMAGES).read_bytes())
    data[len(data) // 2] ^= 4
    write(folder, TRAIN_IMAGES, bytes(data))


def swap_labels_with_images(folder: Path) -> None:
    (folder / TRAIN_LABELS).rename(folder / "x")
    (folder / TRAIN_IMAGES).rename(folder / TRAIN_LABELS)
    (folder / "x").rename(folder / TRAIN_IMAGES)


def swap_train_with_test_labels(folder: Path) -> None:
    (folder / TRAIN_LABELS).rename(folder / "x")
    (folder / TEST_LABELS).rename(folder / TRAIN_LABELS)
    (folder / "x").rename(folder / TEST_LABELS)


def set_label_10(folder: Path) -> None:
    labels = np.frombuffer(read(folder, TEST_LABELS)[8:], np.uint8).copy()
    labels[7] = 10
    write(folder, TEST_LABELS, to_idx(labels))


def raw(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: write_raw(folder, name, content(read(folder, name)))


def leave_labels_out(folder: Path) -> None:
    unpack(folder)
    write(folder, TRAIN_LABELS.removesuffix(".gz"), header(320) + bytes(300))


def put_before(folder: Path, name: str, data: bytes) -> None:
    write(folder, name, data + (folder / name).read_bytes())


def both(one: Callable[[Path], None], other: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        one(folder)
        other(folder)

    return change


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut in half": (cut_in_half, rf"^data: {TRAIN_IMAGES} is cut off or corrupt: .*; copy it again"),
    "flipped bit": (flip_a_bit, rf"^data: {TRAIN_IMAGES} is cut off or corrupt: .*; copy it again"),
    "empty": (lambda f: write(f, TEST_LABELS, b""), rf"^data: {TEST_LABELS} is cut off inside its header"),
    "not gzip": (
        lambda f: write(f, TEST_LABELS, b"<html>not found</html>"),
        rf"^data: {TEST_LABELS} is cut off or corrupt: Not a gzipped file",
    ),
    "not compressed": (lambda f: write(f, TEST_LABELS, read(f, TEST_LABELS)), r"Not a gzipped file"),
    "labels and images swapped": (
        swap_labels_with_images,
        rf"^data: {TRAIN_IMAGES} must hold images \(magic 0x803\), received magic 0x801; are images and labels swapped\?",
    ),
    "splits swapped": (
        swap_train_with_test_labels,
        rf"^data: {TRAIN_LABELS} must hold one label for each of the 320 images of {TRAIN_IMAGES}, received 100; copy",
    ),
    "label 10": (set_label_10, r"^dataset: test labels must be 0\.\.9, received 10 at position 7$"),
    "wrong magic": (
        raw(TRAIN_LABELS, lambda data: b"\0\0\x09\x01" + data[4:]),
        rf"^data: {TRAIN_LABELS} must hold labels \(magic 0x801\), received magic 0x901; it is no IDX file of images or "
        r"labels; copy it again$",
    ),
    "header cut off": (
        raw(TRAIN_IMAGES, lambda data: data[:11]),
        rf"^data: {TRAIN_IMAGES} is cut off inside its header",
    ),
    "body too short": (
        raw(TRAIN_IMAGES, lambda data: data[:-1]),
        rf"^data: {TRAIN_IMAGES} must hold 250880 bytes after its header, received 250879",
    ),
    "body too long": (
        raw(TRAIN_IMAGES, lambda data: data + b"\0"),
        rf"^data: {TRAIN_IMAGES} must hold 250880 bytes after its header, received 250881 or more",
    ),
    "other image shape": (
        raw(TEST_IMAGES, lambda data: header(100, 14, 56) + data[16:]),
        r"^dataset: train and test images must have one shape, received \(28, 28\) and \(14, 56\)",
    ),
    "no images": (
        raw(TEST_IMAGES, lambda data: header(0, 28, 28)),
        rf"^data: {TEST_LABELS} must hold one label for each of the 0 images of {TEST_IMAGES}, received 100",
    ),
    "nothing": (
        both(raw(TEST_IMAGES, lambda data: header(0, 28, 28)), raw(TEST_LABELS, lambda data: header(0))),
        r"^dataset: test images must be .* with N > 0, received uint8 \[0, 28, 28\]",
    ),
    "images without a height": (
        raw(TEST_IMAGES, lambda data: header(100, 0, 28)),
        r"^dataset: test images must be .* with N > 0, received uint8 \[100, 0, 28\]",
    ),
    "fewer labels than images": (
        raw(TEST_LABELS, lambda data: header(99) + data[9:]),
        rf"^data: {TEST_LABELS} must hold one label for each of the 100 images of {TEST_IMAGES}, received 99",
    ),
    "promises the world": (
        raw(TEST_IMAGES, lambda data: header(2**32 - 1, 2**32 - 1, 2**32 - 1) + data[16:]),
        rf"^data: {TEST_IMAGES} must hold \d{{29}} bytes after its header, its \d{{5}} bytes cannot; copy it again$",
    ),
    "promises more than a file of its size can hold": (
        lambda f: write_raw(f, TRAIN_IMAGES, header(10**9, 1, 1)),
        rf"^data: {TRAIN_IMAGES} must hold 1000000000 bytes after its header, its 32 bytes cannot",
    ),
    "promises more than there is, unpacked": (
        leave_labels_out,
        rf"^data: {TRAIN_LABELS.removesuffix('.gz')} must hold 320 bytes after its header, its 308 bytes cannot",
    ),
    "wrong CRC": (
        lambda f: write(f, TEST_LABELS, (f / TEST_LABELS).read_bytes()[:-8] + bytes(8)),
        rf"^data: {TEST_LABELS} is cut off or corrupt: .*incorrect data check; copy it again",
    ),
    "members without content": (
        lambda f: put_before(f, TRAIN_IMAGES, gzip.compress(b"") * 1001),
        rf"^data: {TRAIN_IMAGES} is cut off or corrupt: more than 1000 gzip members in 0 bytes of content; copy it again$",
    ),
    "members of a byte each": (
        lambda f: write(f, TRAIN_IMAGES, b"".join(gzip.compress(bytes([b])) for b in read(f, TRAIN_IMAGES)[:1100])),
        r"more than 1000 gzip members in 1000 bytes of content",
    ),
    "name without end in a gzip header": (
        lambda f: put_before(f, TRAIN_IMAGES, b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 150_000 + b"\0\x03" + bytes(9)),
        rf"^data: {TRAIN_IMAGES} is cut off or corrupt: more than 131072 bytes in a row without content",
    ),
    "blocks without content in a gzip member": (
        lambda f: put_before(
            f, TRAIN_IMAGES, gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 30_000 + b"\x03" + bytes(9)
        ),
        r"more than 131072 bytes in a row without content",
    ),
    "zeros between gzip members": (
        lambda f: put_before(f, TRAIN_IMAGES, gzip.compress(b"") + bytes(1000)),
        r"Not a gzipped file \(b'\\x00\\x00'\)",
    ),
    "pipe": (
        both(lambda f: (f / TEST_LABELS).unlink(), lambda f: os.mkfifo(f / TEST_LABELS)),
        rf"^data\.uri: .*/{TEST_LABELS} is a pipe or a device, and must be a file",
    ),
    "device without end": (
        both(lambda f: (f / TEST_LABELS).unlink(), lambda f: (f / TEST_LABELS).symlink_to("/dev/zero")),
        rf"^data\.uri: .*/{TEST_LABELS} is a pipe or a device, and must be a file",
    ),
}


class TestRefusals:
    @pytest.mark.security("S5")
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_file_is_refused_by_name(self, damage: str, small_idx: Path) -> None:
        change, message = DAMAGES[damage]
        change(small_idx)
        with pytest.raises(IntegrityError, match=message):
            load(small_idx)

    @pytest.mark.security("S5")
    def test_more_than_the_header_says_is_not_unpacked(self, small_idx: Path) -> None:
        bomb = gzip.compress(header(100) + bytes(50_000_000), 1)
        write(small_idx, TEST_LABELS, bomb)
        tracemalloc.start()
        try:
            with pytest.raises(IntegrityError, match=r"must hold 100 bytes after its header, received 101 or more"):
                load_idx(small_idx, dataset="unknown")
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.security("S5")
    @pytest.mark.parametrize("where", ["folder", "store"])
    def test_files_that_take_more_memory_than_allowed_are_refused_before_they_are_unpacked(
        self, where: str, tmp_path: Path, small_idx: Path
    ) -> None:
        images, labels = header(10**7, 1, 1) + bytes(10**7), header(10**7) + bytes(10**7)  # 2 GB of memory
        write_raw(small_idx, TRAIN_IMAGES, images)
        write_raw(small_idx, TRAIN_LABELS, labels)
        folder = open_store(StoreSection(uri=f"file:{small_idx}"), environ={}) if where == "store" else small_idx
        tracemalloc.start()
        try:
            with pytest.raises(
                IntegrityError, match=r"^data: the headers .* 2010098400 bytes of memory, at most 1000000000 "
            ):
                load_idx(folder, dataset="unknown", max_bytes=10**9)
            with pytest.raises(
                IntegrityError, match=rf"^data\.uri: .*{TRAIN_IMAGES} has \d{{5}} bytes; at most 1000 are .* raise"
            ):
                load_idx(folder, dataset="unknown", max_bytes=1000)
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("name", IDX_FILES)
    def test_missing_file_is_not_found(self, name: str, small_idx: Path) -> None:
        (small_idx / name).unlink()
        with pytest.raises(
            NotFoundError, match=rf"^data\.uri: .*/{name} does not exist; put the four \.gz files there"
        ):
            load(small_idx)

    @pytest.mark.parametrize("folder", ["absent", "file"])
    def test_missing_folder_is_not_found(self, folder: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(NotFoundError, match=rf"^data\.uri: .*/{folder}/{TRAIN_IMAGES} does not exist"):
            load(tmp_path / folder)

    def test_file_that_may_not_be_read_is_access_denied(self, small_idx: Path, run_job: RunJob) -> None:
        (small_idx / TRAIN_LABELS).chmod(0)
        as_owner = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.getuid() == 0 else ()
        settings = ("--data.source=idx", f"--data.uri={small_idx}", "--data.dataset=unknown")
        done = run_job("data", "check", *settings, prefix=as_owner)
        assert done.code == AccessDeniedError.code
        assert f"data.uri: {small_idx / TRAIN_LABELS} cannot be read: Permission denied" in done.error


def unpack(folder: Path, rename: Callable[[str], str] = lambda name: name) -> None:
    for name in IDX_FILES:
        (folder / rename(name).removesuffix(".gz")).write_bytes(read(folder, name))
        (folder / name).unlink()


class TestNames:
    @pytest.mark.parametrize("ending", [".gz", ""])
    @pytest.mark.parametrize(
        "name", ["train-images-idx3-ubyte", "train-images.idx3-ubyte", "emnist-letters-train-images-idx3-ubyte"]
    )
    def test_usual_names_are_found_compressed_or_not(self, name: str, ending: str, small_idx: Path) -> None:
        expected = load(small_idx).digest
        separator = ".idx" if ".idx" in name else "-idx"
        for file in IDX_FILES:
            renamed = file.replace("-idx", separator)
            if name.startswith("emnist"):
                renamed = f"emnist-letters-{file.replace('t10k', 'test')}"
            content = (small_idx / file).read_bytes() if ending else read(small_idx, file)
            (small_idx / file).unlink()
            write(small_idx, renamed.removesuffix(".gz") + ending, content)
        assert (small_idx / f"{name}{ending}").exists()
        assert load(small_idx, dataset="emnist/letters").digest == expected

    def test_compressed_file_comes_first(self, small_idx: Path) -> None:
        expected = load(small_idx).digest
        for name in IDX_FILES:
            write(small_idx, name.removesuffix(".gz"), b"something else")
        assert load(small_idx).digest == expected

    def test_unpacked_mnist_is_compared_with_its_checksums(
        self, mnist_copy: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected = load(mnist_copy, dataset="mnist").digest
        unpack(mnist_copy)
        assert load(mnist_copy, dataset="mnist").digest == expected
        assert not caplog.records
        name = TEST_LABELS.removesuffix(".gz")
        write(mnist_copy, name, mutate(read_bytes(mnist_copy, name), random.Random(0)))
        with pytest.raises(IntegrityError, match=f"{name} is not the mnist file"):
            load(mnist_copy, dataset="mnist")

    def test_unpacked_files_without_known_checksums_are_warned_about(
        self, small_idx: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        unpack(small_idx)
        assert len(load(small_idx, dataset="kmnist").dataset.train_labels) == 320
        assert [record.getMessage() for record in caplog.records] == ["data.unpinned"]


class TestClasses:
    @pytest.mark.parametrize("num_classes", [2, 3, 47])
    def test_labels_of_training_say_how_many_there_are(self, num_classes: int, small_idx: Path) -> None:
        for name, count in ((TRAIN_LABELS, 320), (TEST_LABELS, 100)):
            write(small_idx, name, to_idx((np.arange(count) % num_classes).astype(np.uint8)))
        assert load(small_idx).dataset.class_names == tuple(map(str, range(num_classes)))

    def test_test_label_that_training_does_not_have_is_refused(self, small_idx: Path) -> None:
        write(small_idx, TRAIN_LABELS, to_idx((np.arange(320) % 9).astype(np.uint8)))
        with pytest.raises(IntegrityError, match=r"test labels must be 0\.\.8, received 9 at position"):
            load(small_idx)

    def test_one_class_is_refused(self, small_idx: Path) -> None:
        for name, count in ((TRAIN_LABELS, 320), (TEST_LABELS, 100)):
            write(small_idx, name, to_idx(np.zeros(count, np.uint8)))
        with pytest.raises(IntegrityError, match=r"class_names must hold 2 to 1000, received 1"):
            load(small_idx)


class TestPinnedFiles:
    """Known datasets are compared with their checksums: nothing but the very files passes."""

    @pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "kmnist"])
    def test_other_data_under_a_known_name_are_refused(self, dataset: str, small_idx: Path) -> None:
        with pytest.raises(
            IntegrityError,
            match=rf"{TRAIN_IMAGES} is not the {dataset} file: its SHA-256 is \w{{16}}\.\.\., .*set data\.dataset if",
        ):
            load(small_idx, dataset=dataset)

    @pytest.mark.parametrize("name", [TRAIN_LABELS, TEST_IMAGES, TEST_LABELS])
    @pytest.mark.parametrize("seed", range(8))
    def test_any_mutation_of_mnist_is_refused(self, name: str, seed: int, mnist_copy: Path) -> None:
        replace(mnist_copy, name, mutate(read_bytes(mnist_copy, name), random.Random(seed)))
        with pytest.raises(IntegrityError, match=f"{name} is not the mnist file"):
            load_idx(mnist_copy, dataset="mnist")

    def test_same_images_packed_again_are_refused(self, mnist_copy: Path) -> None:
        replace(mnist_copy, TEST_LABELS, gzip.compress(read(mnist_copy, TEST_LABELS)))
        with pytest.raises(IntegrityError, match=f"{TEST_LABELS} is not the mnist file"):
            load_idx(mnist_copy, dataset="mnist")


def read_bytes(folder: Path, name: str) -> bytes:
    return (folder / name).read_bytes()


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Flip, insert or remove a few bytes anywhere, most often where headers are; never the same as before."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 4))):
        position = chance.randrange(min(len(changed), chance.choice((30, len(changed)))))
        kind = chance.choice(("flip", "flip", "insert", "delete", "cut", "append"))
        if kind == "flip":
            changed[position] ^= 1 << chance.randrange(8)
        elif kind == "insert":
            changed[position:position] = chance.randbytes(chance.randint(1, 8))
        elif kind == "delete":
            del changed[position : position + chance.randint(1, 8)]
        elif kind == "cut":
            del changed[position + 1 :]
        else:
            changed += chance.randbytes(chance.randint(1, 20))
    return bytes(changed) if bytes(changed) != data else data + b"\1"


def arrays_of(folder: Path) -> dict[str, Any]:
    loaded = load_idx(folder, dataset="unknown")
    return {name: getattr(loaded, name) for name in ARRAYS}


def mutations(count: int) -> Iterator[tuple[int, random.Random, str]]:
    for seed in range(count):
        chance = random.Random(seed)
        yield seed, chance, chance.choice(IDX_FILES)


class TestMutations:
    def test_mutated_archive_is_refused_or_changes_nothing(self, small_idx: Path) -> None:
        before, whole = load(small_idx).digest, {name: read_bytes(small_idx, name) for name in IDX_FILES}
        num_refused = 0
        for seed, chance, name in mutations(200):
            write(small_idx, name, mutate(whole[name], chance))
            try:
                assert load(small_idx).digest == before, f"seed {seed}: {name} was accepted with other content"
            except IntegrityError:
                num_refused += 1
            write(small_idx, name, whole[name])
        assert num_refused > 150  # a name, a time stamp or trailing zeros in the archive's header may change

    def test_mutated_content_is_refused_or_changes_only_pixels_and_labels(self, small_idx: Path) -> None:
        before, whole = arrays_of(small_idx), {name: read(small_idx, name) for name in IDX_FILES}
        num_refused = 0
        for seed, chance, name in mutations(200):
            write_raw(small_idx, name, mutate(whole[name], chance))
            part = next(part for part, file_name in FILES.items() if file_name == name)
            try:
                load(small_idx)
            except IntegrityError:
                num_refused += 1
            else:
                after = arrays_of(small_idx)
                changed = [name for name in ARRAYS if not np.array_equal(before[name], after[name])]
                assert changed == [part], f"seed {seed}"
                assert after[part].shape == before[part].shape
            write_raw(small_idx, name, whole[name])
        assert 100 < num_refused < 200


@pytest.fixture(params=["file", "s3"])
def data_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "file":
        return open_store(StoreSection(uri=f"file:{tmp_path / 'mirror'}"), environ={})
    s3: S3 = request.getfixturevalue("s3")
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return open_store(
        StoreSection(uri=f"s3://{s3.bucket}/mirror", endpoint=s3.endpoint, region="us-east-1"), environ=s3.env
    )


class TestFromStore:
    def test_store_gives_the_same_data_as_a_folder(self, data_store: Store, small_idx: Path) -> None:
        for name in IDX_FILES:
            data_store.put(name, read_bytes(small_idx, name))
        config = DataSection(source="idx", uri=data_store.uri, dataset="unknown")
        loaded = load_dataset(config, cache_dir=Path("/nonexistent"), open_folder=lambda uri: data_store)
        assert loaded.digest == load(small_idx).digest

    @pytest.mark.parametrize(
        ("data", "error", "message"),
        [
            (None, NotFoundError, rf"data\.uri: (file:/|s3://).*/mirror/{TEST_LABELS} does not exist; put the four"),
            (b"\x1f\x8b", IntegrityError, rf"{TEST_LABELS} is cut off or corrupt"),
        ],
    )
    def test_missing_or_damaged_object_is_refused(
        self, data: bytes | None, error: type[JobError], message: str, data_store: Store, small_idx: Path
    ) -> None:
        for name in IDX_FILES:
            data_store.put(name, read_bytes(small_idx, name))
        if data is None:
            data_store.delete(TEST_LABELS)
        else:
            data_store.put(TEST_LABELS, data)
        with pytest.raises(error, match=message):
            load_idx(data_store, dataset="unknown")
