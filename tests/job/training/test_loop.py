"""The loop around plain numpy steps: when it ends, what it scores, and which checkpoints it takes up."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from job.attempt import Surroundings, restore_newest, train
from job.config import CheckpointSection, Config, TrainSection
from job.contract import Pod
from job.errors import IntegrityError
from job.observe.exposition import to_text
from job.observe.metrics import Metrics
from job.observe.phases import Phases
from job.observe.progress import Display
from job.observe.stored_logs import StoredLog
from job.observe.termination import Status
from job.observe.view import View
from job.runs import checkpoint as checkpoints
from job.runs.checkpoint import Checkpoint
from job.runs.checkpoint_writer import CheckpointWriter
from job.runs.goodput import Ledger
from job.runs.identity import AttemptIdentity
from job.signals import StopSignal
from job.store.folder import FolderBackend
from job.store.store import Store
from job.training.loop import Split, Training
from job.training.watchdog import Watchdog
from job.training.workers import ALONE
from tests.torture.plain import BATCH, NUM_TRAIN, PlainSteps

SETTINGS = TrainSection(
    epochs=40, global_batch_size=BATCH, evaluate_every=2, early_stopping_patience=2, keep="best", learning_rate=0.1
)
SEED = 32
"""With it the run stops after epoch 8, and epoch 4 is the best."""


def never() -> NDArray[np.float32]:
    raise AssertionError("the test split is scored in training")


def make_training(settings: TrainSection = SETTINGS) -> tuple[Training, PlainSteps]:
    steps = PlainSteps(epochs=settings.epochs, seed=SEED)
    validation = Split(predict=lambda: steps.probabilities(steps.validation_images), labels=steps.validation_labels)
    test = Split(predict=never, labels=steps.labels[NUM_TRAIN:])
    return Training(steps, settings=settings, num_examples=NUM_TRAIN, test=test, validation=validation), steps


def run(training: Training, folder: Path) -> Checkpoint:
    """To the end; returns the last checkpoint."""
    store = Store(FolderBackend(folder), uri=f"file:{folder}", deadline_seconds=5.0)
    phases, status = Phases(), Status()
    writer = CheckpointWriter(
        store,
        run_id="r",
        schedule=CheckpointSection(interval_seconds=1000.0),
        on_saved=lambda step, seconds: None,
        after_save=lambda store: None,
    )
    training.run(
        result_digest="d",
        writer=writer,
        watchdog=Watchdog(timeout_seconds=60.0, phases=phases, on_stall=lambda reason, stacks: None),
        ledger=Ledger(phases=phases, attempt="a", num_attempts=1, computed_on={}, first_started_seconds=0.0),
        stop=StopSignal(),
        view=View(display=Display("json"), metrics=Metrics(status=status, phases=phases), status=status),
    )
    newest = checkpoints.load_newest(store, "r", result_digest="d")
    assert newest
    return newest


def test_training_ends_early_and_never_scores_the_test_split(tmp_path: Path) -> None:
    training, steps = make_training()
    last = run(training, tmp_path)
    assert training.decisions() == {"best_epoch": 4, "stopped_epoch": 8}
    assert last.step == training.total_steps == 8 * training.steps_per_epoch
    assert [record.epoch for record in training.history if record.val_loss is not None] == [2, 4, 6, 8]
    digest, kernel = training.state_digest(), steps.model_state()["000/kernel"]
    training.load_result()
    best = steps.model_state()["000/kernel"]
    np.testing.assert_array_equal(best, last.arrays["best/000/kernel"])
    assert not np.array_equal(best, kernel)
    assert training.validation_scores()["val_loss"] == training.history[3].val_loss

    again, _ = make_training()
    again.restore(last)
    assert run(again, tmp_path).key == last.key, "nothing was left to train"
    assert (again.state_digest(), again.decisions()) == (digest, training.decisions())


def test_what_is_restored_is_told_to_the_metrics_and_counted_by_nobody_again(tmp_path: Path) -> None:
    training, _ = make_training()
    last = run(training, tmp_path)
    status, phases = Status(), Phases()
    metrics = Metrics(status=status, phases=phases)
    surroundings = Surroundings(
        identity=AttemptIdentity(run="r", attempt="b"),
        pod=Pod(),
        environ={},
        workers=ALONE,
        phases=phases,
        stop=StopSignal(),
        view=View(display=Display("json", is_silent=True), metrics=metrics, status=status),
        traffic=metrics.traffic,
        stored_log=StoredLog(run="r", attempt="b"),
        on_stall=lambda reason, stacks: None,
    )
    ledger = Ledger(phases=phases, attempt="b", num_attempts=2, computed_on={}, first_started_seconds=0.0)
    again, _ = make_training()
    train(Config(), again, last, None, surroundings=surroundings, ledger=ledger, result_digest="d")
    lines = (line.split(" ") for line in to_text(metrics.running).decode().splitlines() if line.startswith("mnist_"))
    series = {name.removeprefix("mnist_train_"): float(value) for name, value in lines}
    recorded = last.meta["ledger"]
    assert (series["checkpoint_step"], series["run_steps"], series["steps_total"]) == (last.step, last.step, 0)
    assert series["checkpoint_last_timestamp_seconds"] == pytest.approx(recorded["saved_seconds"], abs=0.001)
    assert series["run_start_timestamp_seconds"] == pytest.approx(recorded["first_started_seconds"], abs=0.001)
    assert (series["run_attempts"], series["epochs_total"]) == (2, 0)


def test_same_steps_without_keep_best_have_checkpoints_as_before(tmp_path: Path) -> None:
    training, steps = make_training(SETTINGS.model_copy(update={"keep": "last"}))
    last = run(training, tmp_path)
    assert last.arrays.keys() == steps.state().keys()
    before = steps.model_state()["000/kernel"]
    training.load_result()
    np.testing.assert_array_equal(steps.model_state()["000/kernel"], before)
    assert training.validation_scores()["val_loss"] == training.history[7].val_loss


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {name: array for name, array in arrays.items() if not name.startswith("best/")},
        lambda arrays: arrays | {"best/000/kernel": np.zeros((1, 1), np.float32)},
        lambda arrays: arrays | {"best/001/more": np.zeros(1)},
    ],
    ids=["absent", "other shape", "too many"],
)
def test_checkpoint_whose_best_weights_do_not_fit_is_refused(change: Any, tmp_path: Path) -> None:
    training, _ = make_training()
    last = run(training, tmp_path)
    again, _ = make_training()
    with pytest.raises(IntegrityError, match="the weights of its best epoch are not those of this model"):
        again.restore(replace(last, arrays=change(dict(last.arrays))))


@pytest.mark.security("S5")
def test_older_checkpoint_is_taken_when_the_newest_is_of_another_model(tmp_path: Path) -> None:
    training, _ = make_training()
    last = run(training, tmp_path)
    store = Store(FolderBackend(tmp_path), uri=f"file:{tmp_path}", deadline_seconds=5.0)
    odd = dict(last.arrays) | {"000/kernel": np.zeros((1, 1), np.float32)}
    newest_key = checkpoints.save(store, "r", replace(last, step=last.step + 1, arrays=odd))
    older = partial(checkpoints.load_newest, store, "r", result_digest="d")
    newest = older()
    assert newest and newest.key == newest_key
    again, steps = make_training()
    restored = restore_newest(again, newest, older=older)
    assert restored and restored.key == last.key
    np.testing.assert_array_equal(steps.state()["000/kernel"], last.arrays["000/kernel"])
    store.delete(last.key)
    with pytest.raises(IntegrityError, match="none of its 1 checkpoints is intact"):
        restore_newest(make_training()[0], newest, older=older)
    with pytest.raises(IntegrityError, match=f"^{newest_key}: .*; delete it to go on from the one before"):
        restore_newest(make_training()[0], newest, older=None)
