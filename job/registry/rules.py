"""The gate's rules: whether a committed run may become the champion. A pure function of plain values; reads and writes nothing.

Works on the predictions that two models made on one test split, so that no model has to be loaded.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from job.config import PromotionSection
from job.datasets.dataset import Labels
from job.errors import IntegrityError
from job.runs.read import CommittedModel

FORMAT = 1
"""Of gate.json."""

Verdict = Literal["promoted", "same", "refused"]

_ROUNDING = 1e-12
"""Accuracies are quotients: 0.98 - 0.978 is a little more than 0.002."""
_NEGLIGIBLE = 1e-18


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A committed run that may become champion.

    Attributes:
        predicted: int64 [N], the class that the model gives each example of its test split.
        labels: int64 [N], the true ones.
    """

    model: CommittedModel
    predicted: Labels
    labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The present champion, as the candidate is compared with it.

    Attributes:
        version: of the move that made it champion.
        predicted: int64 [N] on the *candidate's* test split; None when it cannot be scored there, as for another dataset.
        best_accuracy: of all champions so far on this very test split; None when none was ever scored on it.
    """

    model: CommittedModel
    version: int
    predicted: Labels | None
    best_accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the gate says.

    Attributes:
        rule: the row that decided, of the table in docs/retraining.md (How the gate decides).
        reason: for people, with the numbers.
        numbers: everything that was measured.
    """

    verdict: Verdict
    rule: str
    reason: str
    numbers: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRecord:
    """A decision as gate.json, and the move that it led to, record it.

    Attributes:
        model: the name whose champion the run may become.
        decided: ISO 8601 in UTC.
        compared_with: `version` and `run` of the champion of that time; None when there was none.
        version: the champion version that the run was given; None when it was not promoted.
    """

    run: str
    model: str
    decided: str
    who: str
    verdict: Verdict
    rule: str
    reason: str
    numbers: Mapping[str, Any]
    compared_with: Mapping[str, Any] | None
    version: int | None

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def of(cls, record: Mapping[str, Any], *, key: str) -> "GateRecord":
        """Parse a stored record.

        Raises:
            IntegrityError: the record is no decision of the gate.
        """
        missing = {field.name for field in fields(cls)} - record.keys()
        if missing or not isinstance(record["numbers"], dict):
            reason = f"it lacks {', '.join(sorted(missing))}" if missing else "its numbers are no object"
            raise IntegrityError(f"store: {key} is no decision of the gate: {reason}")
        return cls(**{field.name: record[field.name] for field in fields(cls)})


def decide(candidate: Candidate, champion: Champion | None, *, rules: PromotionSection) -> Decision:
    """The gate's table (docs/retraining.md), row by row; the first row that applies decides."""
    numbers = _numbers(candidate, champion)
    refusal = (champion and _not_comparable(candidate, champion)) or _below_floor(numbers, rules)
    if not refusal and champion:
        refusal = _worse(numbers, champion, rules)
    if refusal:
        verdict, rule, reason = refusal
        return Decision(verdict=verdict, rule=rule, reason=reason, numbers=numbers)
    if not champion:
        reason = f"the first champion, with accuracy {numbers['accuracy']:.4f}"
        return Decision(verdict="promoted", rule="first", reason=reason, numbers=numbers)
    reason = (
        f"accuracy {numbers['accuracy']:.4f} against the champion's {numbers['champion_accuracy']:.4f}: not worse "
        f"(p = {numbers['p_value']:.2g})"
    )
    return Decision(verdict="promoted", rule="not_worse", reason=reason, numbers=numbers)


def mcnemar(*, only_champion_right: int, only_candidate_right: int) -> float:
    """Exact McNemar test, one-sided (McNemar 1947): takes the examples that only one of the two models gets right.

    Returns:
        The probability that an equally good candidate loses at least so many of them; each is then a fair coin.
    """
    total = only_champion_right + only_candidate_right
    if only_champion_right <= total / 2:
        # P(X >= b) = 1 - P(X >= n - b + 1): sums stay in the short tail.
        return 1.0 - _upper_tail(total, total - only_champion_right + 1)
    return _upper_tail(total, only_champion_right)


