"""What the gate measures: a candidate by itself, and beside the champion, the anchor, and a constant answer.

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
    """The champion that all later ones on a test split are measured by, so that small losses do not add up night after night.

    It is the first champion on the split. One that is better beyond doubt takes its place (`rules.py`). So it is not the best of
    many: that one has had luck, and an equally good candidate would seldom reach it.

    Attributes:
        evaluation_digest: of the test split.
        metric: that `value` is of.
        run: None in a record of an older version, whose value is that of the best champion so far.
    """

    evaluation_digest: str
    metric: str
    value: float
    run: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The present champion, as the candidate is compared with it.

    Attributes:
        version: of the move that made it champion.
        num_classes, class_names: that it tells apart; None where nobody looked, or where the run does not record them.
        probabilities: float32 [N, C] on the *candidate's* test split; None when it cannot be scored there.
        unscored: why its model could not be used for that; empty when nobody tried.
        recorded: the metrics that its COMMIT records; empty when they are of another test split.
        anchor: None when no champion was scored on this test split so far.
        anchor_probabilities: float32 [N, C]; None when its predictions are not in the store any more.
    """

    model: CommittedModel
    version: int
    num_classes: int | None
    class_names: tuple[str, ...] | None
    probabilities: Probabilities | None
    recorded: Mapping[str, Any]
    anchor: Anchor | None
    anchor_probabilities: Probabilities | None
    unscored: str = ""

    @property
    def is_anchor(self) -> bool:
        """Whether the champion is measured by itself: then one test says all."""
        return self.anchor is None or self.anchor.run == self.model.run


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
    if not is_share(metric):
        return {"constant": constant}
    num_right = round(measure(metric, probabilities, labels) * len(labels))
    if num_right <= constant * len(labels):
        return {"constant": constant}
    return {"constant": constant, "constant_p_value": binomial_tail(len(labels), num_right, share=constant)}


def beside_champion(candidate: Candidate, champion: Champion, metric: str) -> dict[str, Any]:
    """The metric of the champion and of the anchor on the candidate's examples, and the tests against both.

    `p_value` and `anchor_p_value`: how probable such a loss is between equals; `anchor_gain_p_value`: such a gain. A p is left
    out where there is no test, the metric of the champion where its run did not record it.
    """
    assert champion.probabilities is not None
    labels, key = candidate.predictions.labels, key_of(metric)
    numbers: dict[str, Any] = {"champion_accuracy": measure(ACCURACY, champion.probabilities, labels)}
    theirs = _value_of(metric, champion.probabilities, labels, champion.recorded).get(key)
    if theirs is None:
        return numbers
    numbers |= {f"champion_{key}": theirs}
    if is_measure(metric):
        numbers |= _compare(candidate, champion.probabilities, metric)
    return numbers | _beside_anchor(candidate, champion, numbers, metric)


def _value_of(
    metric: str, probabilities: Probabilities, labels: NDArray[np.int64], recorded: Mapping[str, Any]
) -> dict[str, float]:
    key = key_of(metric)
    if is_measure(metric):
        return {key: measure(metric, probabilities, labels)}
    value = recorded.get(key)
    return {key: float(value)} if isinstance(value, int | float) else {}


def _compare(candidate: Candidate, probabilities: Probabilities, metric: str) -> dict[str, Any]:
    """The paired tests of the candidate against what another model predicts for the same examples."""
    labels = candidate.predictions.labels
    ours = contributions(metric, candidate.predictions.probabilities, labels)
    theirs = contributions(metric, probabilities, labels)
    if not is_share(metric):
        return {"p_value": sign_flip(theirs - ours), "gain_p_value": sign_flip(ours - theirs)}
    lost, won = int((theirs > ours).sum()), int((ours > theirs).sum())
    return {
        "only_champion_right": lost,
        "only_candidate_right": won,
        "p_value": mcnemar(only_champion_right=lost, only_candidate_right=won),
        "gain_p_value": mcnemar(only_champion_right=won, only_candidate_right=lost),
    }


def _beside_anchor(candidate: Candidate, champion: Champion, numbers: Mapping[str, Any], metric: str) -> dict[str, Any]:
    anchor, key = champion.anchor, key_of(metric)
    if anchor is None or champion.is_anchor:
        value, tested = numbers[f"champion_{key}"], numbers
    elif champion.anchor_probabilities is not None and is_measure(metric):
        value, tested = anchor.value, _compare(candidate, champion.anchor_probabilities, metric)
    else:
        value, tested = anchor.value, _compare_shares(candidate, anchor.value, metric)
    p_values = {f"anchor_{name}": tested[name] for name in ("p_value", "gain_p_value") if name in tested}
    return {f"anchor_{key}": value, **p_values}


def _compare_shares(candidate: Candidate, before: float, metric: str) -> dict[str, float]:
    """Of a model whose predictions are gone only the share of right ones is known. Other measures have no test then."""
    if not is_share(metric):
        return {}
    labels = candidate.predictions.labels
    ours = measure(metric, candidate.predictions.probabilities, labels)
    wrong, wrong_before = (round((1 - share) * len(labels)) for share in (ours, before))
    return {
        "p_value": fisher(wrong=wrong, wrong_before=wrong_before, num_examples=len(labels)),
        "gain_p_value": fisher(wrong=wrong_before, wrong_before=wrong, num_examples=len(labels)),
    }
