"""Any source becomes verified arrays in one order; the plain copy in the cache; own sources."""

import hashlib
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from job.config import DataSection
from job.datasets.dataset import Dataset, digest_of, to_canonical
from job.datasets.load import LoadedDataset, check_source, load_dataset
from job.datasets.prepared import plain_copy_path
from job.errors import ConfigError, IntegrityError, UnavailableError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
NAMES = tuple("0123456789")


def make_dataset(*, num_train: int = 12, num_test: int = 6, seed: int = 0) -> Dataset:
    """Few grey levels, so that some images are equal and differ only in their label."""
    random = np.random.default_rng(seed)
    return Dataset(
        train_images=random.integers(0, 2, (num_train, 2, 1), np.uint8),
        train_labels=random.integers(0, 10, num_train),
        test_images=random.integers(0, 2, (num_test, 2, 1), np.uint8),
        test_labels=random.integers(0, 10, num_test),
        class_names=NAMES,
    )


def load(config: DataSection, *, cache_dir: Path = Path("/nonexistent")) -> LoadedDataset:
    return load_dataset(config, cache_dir=cache_dir, open_folder=Path)


def array(dataset: Dataset, name: str) -> NDArray[Any]:
    return np.asarray(getattr(dataset, name))


def rows_of(images: Any, labels: Any) -> list[tuple[bytes, int]]:
    return [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]


class TestCanonicalOrder:
    @given(train=st.permutations(range(12)), test=st.permutations(range(6)), seed=st.integers(0, 9))
    @settings(max_examples=100)
    def test_order_of_the_source_does_not_matter(self, train: list[int], test: list[int], seed: int) -> None:
        source = make_dataset(seed=seed)
        shuffled = replace(
            source,
            train_images=array(source, "train_images")[train],
            train_labels=source.train_labels[train],
            test_images=array(source, "test_images")[test],
            test_labels=source.test_labels[test],
        )
        one, other = to_canonical(source), to_canonical(shuffled)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert digest_of(one) == digest_of(other)
        # Nothing is lost, and every image keeps its label.
        assert sorted(rows_of(one.train_images, one.train_labels)) == sorted(
            rows_of(source.train_images, source.train_labels)
        )

    def test_rows_are_sorted_by_the_sha256_of_image_and_label(self) -> None:
        dataset = to_canonical(make_dataset())
        for split in ("train", "test"):
            images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
            rows = rows_of(images, labels)
            keys = [hashlib.sha256(image + label.to_bytes(8, "little")).digest() for image, label in rows]
            assert keys == sorted(keys)

    def test_layout_of_the_source_does_not_matter(self) -> None:
        """tensorflow-datasets has a channel axis; an own source may return another integer type or memory order."""
        source = make_dataset()
        other = replace(
            source,
            train_images=np.asfortranarray(source.train_images)[..., np.newaxis],
            test_images=array(source, "test_images")[..., np.newaxis],
            train_labels=source.train_labels.astype(np.uint8),
        )
        assert digest_of(to_canonical(other)) == digest_of(to_canonical(source))
        assert to_canonical(other).train_labels.dtype == np.int64

    def test_colour_images_keep_their_channels(self) -> None:
        source = make_dataset()
        colour = replace(
            source,
            train_images=np.repeat(array(source, "train_images")[..., np.newaxis], 3, axis=-1),
            test_images=np.repeat(array(source, "test_images")[..., np.newaxis], 3, axis=-1),
        )
        assert to_canonical(colour).image_shape == (2, 1, 3)

    @given(data=st.data())
    @settings(max_examples=100)
    def test_digest_changes_with_any_byte(self, data: st.DataObject) -> None:
        source = to_canonical(make_dataset())
        name = data.draw(st.sampled_from(ARRAYS))
        changed = array(source, name).copy()
        index = data.draw(st.integers(0, changed.size - 1))
        changed.flat[index] = int(changed.flat[index]) ^ data.draw(st.integers(1, 255))
        arrays: dict[str, Any] = {name: changed}
        assert digest_of(replace(source, **arrays)) != digest_of(source)

    def test_digest_tells_shapes_apart(self) -> None:
        source = to_canonical(make_dataset())
        lying = replace(
            source,
            train_images=array(source, "train_images").reshape(-1, 1, 2),
            test_images=array(source, "test_images").reshape(-1, 1, 2),
        )
        assert digest_of(lying) != digest_of(source)

    def test_digest_tells_the_splits_apart(self) -> None:
        source = to_canonical(make_dataset(num_train=6, num_test=6))
        swapped = replace(
            source,
            train_images=source.test_images,
            train_labels=source.test_labels,
            test_images=source.train_images,
            test_labels=source.train_labels,
        )
        assert digest_of(swapped) != digest_of(source)


