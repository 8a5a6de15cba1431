"""The gate's rules: whether a committed run may become the champion. A pure function of plain values; reads and writes nothing.

Works on the predictions that two models made on one test split, so that no model has to be loaded. The numbers that it
decides about are made in `comparison.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from job.config import PromotionSection
from job.measures import is_measure, is_share
from job.registry.comparison import Candidate, Champion, beside_champion, beside_constant, key_of, measure_alone
from job.registry.significance import fewest_lost
from job.runs.read import Predictions
from job.runs.shapes import Count, Id, Name, Shape, Text, Time, to_shape

FORMAT = 1
"""Of gate.json."""

Verdict = Literal["promoted", "same", "refused"]

_ROUNDING = 1e-12
"""Accuracies are quotients: 0.98 - 0.978 is a little more than 0.002."""
_SMALLEST_BAR = 1e-4
"""The permutation test says no smaller p than half of this."""
_BEYOND_DOUBT = 500
"""An anchor is replaced at promotion.significance over this: one that was replaced by luck would refuse its equals for long."""
_MAX_NAMES = 5
"""Class names, and names of metrics, that a reason shows."""
_MAX_METRICS = 20
_MAX_NAME_CHARACTERS = 60


class _GateFile(Shape):
    """What gate.json must hold, and the decision in the record of a move."""

    format: Literal[1] = 1
    run: Id
    model: Name
    decided: Time
    who: Name
    verdict: Verdict
    rule: Name
    reason: Text
    numbers: dict[str, Any]
    compared_with: dict[str, Any] | None
    version: Count | None


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
        to_shape(_GateFile, record, name=f"store: {key} is no decision of the gate")
        return cls(**{field.name: record[field.name] for field in fields(cls)})


def decide(candidate: Candidate, champion: Champion | None, *, rules: PromotionSection) -> Decision:
    """The gate's table (docs/retraining.md), row by row; the first row that applies decides."""
    numbers = measure_alone(candidate, rules.metric)
    if champion is None:
        numbers |= beside_constant(candidate, rules.metric)
    elif champion.probabilities is not None:
        numbers |= beside_champion(candidate, champion, rules.metric)
    refusal = (
        (champion and _not_comparable(candidate, champion))
        or _below_floor(numbers, rules)
        or _without_metric(candidate, champion, numbers, rules)
        or (_worse(numbers, champion, rules) if champion else _not_above_constant(numbers, rules))
    )
    verdict, rule, reason = refusal or _promoted(numbers, champion, rules)
    if champion and verdict == "promoted":
        numbers["is_new_anchor"] = _replaces_anchor(numbers, champion, rules)
    return Decision(verdict=verdict, rule=rule, reason=reason, numbers=numbers)


def smallest_loss(rules: PromotionSection, *, num_examples: int, level: float | None = None) -> float | None:
    """The smallest loss that the test tells from chance: some examples lost, none won. None for metrics that are no share.

    Args:
        level: of the test; `promotion.significance` unless given, as against a champion that is the anchor.
    """
    if not is_share(rules.metric) or num_examples < 1:
        return None
    return fewest_lost(rules.significance if level is None else level) / num_examples


_Row = tuple[Verdict, str, str]


def _promoted(numbers: Mapping[str, Any], champion: Champion | None, rules: PromotionSection) -> _Row:
    key = key_of(rules.metric)
    said = f"{rules.metric} {numbers[key]:.4f}"
    if champion is None:
        return "promoted", "first", f"the first champion, with {said}"
    theirs = numbers[f"champion_{key}"]
    is_lower = numbers[key] < theirs - _ROUNDING
    said = f"{said} against the champion's {theirs:.4f}: not {'measurably ' if is_lower else ''}worse"
    if "p_value" not in numbers:
        return "promoted", "not_worse", f"{said}, without a test"
    more = _say_resolution(numbers, champion, rules) if is_lower else ""
    return "promoted", "not_worse", f"{said} (p = {numbers['p_value']:.2g}{more})"


