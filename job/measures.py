"""How good stored predictions are, beyond accuracy: pure functions of probabilities and labels, in numpy.

Training asks for them epoch by epoch, the gate when it compares two runs; so both give the same number. For the gate's tests
`contributions` says what each example adds to a measure. Never imports TensorFlow.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ACCURACY = "accuracy"
_TOP_K = re.compile(r"top_([1-9][0-9]{0,2})_accuracy")


def is_measure(name: str) -> bool:
    """Whether `measure` knows the name: accuracy, top_K_accuracy (K = 1 to 999), auc, f1_macro."""
    return name in (ACCURACY, "auc", "f1_macro") or _TOP_K.fullmatch(name) is not None


def measure(name: str, probabilities: "NDArray[np.float32]", labels: "NDArray[np.int64]") -> float:
    """One measure of predictions, 0 to 1; the higher, the better.

    Args:
        name: one that `is_measure` knows.
        probabilities: float32 [N, C], N at least 1.
        labels: int64 [N] in 0..C-1.

    Raises:
        ValueError: no such measure.
    """
    if name == "auc":
        return auc_macro_ovr(probabilities, labels)
    if name == "f1_macro":
        return f1_macro(probabilities, labels)
    return top_k_accuracy(probabilities, labels, k=k_of(name))


def is_share(name: str) -> bool:
    """Whether the measure is a share of examples, each of which is right or wrong: accuracy and top_K_accuracy."""
    return name == ACCURACY or _TOP_K.fullmatch(name) is not None


def contributions(
    name: str, probabilities: "NDArray[np.float32]", labels: "NDArray[np.int64]"
) -> "NDArray[np.float64]":
    """What each example contributes: float64 [N], whose mean is the measure.

    For a share of examples 1 or 0. For auc (DeLong et al. 1988) and f1_macro (delta method) the measure is no mean of anything
    that one example has by itself: the contribution is the measure and how far this example pulls it up or down.

    Raises:
        ValueError: as from `measure`.
    """
    if name == "auc":
        return _auc_contributions(probabilities, labels)
    if name == "f1_macro":
        return _f1_contributions(probabilities, labels)
    return is_in_top_k(probabilities, labels, k=k_of(name)).astype(np.float64)


def k_of(name: str) -> int:
    """K of a share of examples; 1 for accuracy.

    Raises:
        ValueError: it is none.
    """
    top = _TOP_K.fullmatch(name)
    if top is None and name != ACCURACY:
        raise ValueError(f"must be accuracy, top_K_accuracy, auc or f1_macro, received {name!r}")
    return int(top[1]) if top else 1


def top_k_accuracy(probabilities: "NDArray[np.float32]", labels: "NDArray[np.int64]", *, k: int) -> float:
    """Share of examples whose label is among the k most probable classes; the class with the lower number wins a tie.

    With k = 1 this is the accuracy of `argmax`. Where k is at least the number of classes it is always 1.
    """
    return float(is_in_top_k(probabilities, labels, k=k).mean())


def is_in_top_k(probabilities: "NDArray[np.float32]", labels: "NDArray[np.int64]", *, k: int) -> "NDArray[np.bool_]":
    """Whether fewer than k classes come before the label, as in `top_k_accuracy`: bool [N]."""
    if k == 1:
        return np.asarray(probabilities.argmax(1) == labels)
    of_label = probabilities[np.arange(len(labels)), labels][:, None]
    is_before = np.arange(probabilities.shape[1]) < labels[:, None]
    num_before = (probabilities > of_label).sum(1) + ((probabilities == of_label) & is_before).sum(1)
    return np.asarray(num_before < k)


def auc_macro_ovr(probabilities: "NDArray[np.float32]", labels: "NDArray[np.int64]") -> float:
    """Mean over classes of the area under the ROC curve of that class against the rest.

    The area is the share of pairs (example of the class, other example) in which the first has the higher probability; a tie
    counts half (Hanley and McNeil 1982). A class without examples, or without others, is left out; 0.5 when none is left.
    """
    found = (_area(probabilities[:, label], labels == label) for label in np.unique(labels))
    areas = [area for area in found if area is not None]
    return float(np.mean(areas)) if areas else 0.5


def _area(scores: "NDArray[np.float32]", is_positive: "NDArray[np.bool_]") -> float | None:
    return None if is_positive.all() else float(_share_below(scores[is_positive], scores[~is_positive]).mean())


def _auc_contributions(probabilities: "NDArray[np.float32]", labels: "NDArray[np.int64]") -> "NDArray[np.float64]":
    total, num_classes = np.zeros(len(labels)), 0
    for label in np.unique(labels):
        is_positive = labels == label
        share = is_positive.mean()
        if share == 1:
            continue
        scores, num_classes = probabilities[:, label], num_classes + 1
        above = _share_below(scores[is_positive], scores[~is_positive])
        total[is_positive] += above.mean() + (above - above.mean()) / share
        below = 1 - _share_below(scores[~is_positive], scores[is_positive])
        total[~is_positive] += below.mean() + (below - below.mean()) / (1 - share)
    return total / num_classes if num_classes else np.full(len(labels), 0.5)


def _share_below(scores: "NDArray[np.float32]", others: "NDArray[np.float32]") -> "NDArray[np.float64]":
    """For each score the share of the others that are below it; equal ones count half."""
    others = np.sort(others)
    return (np.searchsorted(others, scores) + np.searchsorted(others, scores, side="right")) / 2 / len(others)


def f1_macro(probabilities: "NDArray[np.float32]", labels: "NDArray[np.int64]") -> float:
    """Mean over the classes that the labels have of F1, the harmonic mean of precision and recall."""
    num_classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    num_right = np.bincount(labels[predicted == labels], minlength=num_classes)
    num_true, num_predicted = (np.bincount(of, minlength=num_classes) for of in (labels, predicted))
    present = num_true > 0
    return float((2 * num_right[present] / (num_true + num_predicted)[present]).mean())


def _f1_contributions(probabilities: "NDArray[np.float32]", labels: "NDArray[np.int64]") -> "NDArray[np.float64]":
    num_classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    is_right = predicted == labels
    num_right = np.bincount(labels[is_right], minlength=num_classes)
    num_true, num_predicted = (np.bincount(of, minlength=num_classes) for of in (labels, predicted))
    present = num_true > 0
    size = np.maximum(num_true + num_predicted, 1) / len(labels)
    of_class = 2 * num_right / np.maximum(num_true + num_predicted, 1)
    pull = np.where(is_right, 2 / size[labels], 0) - (of_class / size)[labels]
    pull -= np.where(present[predicted], (of_class / size)[predicted], 0)
    return np.asarray(of_class[present].mean() + pull / present.sum(), np.float64)
