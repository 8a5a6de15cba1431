"""The validation split: of the source, or a share of the training split that is chosen by each image's content."""

import hashlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.config import DataSection
from job.datasets.dataset import Dataset, digest_of, split_validation, to_canonical
from job.errors import ConfigError, IntegrityError
from tests.conftest import QUICK, RunJob
from tests.job.datasets.test_dataset import load, make_dataset, rows_of

OWN_SOURCE = """
import numpy as np
from job.datasets import Dataset

def _split(seed, count):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 4, 4), np.uint8), np.arange(count) % 2

def load(with_validation=True):
    (train, train_labels), (test, test_labels), (own, own_labels) = _split(0, 320), _split(1, 64), _split(2, 64)
    validation = {"validation_images": own, "validation_labels": own_labels} if with_validation else {}
    return Dataset(train_images=train, train_labels=train_labels, test_images=test, test_labels=test_labels,
                   class_names=("no", "yes"), **validation)

def load_without():
    return load(with_validation=False)
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_validation.py").write_text(OWN_SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def images_of(dataset: Dataset, split: str) -> list[bytes]:
    return [image.tobytes() for image in getattr(dataset, f"{split}_images")]


class TestShareOfTraining:
    def test_choice_is_the_recorded_one(self) -> None:
        """Another choice would train every run with a validation split on other examples."""
        dataset = to_canonical(make_dataset(num_train=40))
        limit = int(Fraction(0.3) * 2**256)
        expected = [
            int(hashlib.sha256(b"mnist-train validation\n" + image).hexdigest(), 16) < limit
            for image in images_of(dataset, "train")
        ]
        chosen = split_validation(dataset, 0.3).validation_images
        assert chosen is not None
        np.testing.assert_array_equal(chosen, dataset.train_images[np.array(expected)])

    def test_share_of_the_digits_is_the_recorded_one(self) -> None:
        dataset = load(DataSection(source="digits", validation_fraction=0.1)).dataset
        assert [len(images_of(dataset, name)) for name in ("train", "validation")] == [1304, 133]

    @given(order=st.permutations(range(30)), fraction=st.sampled_from([0.3, 0.5, 0.7]), seed=st.integers(0, 9))
    @settings(max_examples=50)
    def test_equal_images_are_on_one_side_whatever_the_order_and_the_rest(
        self, order: list[int], fraction: float, seed: int
    ) -> None:
        source = replace(make_dataset(num_train=30, seed=seed), train_labels=np.zeros(30, np.int64))
        try:
            whole = split_validation(source, fraction)
        except ConfigError:  # four different images: they may all be on one side
            return
        some = replace(
            source,
            train_images=np.concatenate([source.train_images, source.train_images])[order],
            train_labels=np.zeros(30, np.int64),
        )
        shuffled = split_validation(some, fraction)
        for dataset in (whole, shuffled):
            assert set(images_of(dataset, "train")).isdisjoint(images_of(dataset, "validation"))
        assert set(images_of(whole, "validation")) == set(images_of(shuffled, "validation"))

    def test_larger_fraction_takes_the_same_and_more(self) -> None:
        dataset = load(DataSection(source="digits")).dataset
        some, more = split_validation(dataset, 0.1), split_validation(dataset, 0.2)
        assert set(images_of(some, "validation")) < set(images_of(more, "validation"))

    def test_limit_of_training_examples_comes_after_the_split(self) -> None:
        whole = load(DataSection(source="digits", validation_fraction=0.2))
        cut = load(DataSection(source="digits", validation_fraction=0.2, train_examples=100))
        without = load(DataSection(source="digits"))
        assert cut.digest == whole.digest == without.digest
        assert images_of(cut.dataset, "validation") == images_of(whole.dataset, "validation")
        assert images_of(cut.dataset, "train") == images_of(whole.dataset, "train")[:100]

    def test_both_sides_stay_in_canonical_order_and_lose_nothing(self) -> None:
        dataset = load(DataSection(source="digits")).dataset
        split = split_validation(dataset, 0.2)
        rows = rows_of(dataset.train_images, dataset.train_labels)
        for name in ("train", "validation"):
            side = rows_of(getattr(split, f"{name}_images"), getattr(split, f"{name}_labels"))
            positions = [rows.index(row) for row in side]
            assert positions == sorted(positions)
        assert len(images_of(split, "train")) + len(images_of(split, "validation")) == len(rows)

    @pytest.mark.parametrize(
        ("dataset", "fraction", "message"),
        [
            (
                make_dataset(),
                1e-9,
                r"must leave examples on both sides, received 1e-09: 12 for training and 0 for valid",
            ),
            (
                replace(make_dataset(), train_images=np.zeros((12, 2, 1), np.uint8)),
                0.5,
                r"must leave examples on both sides, received 0\.5: .* of 12; choose another fraction",
            ),
            (
                replace(make_dataset(num_train=40), train_labels=np.arange(40)),
                0.5,
                r"must leave every class in the training split, received 0\.5: none is left of '\d+'; choose a smaller",
            ),
        ],
    )
    def test_fraction_that_leaves_a_side_or_a_class_empty_is_refused(
        self, dataset: Dataset, fraction: float, message: str
    ) -> None:
        named = replace(dataset, class_names=tuple(map(str, range(40))))
        with pytest.raises(ConfigError, match=rf"^data\.validation_fraction: {message}"):
            split_validation(named, fraction)

    def test_limit_above_what_is_left_says_so(self) -> None:
        with pytest.raises(ConfigError, match=r"has after data\.validation_fraction, received 1437"):
            load(DataSection(source="digits", validation_fraction=0.1, train_examples=1437))


@pytest.mark.usefixtures("own_module")
class TestSplitOfTheSource:
    def test_own_split_is_brought_into_order_and_is_part_of_the_digest(self) -> None:
        with_split = load(DataSection(source="own_validation:load"))
        without = load(DataSection(source="own_validation:load_without"))
        dataset = with_split.dataset
        assert dataset.validation_images is not None
        rows = rows_of(dataset.validation_images, dataset.validation_labels)
        keys = [hashlib.sha256(image + label.to_bytes(8, "little")).digest() for image, label in rows]
        assert keys == sorted(keys)
        assert len(rows) == 64
        assert with_split.digest != without.digest
        assert without.digest == digest_of(replace(dataset, validation_images=None, validation_labels=None))

    def test_own_split_beside_a_fraction_is_refused(self) -> None:
        with pytest.raises(
            ConfigError, match=r"validation_fraction: must be 0 with a source that has its own.*64 examples"
        ):
            load(DataSection(source="own_validation:load", validation_fraction=0.1))

    def test_half_a_split_and_another_shape_are_refused(self) -> None:
        dataset = make_dataset()
        half = replace(dataset, validation_images=dataset.test_images)
        with pytest.raises(IntegrityError, match="validation_images and validation_labels go together"):
            to_canonical(half)
        other = replace(half, validation_images=np.zeros((6, 1, 2), np.uint8), validation_labels=dataset.test_labels)
        with pytest.raises(IntegrityError, match=r"train and validation images must have one shape, received \(2, 1\)"):
            to_canonical(other)


@pytest.mark.tf
class TestRuns:
    def test_source_without_the_split_that_the_settings_need_is_refused(
        self, run_job: RunJob, own_module: Path
    ) -> None:
        flags = [flag for flag in QUICK if not flag.startswith("--data")]
        done = run_job(
            "run",
            *flags,
            "--data.source=own_validation:load_without",
            "--train.keep=best",
            env={"PYTHONPATH": str(own_module)},
        )
        assert done.code == 64, done.stderr
        assert "own_validation:load_without returned none: return validation_images and validation_labels" in done.error

    def test_number_of_validation_examples_is_told(self, run_job: RunJob) -> None:
        done = run_job("run", *QUICK, "--data.validation_fraction=0.2", "--train.epochs=1")
        assert done.code == 0, done.stderr
        ready = done.event("data.ready")
        assert ready["train_examples"] + ready["validation_examples"] == 1437