def _say_resolution(numbers: Mapping[str, Any], champion: Champion, rules: PromotionSection) -> str:
    smallest = smallest_loss(rules, num_examples=numbers["examples"], level=_level(champion, rules))
    if smallest is None or not rules.significance:
        return ""
    return f"; on {numbers['examples']} examples no loss below {smallest:.4f} can be told from chance"


def _not_comparable(candidate: Candidate, champion: Champion) -> _Row | None:
    """Rows that are decided without accuracies."""
    ours, theirs = candidate.model, champion.model
    other_classes = _describe_other_classes(candidate.predictions, champion)
    if other_classes:
        return "refused", "other_classes", other_classes
    if ours.weights_digest == theirs.weights_digest:
        reason = f"same as champion: the weights of version {champion.version} (run {theirs.run})"
        return "same", "same_weights", reason
    if ours.dataset != theirs.dataset:
        reason = f"trained on {_show_name(ours.dataset)}, the champion on {_show_name(theirs.dataset)}"
        return "refused", "other_dataset", reason
    if ours.created < theirs.created:
        reason = f"older than the champion: started {ours.created}, the champion's run {theirs.created}"
        return "refused", "older_run", reason
    if champion.probabilities is None:
        reason = "the champion has no predictions for this run's test examples"
        return "refused", "not_comparable", f"{reason}: {champion.unscored}" if champion.unscored else reason
    return None


def _describe_other_classes(ours: Predictions, champion: Champion) -> str | None:
    """In what the classes differ, as far as both runs record them; None when in nothing."""
    names, theirs, num_ours = ours.class_names, champion.class_names, ours.probabilities.shape[1]
    if champion.num_classes is not None and champion.num_classes != num_ours:
        return f"it knows {num_ours} classes{_show(names)}, the champion {champion.num_classes}{_show(theirs)}"
    if names is None or theirs is None or names == theirs:
        return None
    first = next(number for number, (one, other) in enumerate(zip(names, theirs, strict=True)) if one != other)
    return (
        f"its classes{_show(names)} are not the champion's{_show(theirs)}: class {first} is {_show_name(names[first])!r}, the "
        f"champion's is {_show_name(theirs[first])!r}"
    )


def _show(names: tuple[str, ...] | None) -> str:
    shown = ", ".join(map(_show_name, (names or ())[:_MAX_NAMES]))
    return f" ({shown}{', ...' if names and len(names) > _MAX_NAMES else ''})" if shown else ""


def _show_name(text: str) -> str:
    """A name that somebody else may have chosen, on one line."""
    return text if len(text) <= _MAX_NAME_CHARACTERS else f"{text[:_MAX_NAME_CHARACTERS]}..."


def _below_floor(numbers: Mapping[str, Any], rules: PromotionSection) -> _Row | None:
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


def _without_metric(
    candidate: Candidate, champion: Champion | None, numbers: Mapping[str, Any], rules: PromotionSection
) -> _Row | None:
    """The row of a metric that predictions do not give and that a COMMIT does not record."""
    key = key_of(rules.metric)
    if key in numbers and not math.isfinite(numbers[key]):
        return "refused", "no_metric", f"promotion.metric is {rules.metric}: the run recorded {numbers[key]}"
    if key not in numbers:
        names = [_show_name(name) for name in candidate.recorded if name.startswith("test_")]
        recorded = ", ".join([*names[:_MAX_METRICS], *(["..."] if len(names) > _MAX_METRICS else [])])
        reason = (
            f"promotion.metric is {rules.metric}: the run recorded no {key}, only {recorded}; use accuracy, top_K_accuracy, "
            "auc, f1_macro, or a metric of your compiled model"
        )
        return "refused", "no_metric", reason
    if champion and f"champion_{key}" not in numbers:
        reason = f"promotion.metric is {rules.metric}: the champion recorded no {key} on this run's test examples"
        return "refused", "no_metric", reason
    return None


