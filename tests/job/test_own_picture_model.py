"""A model of the user's own with everything at once: augmentation, schedule, early stopping, two replicas or two workers."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.workers import digests, making_clusters

pytestmark = [pytest.mark.tf, pytest.mark.full]

OWN = """
import keras
import numpy as np
from job.datasets import Dataset
from keras import layers


def load(examples):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, examples)
    images = random.integers(0, 100, (examples, 32, 32, 3), np.uint8)
    for image, label in zip(images, labels):
        row, column = random.integers(2, 20, 2)
        image[row : row + 10, column : column + (10, 5, 3)[label]] += 110
    test = examples // 4
    return Dataset(train_images=images[test:], train_labels=labels[test:], test_images=images[:test],
                   test_labels=labels[:test], class_names=("square", "bar", "line"))


def build(input_shape, num_classes, width):
    def block(x, width, strides=1):
        shortcut = layers.Conv2D(width, 1, strides=strides)(x) if strides > 1 else x
        x = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", use_bias=False)(x))
        return layers.ReLU()(x + shortcut)

    inputs = keras.Input(input_shape)
    x = layers.RandomTranslation(0.1, 0.1)(layers.RandomFlip()(inputs))
    x = layers.Conv2D(width, 3, padding="same")(x)
    x = block(block(x, width), 2 * width, strides=2)
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(num_classes, activation="softmax")(x))
"""
FLAGS = (
    *("--data.source=own:load", "--data.args={examples: 600}", "--data.validation_fraction=0.2"),
    *("--model.build=own:build", "--model.args={width: 4}"),
    *(
        "--train.optimizer=adamw",
        "--train.learning_rate=0.02",
        "--train.schedule=warmup-cosine",
        "--train.warmup_steps=10",
    ),
    *("--train.epochs=40", "--train.early_stopping_patience=4", "--train.keep=best", "--train.metrics=auc"),
    "--checkpoint.interval_seconds=0.5",
)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    with making_clusters(folder, *FLAGS) as make:
        yield make


def _path(cluster: Any) -> str:
    return os.pathsep.join([str(REPOSITORY), str(cluster.folder.parent)])


def _start_alone(cluster: Any) -> Any:
    return cluster.start(0, "--cluster.cpu_replicas=2", TF_CONFIG="", PYTHONPATH=_path(cluster))


@pytest.fixture(scope="module")
def undisturbed(clusters: Any) -> dict[str, Any]:
    """COMMIT of one process with two replicas."""
    alone = clusters(1, name="alone")
    process = _start_alone(alone)
    assert process.wait(400) == 0, process.stderr[-3000:]
    commit: dict[str, Any] = alone.commit
    assert process.event("train.stopped_early")["best_epoch"] == commit["best_epoch"] < commit["stopped_epoch"] < 40
    assert commit["inputs"]["replicas"] == 2 and "test_auc" in commit["metrics"]
    return commit


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_two_replicas_that_were_stopped_end_the_same(number: int, clusters: Any, undisturbed: dict[str, Any]) -> None:
    cluster = clusters(1, name=f"alone-{number}")
    first = _start_alone(cluster)
    first.until("epoch.end", seconds=200, is_it=lambda event: event["epoch"] == 2)
    first.until("checkpoint.saved", seconds=200)
    first.kill(number)
    assert first.wait(60) == (75 if number == signal.SIGTERM else -number)
    again = _start_alone(cluster)
    assert again.wait(400) == 0, again.stderr[-3000:]
    assert again.event("checkpoint.restored")["step"] > 0
    assert digests(cluster.commit) == digests(undisturbed)


@pytest.mark.parametrize("number", [None, signal.SIGTERM])
def test_two_workers_end_the_same(number: int | None, clusters: Any, undisturbed: dict[str, Any]) -> None:
    cluster = clusters(2, name=f"workers-{number}")

    def start_all() -> list[Any]:
        return [cluster.start(index, PYTHONPATH=_path(cluster)) for index in (0, 1)]

    if number is not None:
        chief, other = start_all()
        chief.until("checkpoint.saved", seconds=200)
        other.kill(number)
        assert [chief.wait(60), other.wait(60)] == ([75, 75] if number == signal.SIGTERM else [76, -number])
    processes = start_all()
    assert [process.wait(400) for process in processes] == [0, 0], processes[0].stderr[-3000:]
    assert digests(cluster.commit) == digests(undisturbed)
    assert cluster.commit["stopped_epoch"] == undisturbed["stopped_epoch"]