def _upper_tail(total: int, at_least: int) -> float:
    """P(X >= at_least) for X binomial(total, 1/2), where at_least is above total / 2: its terms only get smaller."""
    if at_least > total:
        return 0.0
    log_term = math.lgamma(total + 1) - math.lgamma(at_least + 1) - math.lgamma(total - at_least + 1)
    term = first = math.exp(log_term - total * math.log(2))
    summed = 0.0
    for number in range(at_least, total + 1):
        summed += term
        if term <= first * _NEGLIGIBLE:
            break
        term *= (total - number) / (number + 1)
    return min(summed, 1.0)


_Refusal = tuple[Verdict, str, str]


def _not_comparable(candidate: Candidate, champion: Champion) -> _Refusal | None:
    """Rows that are decided without accuracies."""
    ours, theirs = candidate.model, champion.model
    if ours.weights_digest == theirs.weights_digest:
        reason = f"same as champion: the weights of version {champion.version} (run {theirs.run})"
        return "same", "same_weights", reason
    if ours.dataset != theirs.dataset:
        return "refused", "other_dataset", f"trained on {ours.dataset}, the champion on {theirs.dataset}"
    if ours.created < theirs.created:
        reason = f"older than the champion: started {ours.created}, the champion's run {theirs.created}"
        return "refused", "older_run", reason
    if champion.predicted is None:
        return "refused", "not_comparable", "the champion has no predictions for this run's test examples"
    return None


def _below_floor(numbers: Mapping[str, Any], rules: PromotionSection) -> _Refusal | None:
    accuracy, recall = numbers["accuracy"], numbers["lowest_recall"]
    if accuracy < rules.min_accuracy - _ROUNDING:
        reason = f"accuracy {accuracy:.4f} is below promotion.min_accuracy {rules.min_accuracy:g}"
        return "refused", "min_accuracy", reason
    if recall < rules.min_class_recall - _ROUNDING:
        reason = (
            f"class {numbers['lowest_recall_class']} is recalled {recall:.4f}, below promotion.min_class_recall "
            f"{rules.min_class_recall:g}"
        )
        return "refused", "min_class_recall", reason
    return None


def _worse(numbers: Mapping[str, Any], champion: Champion, rules: PromotionSection) -> _Refusal | None:
    accuracy, best = numbers["accuracy"], numbers["best_accuracy"]
    if best - accuracy > rules.max_accuracy_drop + _ROUNDING:
        reason = (
            f"accuracy {accuracy:.4f} is {best - accuracy:.4f} below the best champion so far ({best:.4f}); "
            f"promotion.max_accuracy_drop is {rules.max_accuracy_drop:g}"
        )
        return "refused", "max_accuracy_drop", reason
    if numbers["p_value"] < rules.significance and numbers["only_champion_right"] > numbers["only_candidate_right"]:
        reason = (
            f"worse than version {champion.version}: {numbers['only_champion_right']} examples only the champion gets "
            f"right, {numbers['only_candidate_right']} only this run; p = {numbers['p_value']:.2g} is below "
            f"promotion.significance {rules.significance:g}"
        )
        return "refused", "significance", reason
    return None


def _numbers(candidate: Candidate, champion: Champion | None) -> dict[str, Any]:
    is_right = candidate.predicted == candidate.labels
    recalls = {int(label): float(is_right[candidate.labels == label].mean()) for label in np.unique(candidate.labels)}
    lowest = min(recalls, key=lambda label: recalls[label])
    numbers: dict[str, Any] = {
        "accuracy": float(is_right.mean()),
        "examples": len(candidate.labels),
        "lowest_recall": recalls[lowest],
        "lowest_recall_class": lowest,
    }
    if champion is None or champion.predicted is None:
        return numbers
    champion_is_right = champion.predicted == candidate.labels
    champion_accuracy = float(champion_is_right.mean())
    only = {
        "only_champion_right": int((champion_is_right & ~is_right).sum()),
        "only_candidate_right": int((is_right & ~champion_is_right).sum()),
    }
    best = champion_accuracy if champion.best_accuracy is None else max(champion_accuracy, champion.best_accuracy)
    return numbers | {
        "champion_accuracy": champion_accuracy,
        "best_accuracy": best,
        **only,
        "p_value": mcnemar(**only),
    }