def _worse(numbers: Mapping[str, Any], champion: Champion, rules: PromotionSection) -> _Row | None:
    """Worse than the anchor or the champion. Two tests share the level: an equal model is refused no more often than by one."""
    level = _level(champion, rules)
    return _drifted(numbers, rules, level=level) or _beaten(numbers, champion, rules, level=level)


def _level(champion: Champion, rules: PromotionSection) -> float:
    return rules.significance if champion.is_anchor else rules.significance / 2


def _drifted(numbers: Mapping[str, Any], rules: PromotionSection, *, level: float) -> _Row | None:
    key, p_value = key_of(rules.metric), numbers.get("anchor_p_value")
    value, anchor = numbers[key], numbers[f"anchor_{key}"]
    is_chance = (
        p_value >= level > 0 if p_value is not None else is_measure(rules.metric)
    )  # at level 0 nothing is tested
    if anchor - value <= rules.max_accuracy_drop + _ROUNDING or is_chance:
        return None
    tested = "without a test" if p_value is None or not level else f"p = {p_value:.2g} is below {level:g}"
    reason = (
        f"{rules.metric} {value:.4f} is {anchor - value:.4f} below the champion that all are measured by ({anchor:.4f}), "
        f"{tested}; promotion.max_accuracy_drop is {rules.max_accuracy_drop:g}"
    )
    return "refused", "max_accuracy_drop", reason


def _replaces_anchor(numbers: Mapping[str, Any], champion: Champion, rules: PromotionSection) -> bool:
    """Whether it is better than the anchor beyond doubt; where there is no test, by more than is allowed to be lost."""
    key, p_value = key_of(rules.metric), numbers.get("anchor_gain_p_value")
    gain = numbers[key] - numbers[f"anchor_{key}"]
    if champion.anchor is None or (is_measure(rules.metric) and not _has_predictions(champion)):
        return bool(gain >= 0)  # this one's predictions stay in the store
    if p_value is None:
        return bool(gain > rules.max_accuracy_drop + _ROUNDING)
    return bool(p_value < max(rules.significance / _BEYOND_DOUBT, _SMALLEST_BAR))


def _has_predictions(champion: Champion) -> bool:
    return champion.is_anchor or champion.anchor_probabilities is not None


def _beaten(numbers: Mapping[str, Any], champion: Champion, rules: PromotionSection, *, level: float) -> _Row | None:
    key, p_value = key_of(rules.metric), numbers.get("p_value", 1.0)
    value, theirs = numbers[key], numbers[f"champion_{key}"]
    if p_value >= level or value >= theirs:
        return None
    lost = f"{rules.metric} {value:.4f}, the champion's {theirs:.4f}"
    if "only_champion_right" in numbers:
        lost = (
            f"{numbers['only_champion_right']} examples only the champion gets right, "
            f"{numbers['only_candidate_right']} only this run"
        )
    reason = (
        f"worse than version {champion.version}: {lost}; p = {p_value:.2g} is below {level:g} "
        f"(promotion.significance {rules.significance:g})"
    )
    return "refused", "significance", reason


def _not_above_constant(numbers: Mapping[str, Any], rules: PromotionSection) -> _Row | None:
    """The floor of a first champion: whoever always says the most frequent class does as well without looking."""
    value, constant, p_value = numbers[key_of(rules.metric)], numbers.get("constant"), numbers.get("constant_p_value")
    if constant is None:
        return None
    by_chance = p_value is not None and p_value >= rules.significance > 0
    if value > constant + _ROUNDING and not by_chance:
        return None
    tested = f" by more than chance (p = {p_value:.2g})" if by_chance else ""
    reason = (
        f"{rules.metric} {value:.4f} is not above {constant:.4f}{tested}, which it takes to say the most frequent class "
        "whatever the image; train longer, or move it by hand with promote --force"
    )
    return "refused", "majority", reason
