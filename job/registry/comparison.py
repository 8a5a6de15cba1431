"""What the gate measures: a candidate by itself, and beside the champion, the best champion so far, and a constant answer.

Pure functions of plain values. Owns the numbers that gate.json records, not what follows from them (`rules.py`) nor the
arithmetic of the tests (`significance.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.measures import ACCURACY, contributions, is_measure, is_share, measure
from job.registry.significance import binomial_tail, fisher, mcnemar, sign_flip
from job.runs.read import CommittedModel, Predictions

Probabilities = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A committed run that may become champion.

    Attributes:
        predictions: on its test split.
        recorded: the metrics that its COMMIT records, by name.
    """

    model: CommittedModel
    predictions: Predictions
    recorded: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The best champion so far on the candidate's test split, by the metric that is compared.

    Attributes:
        value: of the metric.
        num_champions: so many champions were scored on this split; it is the best of them.
        probabilities: float32 [N, C] on the split; None when its predictions are not in the store any more.
    """

    value: float
    num_champions: int
    probabilities: Probabilities | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The present champion, as the candidate is compared with it.

    Attributes:
        version: of the move that made it champion.
        num_classes, class_names: that it tells apart; None where nobody looked, or where the run does not record them.
        probabilities: float32 [N, C] on the *candidate's* test split; None when it cannot be scored there.
        recorded: the metrics that its COMMIT records; empty when they are of another test split.
        anchor: None when no champion was scored on this test split so far.
    """

    model: CommittedModel
    version: int
    num_classes: int | None
    class_names: tuple[str, ...] | None
    probabilities: Probabilities | None
    recorded: Mapping[str, Any]
    anchor: Anchor | None


def key_of(metric: str) -> str:
    """What a metric is called among the numbers, and in a COMMIT when it is a Keras metric of the user's own."""
    return metric if is_measure(metric) else f"test_{metric}"


def measure_alone(candidate: Candidate, metric: str) -> dict[str, Any]:
    """The candidate's accuracy, lowest recall, and metric; the metric is left out when it is not known."""
    labels = candidate.predictions.labels
    is_right = candidate.predictions.probabilities.argmax(1) == labels
    recalls = {int(label): float(is_right[labels == label].mean()) for label in np.unique(labels)}
    lowest = min(recalls, key=lambda label: recalls[label])
    return {
        "accuracy": float(is_right.mean()),
        "examples": len(labels),
        "lowest_recall": recalls[lowest],
        "lowest_recall_class": lowest,
        **({} if metric == ACCURACY else {"metric": metric}),
    } | _value_of(metric, candidate.predictions.probabilities, labels, candidate.recorded)


def beside_constant(candidate: Candidate, metric: str) -> dict[str, Any]:
    """`constant`: the metric of a model that gives each class the share that it has of the labels, whatever the image.

    For a share of examples also `constant_p_value`, by the exact binomial test. Nothing for a metric of the user's own.
    """
    if not is_measure(metric):
        return {}
    labels, probabilities = candidate.predictions.labels, candidate.predictions.probabilities
    shares = np.bincount(labels, minlength=probabilities.shape[1]).astype(np.float32) / len(labels)
    constant = measure(metric, np.broadcast_to(shares, probabilities.shape), labels)
    num_right = round(measure(metric, probabilities, labels) * len(labels))
    if not is_share(metric) or num_right <= constant * len(labels):
        return {"constant": constant}
    return {"constant": constant, "constant_p_value": binomial_tail(len(labels), num_right, share=constant)}


def beside_champion(candidate: Candidate, champion: Champion, metric: str) -> dict[str, Any]:
    """The metric of the champion and of the best champion so far on the candidate's examples, and the tests against both.

    `p_value` and `best_p_value` are left out where there is no test; the metric, where the champion does not record it.
    """
    assert champion.probabilities is not None
    labels, key = candidate.predictions.labels, key_of(metric)
    accuracy = {"champion_accuracy": measure(ACCURACY, champion.probabilities, labels)}
    theirs = _value_of(metric, champion.probabilities, labels, champion.recorded).get(key)
    if theirs is None:
        return accuracy
    numbers = accuracy | {f"champion_{key}": theirs}
    anchor = champion.anchor
    numbers["num_champions"] = anchor.num_champions if anchor else 1
    if is_measure(metric):
        numbers |= _compare(candidate, champion.probabilities, metric)
    if anchor is None or anchor.value <= theirs or (anchor.probabilities is None and not _needs_none(metric)):
        best = {"best_p_value": numbers["p_value"]} if "p_value" in numbers else {}
        return numbers | {f"best_{key}": theirs} | best
    return numbers | {f"best_{key}": anchor.value} | _beside_anchor(candidate, anchor, metric)


def _value_of(
    metric: str, probabilities: Probabilities, labels: NDArray[np.int64], recorded: Mapping[str, Any]
) -> dict[str, float]:
    key = key_of(metric)
    if is_measure(metric):
        return {key: measure(metric, probabilities, labels)}
    value = recorded.get(key)
    return {key: float(value)} if isinstance(value, int | float) else {}


def _needs_none(metric: str) -> bool:
    """Whether the recorded value is enough to compare with: a share of examples, or a metric that is compared without a test."""
    return is_share(metric) or not is_measure(metric)


def _compare(candidate: Candidate, probabilities: Probabilities, metric: str) -> dict[str, Any]:
    """The paired test of the candidate against what another model predicts for the same examples."""
    labels = candidate.predictions.labels
    ours = contributions(metric, candidate.predictions.probabilities, labels)
    theirs = contributions(metric, probabilities, labels)
    if not is_share(metric):
        return {"p_value": sign_flip(theirs - ours)}
    only = {
        "only_champion_right": int((theirs > ours).sum()),
        "only_candidate_right": int((ours > theirs).sum()),
    }
    return only | {"p_value": mcnemar(**only)}


def _beside_anchor(candidate: Candidate, anchor: Anchor, metric: str) -> dict[str, Any]:
    """`best_p_value`: by the paired test, or, of a share whose predictions are gone, by Fisher's exact test."""
    if not is_measure(metric):
        return {}
    if anchor.probabilities is not None:
        return {"best_p_value": _compare(candidate, anchor.probabilities, metric)["p_value"]}
    labels = candidate.predictions.labels
    value = measure(metric, candidate.predictions.probabilities, labels)
    wrong, wrong_before = (round((1 - share) * len(labels)) for share in (value, anchor.value))
    if wrong <= wrong_before:
        return {"best_p_value": 1.0}
    return {"best_p_value": fisher(wrong=wrong, wrong_before=wrong_before, num_examples=len(labels))}