def _set_label(label: int) -> Callable[[Dataset], Dataset]:
    def change(dataset: Dataset) -> Dataset:
        labels = dataset.test_labels.copy()
        labels[3] = label
        return replace(dataset, test_labels=labels)

    return change


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (_set_label(10), r"test labels must be 0\.\.9, received 10 at position 3"),
            (_set_label(-1), r"test labels must be 0\.\.9, received -1 at position 3"),
            (
                lambda d: replace(d, train_images=d.train_images.astype(np.int32)),
                r"train images must be uint8 \[N, height, width\].*received int32 \[12, 2, 1\]",
            ),
            (
                lambda d: replace(d, train_images=d.train_images.reshape(12, 2)),
                r"train images must be uint8 .*received uint8 \[12, 2\]",
            ),
            (
                lambda d: replace(d, test_images=d.test_images[:0], test_labels=d.test_labels[:0]),
                r"test images must be .*with N > 0, received uint8 \[0, 2, 1\]",
            ),
            (
                lambda d: replace(d, train_labels=d.train_labels[:-1]),
                r"train labels must be integers, one for each of 12 images, received int64 \[11\]",
            ),
            (
                lambda d: replace(d, train_labels=d.train_labels.astype(np.float64)),
                r"train labels must be integers, one for each of 12 images, received float64 \[12\]",
            ),
            (
                lambda d: replace(d, train_labels=np.eye(10, dtype=np.int64)[d.train_labels]),
                r"train labels must be integers, .*received int64 \[12, 10\]",
            ),
            (
                lambda d: replace(d, test_images=d.test_images.reshape(6, 1, 2)),
                r"train and test images must have one shape, received \(2, 1\) and \(1, 2\)",
            ),
            (lambda d: replace(d, class_names=("0",)), r"class_names must hold 2 to 1000, received 1"),
            (
                lambda d: replace(d, class_names=("a", "a")),
                r"class_names must be different printable texts, received .a.",
            ),
            (lambda d: replace(d, class_names=("a", "\ud800")), r"class_names must be different printable texts"),
            (lambda d: replace(d, class_names=("s3://me:pw@b", "b")), r"class_names must hold no credentials"),
            (lambda d: replace(d, class_names=NAMES * 101), r"class_names must hold 2 to 1000, received 1010"),
            (lambda d: replace(d, class_names=("a", "b\nc")), r"class_names must be different printable texts"),
            (
                lambda d: replace(d, class_names=("1", 1)),
                r"class_names must be different printable texts, received '1'",
            ),
            *(
                (
                    lambda d, odd=odd: replace(d, class_names=("a", odd)),
                    rf"class_names must be texts .*, received {said}",
                )
                for odd, said in (
                    (None, "None"),
                    ("", "''"),
                    (" ", "' '"),
                    (b"a", "b'a'"),
                    (float("nan"), "nan"),
                    ("a" * 257, "'aaa"),
                    (("a", 1), "a tuple"),
                    (object(), "a object"),
                )
            ),
            (
                lambda d: replace(d, class_names=np.array([["a", "b"]])),
                r"class_names must be a tuple .* received ndarray",
            ),
            (lambda d: replace(d, class_names=None), r"class_names must be a tuple of names, received NoneType"),
        ],
    )
    def test_array_that_breaks_a_rule_is_refused(self, change: Callable[[Dataset], Dataset], message: str) -> None:
        with pytest.raises(IntegrityError, match=f"^dataset: {message}"):
            to_canonical(change(make_dataset()))

    @pytest.mark.parametrize(
        "names", [np.arange(10), tuple(np.arange(10)), list(range(10)), np.array(NAMES), tuple(map(np.str_, NAMES))]
    )
    def test_names_of_numpy_become_texts(self, names: Any) -> None:
        named = to_canonical(replace(make_dataset(), class_names=names)).class_names
        assert named == NAMES
        assert {type(name) for name in named} == {str}


