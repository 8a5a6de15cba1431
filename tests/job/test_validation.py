"""Whole runs with a validation split: they stop early, publish their best epoch, and do so after kills and on several workers."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK, REPOSITORY, RunJob
from tests.workers import Cluster, Process, digests, making_clusters

pytestmark = [pytest.mark.tf, pytest.mark.timeout(400)]

STOPPING = (
    "--train.epochs=60",
    "--train.learning_rate=0.3",
    "--data.validation_fraction=0.2",
    "--train.early_stopping_patience=3",
    "--train.keep=best",
    "--checkpoint.interval_seconds=0.2",
)
"""Some ten epochs, of which the last three are not better."""

OWN_MODEL = """
import keras

def build(input_shape, num_classes):
    return keras.Sequential([
        keras.Input(input_shape),
        keras.layers.Flatten(),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.BatchNormalization(momentum=0.0),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(num_classes, activation="softmax"),
    ])
"""


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Any]:
    """Makes clusters below `tmp_path`; ends them."""
    with making_clusters(tmp_path) as make:
        yield make


def stored(folder: Path, name: str) -> dict[str, Any]:
    """The one object of that name."""
    [path] = (folder / "out").rglob(name)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_run_stops_early_and_publishes_its_best_epoch(run_job: RunJob, tmp_path: Path) -> None:
    done = run_job("run", *QUICK, *STOPPING, "--run.id=r")
    assert done.code == 0, done.stderr
    commit, metrics = stored(tmp_path, "COMMIT.json"), stored(tmp_path, "metrics.json")
    history, stop, best = metrics["history"], commit["stopped_epoch"], commit["best_epoch"]
    losses = [epoch["val_loss"] for epoch in history]
    assert best == 1 + losses.index(min(losses)) and stop == best + 3 == len(history) < 60
    assert (metrics["best_epoch"], metrics["stopped_epoch"]) == (best, stop)
    steps_per_epoch = -(-commit["counters"]["examples"] // stop // 32)
    assert commit["counters"] | {"attempts": 1} == {
        **{"steps": stop * steps_per_epoch, "epochs": stop, "attempts": 1, "interruptions": 0},
        "examples": commit["counters"]["examples"],
    }
    assert commit["metrics"]["val_loss"] == min(losses)
    assert commit["metrics"]["val_accuracy"] == history[best - 1]["val_accuracy"]

    # The test split is touched once, by the weights of the best epoch.
    assert not any("test" in name for epoch in history for name in epoch)
    assert [event["event"] for event in done.events].count("evaluate.end") == 1
    told = done.event("train.stopped_early")
    assert (told["epoch"], told["best_epoch"], told["step"]) == (stop, best, commit["counters"]["steps"])
    assert told["reason"] == "val_loss was not better in 3 evaluations"
    assert done.event("data.ready")["validation_examples"] == commit["metrics"]["val_examples"]
    again = run_job("run", *QUICK, *STOPPING, "--run.id=r", "--observe.log_format=text")
    assert f"of epoch {best} of {stop}, the best; stopped early (train.epochs 60)" in again.stdout, again.stdout
    assert run_job("report", "r", "--to", str(tmp_path / "page")).code == 0
    assert f"of epoch {best} of {stop}, the best" in (tmp_path / "page").read_text()
    verified = run_job("verify", "--run", "r")
    assert verified.code == 0, verified.stderr

    # The same epochs with `keep=last` and no stop: the best epoch's weights are those of a run that ends there.
    short = (*QUICK, *STOPPING, f"--train.epochs={best}", "--train.keep=last")
    assert run_job("run", *short, "--run.id=short", "--store.uri=file:./short").code == 0
    [path] = (tmp_path / "short").rglob("COMMIT.json")
    assert json.loads(path.read_text())["weights_digest"] == commit["weights_digest"]


def test_epochs_between_evaluations_have_no_scores(run_job: RunJob, tmp_path: Path) -> None:
    flags = (*QUICK, "--train.epochs=5", "--train.evaluate_every=2")
    assert run_job("run", *flags, "--run.id=r").code == 0
    history, commit = stored(tmp_path, "metrics.json")["history"], stored(tmp_path, "COMMIT.json")
    assert [epoch["epoch"] for epoch in history if "test_loss" in epoch] == [2, 4, 5]
    assert not {"best_epoch", "stopped_epoch"} & commit.keys() and "val_loss" not in commit["metrics"]
    assert history[-1]["test_accuracy"] == commit["metrics"]["test_accuracy"]
    assert run_job("report", "r").code == 0


def start(cluster: Cluster, *indexes: int) -> list[Process]:
    """Start workers that train `OWN_MODEL`."""
    (cluster.folder / "own.py").write_text(OWN_MODEL)
    path = os.pathsep.join([str(REPOSITORY), str(cluster.folder)])
    environ = {"PYTHONPATH": path} | ({"TF_CONFIG": ""} if cluster.count == 1 else {})
    return [cluster.start(index, **environ) for index in indexes]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The COMMIT of one process with two replicas."""
    with making_clusters(tmp_path_factory.mktemp("alone")) as make:
        cluster = make(1, *STOPPING, "--model.build=own:build", "--cluster.cpu_replicas=2")
        [process] = start(cluster, 0)
        assert process.wait(200) == 0, process.stderr[-3000:]
        commit: dict[str, Any] = cluster.commit
    assert commit["stopped_epoch"] > commit["best_epoch"] > 1
    return commit


