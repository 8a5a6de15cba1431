"""TensorBoard's event files: what the real TensorBoard reads in them, and that a fault costs no run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from job import contract
from job.errors import UnavailableError
from job.runs.identity import AttemptIdentity
from job.store.folder import FolderBackend
from job.store.store import Store
from job.training import tensorboard
from job.training.history import EpochRecord
from job.training.tensorboard import MAX_EPOCHS, EventFiles

pytestmark = pytest.mark.tf
_HERE = AttemptIdentity(run="r", attempt="a")


class _Trained:
    def __init__(self) -> None:
        self.history: list[EpochRecord] = []

    def train(self, num_epochs: int) -> None:
        first = len(self.history) + 1
        self.history += [_epoch(number) for number in range(first, first + num_epochs)]


def _epoch(number: int) -> EpochRecord:
    return EpochRecord(
        epoch=number,
        loss=1 / number,
        accuracy=0.5,
        val_loss=float("nan") if number == 2 else 2 / number,
        val_accuracy=0.25,
        metrics={"auc": 0.75},
        learning_rate=0.125,
        seconds=1.0,
        examples_per_second=100.0,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(FolderBackend(tmp_path), uri=f"file:{tmp_path}", deadline_seconds=5.0)


def _read(folder: Path) -> Any:
    """What the package makes of a folder; TensorFlow's own C++ reads the files for it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard_reads_every_epoch_of_every_file_once(store: Store, tmp_path: Path) -> None:
    trained = _Trained()
    files = EventFiles(trained, _HERE)
    files.write_segment(store)
    assert not list(tmp_path.rglob("*tfevents*")), "no epoch has ended"
    for num_epochs in (2, 3, 0):
        trained.train(num_epochs)
        files.write_segment(store)
    keys = [entry.key for entry in store.list_objects("runs/r/logs/a/")]
    assert keys == [contract.event_file_key("r", attempt_id="a", number=number) for number in (0, 1)]
    assert {contract.run_of_key(key) for key in keys} == {"r"}, "retention and gc know them"
    read = _read(tmp_path / "runs/r/logs/a")
    names = {"loss", "accuracy", "val_loss", "val_accuracy", "val_auc", "learning_rate", "examples_per_second"}
    assert set(read.Tags()["scalars"]) == names
    assert [(event.step, event.value) for event in read.Scalars("val_loss")][3:] == [(4, 0.5), (5, pytest.approx(0.4))]
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3, 4, 5]


def test_an_attempt_that_goes_on_has_the_whole_curve_in_its_own_files(store: Store, tmp_path: Path) -> None:
    for attempt, num_epochs in (("a", 2), ("b", 4)):
        trained = _Trained()
        trained.train(num_epochs)
        EventFiles(trained, AttemptIdentity(run="r", attempt=attempt)).write_segment(store)
    assert [event.step for event in _read(tmp_path / "runs/r/logs/b").Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in _read(tmp_path / "runs/r/logs/a").Scalars("loss")] == [1, 2]


def test_a_store_that_is_away_costs_a_warning_and_the_next_file_has_the_epochs(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = _Trained()
    trained.train(1)
    files = EventFiles(trained, _HERE)

    def refuse(key: str, data: bytes) -> bytes:
        raise UnavailableError("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "create", refuse)
        files.write_segment(store)
    assert "tensorboard.not_stored" in caplog.text
    trained.train(1)
    files.write_segment(store)
    assert [event.step for event in _read(tmp_path / "runs/r/logs/a").Scalars("loss")] == [1, 2]


def test_the_number_of_epochs_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = _Trained()
    trained.history = [_epoch(1)] * (MAX_EPOCHS + 5)
    written: list[int] = []

    def count(epochs: Sequence[EpochRecord]) -> bytes:
        written.append(len(epochs))
        return b""

    monkeypatch.setattr(tensorboard, "event_file_of", count)
    files = EventFiles(trained, _HERE)
    files.write_segment(store)
    files.write_segment(store)
    assert written == [MAX_EPOCHS]
