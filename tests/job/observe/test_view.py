"""What an attempt tells once reaches the termination message and the metrics alike."""

import json
from pathlib import Path

import pytest

from job.observe.exposition import to_text
from job.observe.metrics import Metrics
from job.observe.phases import Phases
from job.observe.progress import Display
from job.observe.termination import Status
from job.observe.view import Progress, View

COUNTERS = {"steps": 30, "examples": 960, "epochs": 1, "attempts": 2, "interruptions": 1}
PROGRESS = Progress(
    step=30,
    total_steps=60,
    epoch=2,
    loss=0.5,
    accuracy=0.75,
    examples_per_second=1000.0,
    eta_seconds=3.0,
    counters=COUNTERS,
    goodput={"ratio": 0.9, "seconds": {"train": 9.0, "lost": 1.0}},
)


@pytest.fixture
def status(tmp_path: Path) -> Status:
    return Status(run="r", attempt="wanted", path=tmp_path / "message")


@pytest.fixture
def metrics(status: Status) -> Metrics:
    return Metrics(status=status, phases=Phases())


@pytest.fixture
def view(status: Status, metrics: Metrics) -> View:
    return View(display=Display("json"), metrics=metrics, status=status)


def message(status: Status) -> dict[str, object]:
    assert status.path
    content: dict[str, object] = json.loads(status.path.read_text())
    return content


def series(metrics: Metrics) -> dict[str, float]:
    text = to_text(metrics.running).decode()
    lines = (line for line in text.splitlines() if line.startswith("mnist_train_"))
    return {line.split(" ")[0].removeprefix("mnist_train_"): float(line.split(" ")[1]) for line in lines}


def test_chunk_is_in_the_metrics_at_once_and_in_the_message_with_the_next_checkpoint(
    view: View, status: Status, metrics: Metrics
) -> None:
    view.registered("a-2", goodput=dict)
    view.training_starts(step=15, total_steps=60, epochs=4, counters=COUNTERS)
    view.chunk(PROGRESS)
    found = series(metrics)
    assert (found["steps_total"], found["run_steps"], found["progress_ratio"], found["loss"]) == (0, 30, 0.5, 0.5)
    view.checkpoint_starts()
    told = message(status)
    assert (told["attempt"], told["step"], told["epoch"], told["outcome"]) == ("a-2", 30, 2, "running")


def test_results_follow_in_both(view: View, status: Status, metrics: Metrics) -> None:
    view.epoch_ends(test_loss=0.4, test_accuracy=0.8)
    view.committed("runs/r/COMMIT.json", test_accuracy=0.81)
    view.decided("promoted")
    view.evaluated({"zero": 0.5}, {"auc": 0.9})
    status.write()
    told, found = message(status), series(metrics)
    assert (told["commit"], told["accuracy"], told["verdict"]) == ("runs/r/COMMIT.json", 0.81, "promoted")
    assert told["promoted"] is True
    assert (found["test_loss"], found["test_accuracy"], found['class_recall_ratio{digit="zero"}']) == (0.4, 0.81, 0.5)
    assert found['metric{metric="auc"}'] == 0.9


def test_validation_is_never_taken_for_the_test_split(view: View, status: Status, metrics: Metrics) -> None:
    view.epoch_ends()  # not evaluated
    view.epoch_ends(val_loss=0.4, val_accuracy=0.8)
    status.write()
    found = series(metrics)
    assert (found["val_loss"], found["val_accuracy"], message(status)["accuracy"]) == (0.4, 0.8, None)
    assert "test_accuracy" not in found and "test_loss" not in found