class TestWorkers:
    """Two workers and a model whose BatchNormalization averages differ between replicas."""

    def test_all_stop_at_one_step_and_keep_one_epoch(self, clusters: Any, alone: dict[str, Any]) -> None:
        cluster = clusters(2, *STOPPING, "--model.build=own:build")
        chief, other = start(cluster, 0, 1)
        assert [chief.wait(200), other.wait(200)] == [0, 0], chief.stderr[-3000:] + other.stderr[-3000:]
        # Without the chief's word the other's averages would give it losses of its own, such as 3.55 beside 0.37 in epoch 3.
        losses = [[event["val_loss"] for event in process.events if "val_loss" in event] for process in (chief, other)]
        assert losses[0] == losses[1]
        told = [process.event("train.stopped_early") for process in (chief, other)]
        assert [(event["step"], event["best_epoch"]) for event in told] == [
            (alone["counters"]["steps"], alone["best_epoch"])
        ] * 2
        assert digests(cluster.commit) == digests(alone)
        assert cluster.commit["metrics"] == alone["metrics"]

    @pytest.mark.full
    @pytest.mark.parametrize(
        ("moment", "victim", "number"),
        [
            ("checkpoint.saved", 0, signal.SIGTERM),
            ("checkpoint.saved", 1, signal.SIGKILL),
            ("train.stopped_early", 0, signal.SIGKILL),
            ("train.stopped_early", 1, signal.SIGTERM),
        ],
    )
    def test_signal_before_and_at_the_stop_changes_nothing(
        self, moment: str, victim: int, number: int, clusters: Any, alone: dict[str, Any]
    ) -> None:
        cluster = clusters(2, *STOPPING, "--model.build=own:build")
        processes = start(cluster, 0, 1)
        processes[0 if moment == "checkpoint.saved" else victim].until(moment)
        processes[victim].kill(number)
        codes = [process.wait(60) for process in processes]
        assert set(codes) <= {0, 75, 76, -number}, codes  # 0: it was too late
        if 0 not in codes:
            processes = start(cluster, 0, 1)
            assert [process.wait(200) for process in processes] == [0, 0], processes[0].stderr[-3000:]
        assert digests(cluster.commit) == digests(alone)
        assert cluster.commit["best_epoch"] == alone["best_epoch"]
