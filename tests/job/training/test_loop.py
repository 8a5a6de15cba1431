"""The loop around plain numpy steps: when it ends, what it scores, and which checkpoints it takes up."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from job.attempt import restore_newest
from job.config import CheckpointSection, TrainSection
from job.errors import IntegrityError
from job.observe.metrics import Metrics
from job.observe.phases import Phases
from job.observe.progress import Display
from job.observe.termination import Status
from job.observe.view import View
from job.runs import checkpoint as checkpoints
from job.runs.checkpoint import Checkpoint
from job.runs.checkpoint_writer import CheckpointWriter
from job.runs.goodput import Ledger
from job.signals import StopSignal
from job.store.folder import FolderBackend
from job.store.store import Store
from job.training.loop import Split, Training
from job.training.watchdog import Watchdog
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
