"""Measures of stored predictions, against small cases that were worked out by hand, and against slow definitions."""

import numpy as np
import pytest

from job.config import TrainSection
from job.measures import contributions, is_measure, is_share, measure

_NAMES = ("accuracy", "top_2_accuracy", "top_5_accuracy", "auc", "f1_macro")
_RANDOM = np.random.default_rng(7)


def _predictions(num_examples: int, num_classes: int, *, digits: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Rounded, so that there are ties."""
    raw = _RANDOM.dirichlet(np.ones(num_classes), num_examples).round(digits).astype(np.float32)
    return raw, _RANDOM.integers(0, num_classes, num_examples)


@pytest.mark.parametrize("name", _NAMES)
def test_perfect_predictions_measure_one(name: str) -> None:
    labels = np.array([0, 1, 2, 2, 1, 0])
    assert measure(name, np.eye(6, dtype=np.float32)[labels], labels) == 1.0


def test_small_cases_worked_out_by_hand() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5], [0.1, 0.2, 0.7]], np.float32)
    labels = np.array([0, 1, 2, 1])
    assert measure("accuracy", probabilities, labels) == 0.5
    assert measure("top_2_accuracy", probabilities, labels) == 1.0
    # Class 0: 1 of 1 right, 2 predicted: 2/3. Class 1: never predicted: 0. Class 2: 1 of 1 right, 2 predicted: 2/3.
    assert measure("f1_macro", probabilities, labels) == pytest.approx(4 / 9)
    # Class 0: 3 of 3 pairs. Class 1: 0.4 and 0.2 against 0.3 and 0.3: 2 of 4. Class 2: 0.5 against 0.1, 0.1, 0.7: 2 of 3.
    assert measure("auc", probabilities, labels) == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)


def test_ties_count_half_in_auc_and_are_no_gift_in_top_k() -> None:
    labels = np.array([0, 1, 2, 3])
    constant = np.full((4, 4), 0.25, np.float32)
    assert measure("auc", constant, labels) == 0.5
    assert [measure(f"top_{k}_accuracy", constant, labels) for k in (1, 2, 3, 4, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("digits", [1, 7])
def test_auc_is_the_share_of_ordered_pairs(digits: int) -> None:
    probabilities, labels = _predictions(60, 4, digits=digits)
    areas = []
    for label in range(4):
        of_class, others = probabilities[labels == label, label], probabilities[labels != label, label]
        pairs = [(first > second) + (first == second) / 2 for first in of_class for second in others]
        areas.append(sum(pairs) / len(pairs))
    assert measure("auc", probabilities, labels) == pytest.approx(sum(areas) / 4, abs=1e-12)


def test_top_1_is_accuracy_with_ties_too() -> None:
    probabilities, labels = _predictions(500, 5, digits=1)
    assert measure("top_1_accuracy", probabilities, labels) == measure("accuracy", probabilities, labels)


def test_classes_without_examples_are_left_out() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]], np.float32)
    labels = np.array([0, 1])
    assert {name: measure(name, probabilities, labels) for name in _NAMES} == dict.fromkeys(_NAMES, 1.0)
    only = np.array([0, 0])
    assert measure("auc", probabilities, only) == 0.5


def test_names_are_those_of_train_metrics() -> None:
    for name in ("top_2_accuracy", "top_999_accuracy", "auc", "f1_macro"):
        assert is_measure(name)
        assert TrainSection(metrics=(name,)).metrics == (name,)
    for name in ("top_0_accuracy", "top_1000_accuracy", "AUC", "f1", "loss"):
        assert not is_measure(name)
        with pytest.raises(ValueError, match="must be accuracy, top_K_accuracy, auc or f1_macro, received"):
            measure(name, np.eye(2, dtype=np.float32), np.arange(2))
        with pytest.raises(ValueError, match="should match pattern"):
            TrainSection(metrics=(name,))


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("digits", [1, 7])
def test_contributions_have_the_measure_as_their_mean(name: str, digits: int) -> None:
    probabilities, labels = _predictions(200, 6, digits=digits)
    probabilities[:, 5] = 0
    labels[labels == 4] = 3  # a class without examples that is predicted, and one that is not
    received = contributions(name, probabilities, labels)
    assert received.shape == (200,)
    assert received.mean() == pytest.approx(measure(name, probabilities, labels), abs=1e-12)
    assert is_share(name) == (set(received.tolist()) <= {0.0, 1.0})


@pytest.mark.parametrize("name", ["auc", "f1_macro"])
def test_spread_of_contributions_is_that_of_the_measure_over_samples(name: str) -> None:
    """Against the bootstrap: what the gate's test rests on."""
    probabilities, labels = _predictions(400, 3)
    probabilities[np.arange(400), labels] += 0.3
    spread = contributions(name, probabilities, labels).std() / 20
    samples = [_RANDOM.integers(0, 400, 400) for _ in range(400)]
    bootstrap = np.std([measure(name, probabilities[rows], labels[rows]) for rows in samples])
    assert spread == pytest.approx(bootstrap, rel=0.15)
