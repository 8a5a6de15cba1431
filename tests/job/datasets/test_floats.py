"""Floats of an own source, pictures and tables: used as they are, from the source to the export and its verification."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from job.config import DataSection
from job.datasets.dataset import Dataset, to_canonical
from job.errors import IntegrityError
from tests.conftest import QUICK, RunJob
from tests.job.datasets.test_dataset import array, load, make_dataset

OWN = """
import numpy as np
from job.datasets import Dataset

def make(shape, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 640)
    images = (random.normal(size=(640, *shape)) + labels.reshape(-1, *[1] * len(shape))).astype(dtype)
    return Dataset(train_images=images[:480], train_labels=labels[:480], test_images=images[480:], test_labels=labels[480:],
                   class_names=("low", "middle", "high"))

def wide(input_shape, num_classes):
    import keras
    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(),
                             keras.layers.Dense(num_classes, activation="softmax")])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_floats.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def floats(dataset: Dataset, **changes: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Dataset:
    arrays = {name: array(dataset, name).astype(np.float32) for name in ("train_images", "test_images")}
    arrays |= changes
    return replace(dataset, train_images=arrays["train_images"], test_images=arrays["test_images"])


class TestArrays:
    @pytest.mark.usefixtures("own")
    @pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
    def test_floats_become_float32_and_keep_their_values(self, dtype: str) -> None:
        from own_floats import make  # type: ignore[import-not-found]

        args = {"shape": [13], "dtype": dtype}
        dataset = load(DataSection(source="own_floats:make", args=args)).dataset
        assert (dataset.image_shape, dataset.image_dtype) == ((13,), np.dtype(np.float32))
        expected = np.asarray(make([13]).train_images)
        assert sorted(array(dataset, "train_images").tolist()) == sorted(expected.tolist())

    @pytest.mark.usefixtures("own")
    def test_type_of_the_source_changes_no_digest(self) -> None:
        """What float64 loses on the way to float32 is lost before anything is hashed."""
        one, other = (
            load(DataSection(source="own_floats:make", args={"shape": [4], "dtype": dtype})).digest
            for dtype in ("float32", ">f4")
        )
        assert one == other

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_number_that_is_not_finite_is_refused(self, value: float) -> None:
        images = array(make_dataset(), "train_images").astype(np.float32)
        images[5, 1, 0] = value
        with pytest.raises(IntegrityError, match=r"train images must be finite float32 numbers, row 5 holds another"):
            to_canonical(floats(make_dataset(), train_images=images))

    def test_number_above_float32_is_refused(self) -> None:
        images = array(make_dataset(), "test_images").astype(np.float64) + 1e300
        with pytest.raises(IntegrityError, match=r"test images must be finite float32 numbers, row 0"):
            to_canonical(floats(make_dataset(), test_images=images))

    def test_floats_beside_bytes_are_refused(self) -> None:
        dataset = replace(make_dataset(), test_images=np.zeros((6, 2, 1), np.float32))
        with pytest.raises(
            IntegrityError, match=r"train and test images must have one type, received uint8 and float32"
        ):
            to_canonical(dataset)

    def test_pictures_that_nobody_divided_are_warned_about(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="job"):
            to_canonical(floats(make_dataset()))
            assert not caplog.records
            to_canonical(floats(make_dataset(), train_images=np.full((12, 2, 1), 255.0)))
        assert [(r.getMessage(), r.fields["split"]) for r in caplog.records] == [("data.unscaled", "train")]  # type: ignore[attr-defined]


@pytest.mark.tf
class TestWholeRuns:
    @pytest.mark.parametrize(
        ("shape", "flags"),
        [
            ("[13]", ()),
            ("[13]", ("--model.build=own_floats:wide",)),
            ("[6, 5, 3]", ("--model.build=own_floats:wide", "--train.compile=graph")),
        ],
    )
    def test_floats_are_trained_exported_verified_and_compared(
        self, shape: str, flags: tuple[str, ...], run_job: RunJob, own: Path
    ) -> None:
        common = [flag for flag in QUICK if not flag.startswith("--data")]
        common += ["--data.source=own_floats:make", *flags]
        env = {"PYTHONPATH": str(own)}
        for run in ("one", "two"):  # the second is compared with the first by the gate
            args = f"--data.args={{shape: {shape}, seed: 1}}"
            seed = "--run.seed=7" if run == "two" else "--run.seed=1"
            done = run_job("run", *common, args, seed, f"--run.id={run}", env=env)
            assert done.code == 0, done.stderr
            assert done.event("evaluate.end")["test_accuracy"] > 0.4
        done = run_job("verify", "--run=two")
        assert done.code == 0, done.stderr
        assert "64 images classified as recorded" in done.stdout
        signature = (own / "out/runs/two").rglob("saved_model.pb")
        name = b"features" if shape == "[13]" else b"image"
        assert all(name in path.read_bytes() for path in signature)