class TestLimits:
    def test_limits_keep_the_first_rows_and_the_digest_of_the_whole(self) -> None:
        whole = load(DataSection(source="digits"))
        cut = load(DataSection(source="digits", train_examples=100, test_examples=7))
        assert cut.digest == whole.digest
        for name, limit in zip(ARRAYS, (100, 100, 7, 7), strict=True):
            np.testing.assert_array_equal(getattr(cut.dataset, name), getattr(whole.dataset, name)[:limit])

    @pytest.mark.parametrize(("field", "available"), [("train_examples", 1437), ("test_examples", 360)])
    def test_limit_above_what_there_is_is_refused(self, field: str, available: int) -> None:
        load(DataSection.model_validate({"source": "digits", field: available}))
        with pytest.raises(
            ConfigError, match=rf"data\.{field}: must be at most the {available} .*digits has, received"
        ):
            load(DataSection.model_validate({"source": "digits", field: available + 1}))


OWN_SOURCE = """
import numpy as np
from job.datasets import Dataset

def load():
    images = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3)
    labels = np.array([0, 1, 1, 0])
    return Dataset(train_images=images, train_labels=labels, test_images=images[:2], test_labels=labels[:2],
                   class_names=("no", "yes"))

def nothing():
    return None

def sized(size, *, classes=2, **more):
    images = np.full((size, 2, 3), 7, np.uint8)
    labels = np.arange(size) % classes
    return Dataset(train_images=images, train_labels=labels, test_images=images, test_labels=labels,
                   class_names=tuple("abcdefgh"[:classes]))

def raises():
    return [1, 2][2]

def unreachable():
    raise ConnectionRefusedError(111, "Connection refused")

def of_wrong_labels():
    images = np.zeros((4, 2, 3), np.uint8)
    return Dataset(train_images=images, train_labels=[0, 1, 2, 0], test_images=images, test_labels=[0, 1, 1, 0],
                   class_names=("no", "yes"))

def of_ragged():
    images = [np.zeros((2, 3)), np.zeros((3, 2))]
    return Dataset(train_images=images, train_labels=[0, 1], test_images=images, test_labels=[0, 1], class_names=("no", "yes"))

def of_named_by_text():
    images = np.zeros((2, 2, 3), np.uint8)
    return Dataset(train_images=images, train_labels=[0, 1], test_images=images, test_labels=[0, 1], class_names="ab")

NUMBER = 3
"""


