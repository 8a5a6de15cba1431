"""Scores from stored probabilities, against figures worked out by hand."""

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from job.errors import TrainingError
from job.training.evaluation import ClassScore, choose_batch_examples, loss_and_accuracy, make_batches, score
from tests.conftest import job_environment

NAMES = ("cat", "dog", "emu")

# Six examples. Predicted: cat cat dog | dog cat | dog; emu is never predicted.
PROBABILITIES = np.array(
    [[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.7, 0.2, 0.1], [0.1, 0.9, 0.0]], np.float32
)
LABELS = np.array([0, 0, 0, 1, 1, 2])


def test_scores_are_those_worked_out_by_hand() -> None:
    scores = score(PROBABILITIES, LABELS, class_names=NAMES)
    assert scores.confusion == ((2, 1, 0), (1, 1, 0), (0, 1, 0))
    assert scores.classes == (
        ClassScore(name="cat", num_examples=3, recall=2 / 3, precision=2 / 3),
        ClassScore(name="dog", num_examples=2, recall=1 / 2, precision=1 / 3),
        ClassScore(name="emu", num_examples=1, recall=0.0, precision=0.0),
    )
    assert (scores.accuracy, scores.num_examples) == (3 / 6, 6)
    # The last one got probability 0 for its label: clipped as Keras does.
    expected = -sum(math.log(p) for p in (0.5, 0.8, 0.2, 1.0, 0.2, 1e-7)) / 6
    assert scores.loss == pytest.approx(expected, rel=1e-6)


def test_wrong_examples_come_most_confident_first() -> None:
    wrong = score(PROBABILITIES, LABELS, class_names=NAMES).wrong
    assert wrong == (
        {"position": 5, "label": 2, "predicted": 1, "probability": 0.9},
        {"position": 4, "label": 1, "predicted": 0, "probability": 0.7},
        {"position": 2, "label": 0, "predicted": 1, "probability": 0.5},
    )


def test_at_most_200_wrong_examples_are_kept() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([1, 1], 1000).astype(np.float32)
    labels = 1 - probabilities.argmax(1)  # all of them wrong
    scores = score(probabilities, labels, class_names=("a", "b"))
    assert (len(scores.wrong), scores.accuracy, sum(map(sum, scores.confusion))) == (200, 0.0, 1000)
    confidence = [example["probability"] for example in scores.wrong]
    assert confidence == sorted(confidence, reverse=True)
    assert confidence[-1] >= np.sort(probabilities.max(1))[-201].round(6)


def test_class_without_examples_scores_zero() -> None:
    scores = score(np.array([[0.0, 1.0]], np.float32), np.array([1]), class_names=("absent", "there"))
    assert scores.classes[0] == ClassScore(name="absent", num_examples=0, recall=0.0, precision=0.0)
    assert scores.classes[1] == ClassScore(name="there", num_examples=1, recall=1.0, precision=1.0)


def test_perfect_and_worst_predictions_have_the_loss_of_the_clip() -> None:
    perfect = np.eye(10, dtype=np.float32)
    assert loss_and_accuracy(perfect, np.arange(10)) == (0.0, 1.0)
    loss, accuracy = loss_and_accuracy(perfect, (np.arange(10) + 1) % 10)
    assert loss == pytest.approx(-math.log(1e-7))
    assert accuracy == 0.0


def test_loss_is_a_sum_in_double_precision() -> None:
    """A float32 mean over many examples would move the digits that the gate compares."""
    probabilities = np.full((100_000, 2), 0.5, np.float32)
    loss, _ = loss_and_accuracy(probabilities, np.zeros(100_000, np.int64))
    assert loss == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_probability_that_is_not_finite_is_refused(value: float) -> None:
    probabilities = PROBABILITIES.copy()
    probabilities[3, 0] = value
    with pytest.raises(
        TrainingError, match=r"probabilities are not finite; nothing is exported; lower the learning rate"
    ):
        loss_and_accuracy(probabilities, LABELS)
    with pytest.raises(TrainingError, match="not finite"):
        score(probabilities, LABELS, class_names=NAMES)


def test_scores_become_plain_json() -> None:
    content: dict[str, Any] = score(PROBABILITIES, LABELS, class_names=NAMES).to_json()
    assert content["classes"][0] == {"name": "cat", "num_examples": 3, "recall": 2 / 3, "precision": 2 / 3}
    numbers = [content["loss"], content["accuracy"], *content["confusion"][0], *content["wrong"][0].values()]
    assert {type(number) for number in numbers} == {int, float}, "no numpy types, which JSON does not know"


PREDICTOR_SCRIPT = """
import numpy as np, tensorflow as tf
from job.training.evaluation import Predictor

sizes, beats = [], []

def model(images, training):
    assert training is False
    def note(size):
        sizes.append(int(size))
        return np.float32(0)
    zero = tf.numpy_function(note, [tf.shape(images)[0]], tf.float32)
    return tf.cast(images / 4 + zero, tf.bfloat16)

images = np.arange(100, dtype=np.uint8).reshape(50, 2)
for batch, is_filled_up in ((32, False), (60, False), (32, True)):
    sizes.clear(), beats.clear()
    predictor = Predictor(model, input_shape=(2,), batch_examples=batch, is_filled_up=is_filled_up,
                          on_batch=lambda: beats.append(1))
    received = predictor(images)
    assert received.dtype == np.float32 and received.shape == (50, 2)
    assert np.abs(received - images / 255 / 4).max() < 0.01
    print(sizes, len(beats))
"""


@pytest.mark.tf
def test_predictor_runs_no_more_images_than_it_has_to() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREDICTOR_SCRIPT],
        env=job_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # 50 images in batches of 32 and of 60; then as the reference model has it, whose recorded bits are those of whole batches.
    assert done.stdout.splitlines() == ["[32, 18] 2", "[50] 1", "[32, 32] 2"]


@pytest.mark.parametrize(("per_replica", "expected"), [(1, 32), (32, 32), (128, 128), (4096, 1000)])
def test_an_own_model_is_evaluated_in_batches_that_training_has_room_for(per_replica: int, expected: int) -> None:
    assert choose_batch_examples(batch_size_per_replica=per_replica) == expected


def test_batches_are_consecutive_and_the_last_one_is_the_rest() -> None:
    batches = list(make_batches(np.arange(7, dtype=np.uint8), batch_examples=3))
    assert [np.asarray(batch).tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_confusion_of_many_classes_is_that_of_the_most_confused() -> None:
    """1,000 x 1,000 counts would be 2 MB of metrics.json in each run."""
    labels = np.arange(50_000) % 1000
    predicted = np.where(labels < 120, (labels + 7) % 120, labels)
    predicted[:120] = labels[:120]  # the classes from 120 on are right, those before nearly always wrong
    predicted[labels == 5] = 5
    probabilities = np.zeros((50_000, 1000), np.float32)
    probabilities[np.arange(50_000), predicted] = 1
    scores = score(probabilities, labels, class_names=tuple(f"class number {number}" for number in range(1000)))
    assert scores.confusion_classes is not None
    assert len(scores.confusion_classes) == len(scores.confusion) == len(scores.confusion[0]) == 100
    assert set(scores.confusion_classes) <= {*range(120)} - {5}
    assert scores.confusion[0][0] == 1
    assert len(json.dumps(scores.to_json())) < 200_000


def test_confusion_of_all_classes_names_none_of_them() -> None:
    assert "confusion_classes" not in score(PROBABILITIES, LABELS, class_names=NAMES).to_json()