class TestOwnSource:
    @pytest.fixture(autouse=True)
    def _package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "own_package"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "data.py").write_text(OWN_SOURCE)
        monkeypatch.syspath_prepend(str(tmp_path))

    def test_function_of_a_package_gives_the_dataset_under_its_own_name(self) -> None:
        loaded = load(DataSection(source="own_package.data:load"))
        assert loaded.name == "own_package.data.load"
        assert loaded.dataset.image_shape == (2, 3)
        assert sorted(loaded.dataset.train_labels.tolist()) == [0, 0, 1, 1]

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("own_pakage.data:load", r"cannot be imported: ModuleNotFoundError: No module named 'own_pakage'"),
            (
                "own_package.absent:load",
                r"cannot be imported: ModuleNotFoundError: No module named 'own_package\.absent'",
            ),
            ("own_package.data:absent", r"cannot be imported: AttributeError: module .* has no attribute 'absent'"),
            ("own_package.data:NUMBER", r"must be a function, received int"),
            ("own_package.data:nothing", r"must return job\.datasets\.Dataset, received NoneType"),
            ("own_package.data:sized", r"is called as sized\(\): missing a required argument: 'size'"),
            ("own_package.data:raises", r"raised IndexError: list index out of range\n  data.py:\d+ in raises: return"),
            (
                "own_package.data:of_wrong_labels",
                r"returned a dataset: train labels must be 0\.\.1, received 2 at position 2",
            ),
            (
                "own_package.data:of_ragged",
                r"returned a dataset: train images must be an array: ValueError: setting an array element",
            ),
            (
                "own_package.data:of_named_by_text",
                r"returned a dataset: class_names must be a tuple of names, received str",
            ),
        ],
    )
    def test_source_that_cannot_be_used_is_refused(self, source: str, message: str) -> None:
        with pytest.raises(ConfigError, match=rf"^data\.source: {source} {message}"):
            load(DataSection(source=source))

    def test_arguments_reach_the_function(self) -> None:
        loaded = load(DataSection(source="own_package.data:sized", args={"size": 9, "classes": 3}))
        assert loaded.dataset.class_names == ("a", "b", "c")
        assert len(loaded.dataset.train_labels) == 9

    def test_network_that_fails_the_function_may_be_tried_again(self) -> None:
        with pytest.raises(UnavailableError, match=r"^data\.source: .*raised ConnectionRefusedError"):
            load(DataSection(source="own_package.data:unreachable"))

    @pytest.mark.parametrize(
        ("function", "args", "message"),
        [
            ("lode", {}, r"data\.py has no function lode; it has"),
            ("load", {"size": 3}, r"is called as load\(size=3\): got an unexpected keyword argument 'size'"),
            ("sized", {"classes": 3}, r"is called as sized\(classes=3\): missing a required argument: 'size'"),
        ],
    )
    def test_typo_is_found_without_importing(self, function: str, args: dict[str, int], message: str) -> None:
        sys.modules.pop("own_package.data", None)
        with pytest.raises(ConfigError, match=rf"^data\.source: own_package\.data:{function}:? {message}"):
            check_source(DataSection(source=f"own_package.data:{function}", args=args))
        assert "own_package.data" not in sys.modules

    @pytest.mark.parametrize("args", [{"size": 3}, {"size": 3, "classes": 2, "anything": None}])
    def test_right_arguments_pass(self, args: dict[str, int]) -> None:
        check_source(DataSection(source="own_package.data:sized", args=args))


class TestPlainCopy:
    """tensorflow-datasets is replaced here; the real one is in test_tfds.py."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        calls: list[str] = []

        def load_tfds(name: str, **_: object) -> Dataset:
            calls.append(name)
            dataset = make_dataset()
            return replace(dataset, test_images=array(dataset, "test_images") + 2)  # no image is in both splits

        monkeypatch.setattr("job.datasets.tfds.load_tfds", load_tfds)
        return calls

    def test_second_load_reads_the_copy(self, calls: list[str], tmp_path: Path) -> None:
        first = load(DataSection(dataset="emnist/digits"), cache_dir=tmp_path / "cache")
        second = load(DataSection(dataset="emnist/digits"), cache_dir=tmp_path / "cache")
        assert calls == ["emnist/digits"]
        assert first.digest == second.digest == digest_of(second.dataset)
        assert second.dataset.class_names == NAMES
        assert plain_copy_path(tmp_path / "cache", name="emnist/digits").parent == tmp_path / "cache"

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[: len(data) // 2],
            lambda data: b"",
            lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            lambda data: b"\xff" * len(data),
            lambda data: data.replace(b"train_labels", b"train_lapels"),
            lambda data: data.replace(b'\\"digest\\"', b'\\"dogest\\"'),
            lambda data: data.replace(b'{"__metadata__"', b'{"__metadota__"'),
        ],
    )
    def test_damaged_copy_is_warned_about_and_made_again(
        self,
        damage: Callable[[bytes], bytes],
        calls: list[str],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        first = load(DataSection(), cache_dir=tmp_path)
        path = plain_copy_path(tmp_path, name="mnist")
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        assert path.read_bytes() != whole
        with caplog.at_level(logging.WARNING, logger="job"):
            assert load(DataSection(), cache_dir=tmp_path).digest == first.digest
        assert [record.getMessage() for record in caplog.records] == ["data.cache_unusable"]
        assert calls == ["mnist", "mnist"]
        assert path.read_bytes() == whole

    def test_cache_that_cannot_be_written_costs_a_warning(
        self, calls: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        in_the_way = tmp_path / "file"
        in_the_way.touch()
        with caplog.at_level(logging.WARNING, logger="job"):
            load(DataSection(), cache_dir=in_the_way / "cache")
        assert [record.getMessage() for record in caplog.records] == ["data.cache_not_written"]
        assert calls == ["mnist"]
