"""The gate as a pure function: every row of its table, and their order."""

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from job.config import PromotionSection
from job.registry import rules
from job.registry.comparison import Anchor, Candidate, Champion
from job.registry.rules import Decision, decide
from job.runs.read import CommittedModel, Predictions
from tests.conftest import REPOSITORY

LABELS = np.arange(1000, dtype=np.int64) % 10
NAMES = tuple("0123456789")
RULES = PromotionSection()


def with_wrong(*wrong: int) -> NDArray[np.float32]:
    """Predictions that are right but at these positions, where the next class is a little more probable."""
    probabilities = 0.4 * np.eye(10, dtype=np.float32)[LABELS]
    probabilities[list(wrong), (LABELS[list(wrong)] + 1) % 10] = 0.6
    return probabilities


def predictions(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64] = LABELS, names: tuple[str, ...] | None = NAMES
) -> Predictions:
    images = np.zeros((1, 2, 2), np.uint8)
    return Predictions(probabilities=probabilities, labels=labels, sample_images=images, class_names=names)


def candidate_of(probabilities: NDArray[np.float32]) -> Candidate:
    return replace(CANDIDATE, predictions=predictions(probabilities))


def first(count: int, after: int = 0) -> NDArray[np.float32]:
    """Wrong on so many examples, from the first after so many."""
    return with_wrong(*range(after, after + count))


NEW = CommittedModel(
    run="new", created="2026-02-02", dataset="mnist", evaluation_digest="e", weights_digest="w2", accuracy=0.95
)
OLD = replace(NEW, run="old", created="2026-02-01", weights_digest="w1")
CANDIDATE = Candidate(model=NEW, predictions=predictions(first(50)), recorded={"test_accuracy": 0.95, "test_mine": 0.7})
CHAMPION = Champion(
    model=OLD,
    version=7,
    num_classes=10,
    class_names=NAMES,
    probabilities=first(50),
    recorded={"test_accuracy": 0.95, "test_mine": 0.7},
    anchor=Anchor(evaluation_digest="e", metric="accuracy", value=0.95, run="old"),
    anchor_probabilities=None,
)


def measured_by(probabilities: NDArray[np.float32] | None, *, value: float, metric: str = "accuracy") -> Champion:
    """The champion, where another one is what all are measured by."""
    anchor = Anchor(evaluation_digest="e", metric=metric, value=value, run="older")
    return replace(CHAMPION, anchor=anchor, anchor_probabilities=probabilities)


def rule_of(candidate: Candidate, champion: Champion | None, rules: PromotionSection = RULES) -> tuple[str, str]:
    decision = decide(candidate, champion, rules=rules)
    return decision.verdict, decision.rule


class TestRows:
    def test_first_champion_needs_the_floors_only(self) -> None:
        decision = decide(CANDIDATE, None, rules=RULES)
        assert decision == Decision(
            verdict="promoted",
            rule="first",
            reason="the first champion, with accuracy 0.9500",
            numbers={
                "accuracy": 0.95,
                "examples": 1000,
                "lowest_recall": 0.95,
                "lowest_recall_class": 0,
                "constant": 0.1,
                "constant_p_value": pytest.approx(0.0, abs=1e-300),
            },
        )
        assert rule_of(CANDIDATE, None, PromotionSection(min_accuracy=0.951)) == ("refused", "min_accuracy")

    def test_same_weights_are_not_promoted_and_not_refused(self) -> None:
        decision = decide(
            CANDIDATE, replace(CHAMPION, model=replace(OLD, weights_digest="w2"), probabilities=None), rules=RULES
        )
        assert (decision.verdict, decision.rule) == ("same", "same_weights")
        assert decision.reason == "same as champion: the weights of version 7 (run old)"

    @pytest.mark.security("S5")
    def test_reason_is_short_whatever_others_call_things(self) -> None:
        long = replace(CHAMPION, class_names=tuple(f"{number}{'x' * 900}" for number in range(10)), probabilities=None)
        ours = replace(CANDIDATE, predictions=replace(CANDIDATE.predictions, class_names=NAMES))
        other_data = replace(CHAMPION, model=replace(OLD, dataset="x" * 1000), probabilities=None)
        many = replace(CANDIDATE, recorded={f"test_{number}{'x' * 500}": 0.5 for number in range(1000)})
        mine = RULES.model_copy(update={"metric": "mine"})
        decisions = [
            decide(ours, long, rules=RULES),
            decide(ours, replace(long, num_classes=9), rules=RULES),
            decide(CANDIDATE, other_data, rules=RULES),
            decide(many, None, rules=mine),
        ]
        assert [decision.rule for decision in decisions] == [
            "other_classes",
            "other_classes",
            "other_dataset",
            "no_metric",
        ]
        assert max(len(decision.reason) for decision in decisions) < 2000

    def test_another_dataset_is_refused(self) -> None:
        decision = decide(
            CANDIDATE, replace(CHAMPION, model=replace(OLD, dataset="digits"), probabilities=None), rules=RULES
        )
        assert (decision.verdict, decision.rule) == ("refused", "other_dataset")
        assert decision.reason == "trained on mnist, the champion on digits"

    @pytest.mark.parametrize(("created", "verdict"), [("2026-01-31", "refused"), ("2026-02-01", "promoted")])
    def test_run_that_was_started_before_the_champions_is_refused(self, created: str, verdict: str) -> None:
        assert rule_of(replace(CANDIDATE, model=replace(NEW, created=created)), CHAMPION)[0] == verdict

    def test_champion_without_comparable_predictions_is_not_displaced(self) -> None:
        assert rule_of(CANDIDATE, replace(CHAMPION, probabilities=None)) == ("refused", "not_comparable")

    @pytest.mark.parametrize(("floor", "verdict"), [(0.95, "promoted"), (0.9501, "refused")])
    def test_accuracy_below_the_floor_is_refused(self, floor: float, verdict: str) -> None:
        assert rule_of(CANDIDATE, CHAMPION, PromotionSection(min_accuracy=floor))[0] == verdict

    @pytest.mark.parametrize(("floor", "verdict"), [(0.9, "promoted"), (0.91, "refused")])
    def test_one_class_recalled_too_seldom_is_refused(self, floor: float, verdict: str) -> None:
        wrong = [position for position in range(1000) if LABELS[position] == 3][:10]
        decision = decide(candidate_of(with_wrong(*wrong)), CHAMPION, rules=PromotionSection(min_class_recall=floor))
        assert decision.verdict == verdict
        assert (decision.numbers["lowest_recall"], decision.numbers["lowest_recall_class"]) == (0.9, 3)

    def test_class_without_test_examples_has_no_recall(self) -> None:
        labels = LABELS % 5
        candidate = replace(CANDIDATE, predictions=predictions(np.eye(10, dtype=np.float32)[labels], labels))
        assert rule_of(candidate, None, PromotionSection(min_class_recall=1.0)) == ("promoted", "first")

    @pytest.mark.parametrize(("num_worse", "rule"), [(1, "not_worse"), (4, "not_worse"), (5, "max_accuracy_drop")])
    def test_drop_below_the_best_champion_is_refused_when_it_is_no_chance(self, num_worse: int, rule: str) -> None:
        """Five lost and none won: p = 1 / 32. One example is no reason, whatever the share that it is."""
        assert rule_of(candidate_of(first(50 + num_worse)), CHAMPION)[1] == rule

    @pytest.mark.parametrize(
        ("num_worse", "rule"), [(2, "not_worse"), (3, "max_accuracy_drop"), (900, "max_accuracy_drop")]
    )
    def test_without_significance_the_drop_alone_decides(self, num_worse: int, rule: str) -> None:
        decision = decide(candidate_of(first(50 + num_worse)), CHAMPION, rules=PromotionSection(significance=0))
        assert decision.rule == rule
        assert rule == "not_worse" or "without a test" in decision.reason

    def test_metric_that_is_no_number_is_refused(self) -> None:
        candidate = replace(CANDIDATE, recorded={"test_accuracy": 0.95, "test_mine": float("nan")})
        rules = PromotionSection(metric="mine")
        assert rule_of(candidate, None, rules) == rule_of(candidate, CHAMPION, rules) == ("refused", "no_metric")

    def test_drop_within_the_allowed_one_is_left_to_the_other_test(self) -> None:
        rules = PromotionSection(max_accuracy_drop=0.005)
        assert rule_of(candidate_of(first(55)), CHAMPION, rules)[1] == "significance"

    def test_small_drops_do_not_add_up(self) -> None:
        """Not worse than the champion, but than the one that all are measured by."""
        decision = decide(CANDIDATE, measured_by(first(40), value=0.96), rules=RULES)
        assert (decision.rule, decision.numbers["p_value"]) == ("max_accuracy_drop", 1.0)
        assert decision.reason == (
            "accuracy 0.9500 is 0.0100 below the champion that all are measured by (0.9600), p = 0.00098 is below 0.025; "
            "promotion.max_accuracy_drop is 0.002"
        )

    @pytest.mark.parametrize(("num_worse", "verdict"), [(5, "promoted"), (6, "refused")])
    def test_two_tests_share_the_level(self, num_worse: int, verdict: str) -> None:
        """Five lost and none won: p = 1 / 32 is below 0.05 and not below its half."""
        assert rule_of(candidate_of(first(50 + num_worse)), measured_by(first(50), value=0.95))[0] == verdict
        assert rule_of(candidate_of(first(50 + num_worse)), measured_by(first(100), value=0.9))[0] == verdict

    @pytest.mark.parametrize(("value", "verdict"), [(0.96, "promoted"), (0.97, "refused")])
    def test_anchor_whose_predictions_are_gone_is_compared_by_its_accuracy(self, value: float, verdict: str) -> None:
        decision = decide(CANDIDATE, measured_by(None, value=value), rules=RULES)
        assert (decision.verdict, decision.numbers["anchor_accuracy"]) == (verdict, value)
        assert decision.numbers["anchor_p_value"] == pytest.approx({0.96: 0.17, 0.97: 0.015}[value], rel=0.05)

    @pytest.mark.parametrize(("num_better", "is_new"), [(0, False), (13, False), (14, True)])
    def test_anchor_is_replaced_by_what_is_better_beyond_doubt(self, num_better: int, is_new: bool) -> None:
        """1 / 2^13 is not below 0.05 / 500, and 1 / 2^14 is. A lucky anchor would refuse its equals for long."""
        for champion in (CHAMPION, measured_by(first(50), value=0.95)):
            decision = decide(candidate_of(first(50 - num_better)), champion, rules=RULES)
            assert (decision.verdict, decision.numbers["is_new_anchor"]) == ("promoted", is_new)

    @pytest.mark.parametrize(("num_wrong", "is_new"), [(39, True), (40, True), (41, False)])
    def test_anchor_whose_predictions_are_gone_is_replaced_by_its_equal(self, num_wrong: int, is_new: bool) -> None:
        decision = decide(candidate_of(first(num_wrong)), measured_by(None, value=0.96), rules=RULES)
        assert (decision.verdict, decision.numbers["is_new_anchor"]) == ("promoted", is_new)

    def test_champion_scored_again_is_what_its_test_split_is_measured_by(self) -> None:
        champion = replace(CHAMPION, probabilities=first(40), anchor=None)
        decision = decide(CANDIDATE, champion, rules=RULES)
        assert (decision.rule, decision.numbers["anchor_accuracy"]) == ("max_accuracy_drop", 0.96)

    def test_worse_by_mcnemar_is_refused(self) -> None:
        """Within the allowed drop, but hardly by chance."""
        candidate = candidate_of(first(60))
        decision = decide(candidate, CHAMPION, rules=PromotionSection(max_accuracy_drop=0.1))
        assert (decision.verdict, decision.rule) == ("refused", "significance")
        assert decision.numbers["p_value"] == pytest.approx(2**-10)
        assert "10 examples only the champion gets right, 0 only this run; p = 0.00098 is below 0.05" in decision.reason
        assert (
            rule_of(candidate, CHAMPION, PromotionSection(max_accuracy_drop=0.1, significance=2**-10))[1] == "not_worse"
        )

    def test_as_many_lost_as_won_is_not_worse(self) -> None:
        decision = decide(candidate_of(first(50, after=50)), CHAMPION, rules=PromotionSection(significance=1.0))
        assert (decision.verdict, decision.rule) == ("promoted", "not_worse")
        assert (decision.numbers["only_champion_right"], decision.numbers["only_candidate_right"]) == (50, 50)

    def test_better_is_promoted(self) -> None:
        decision = decide(candidate_of(first(0)), CHAMPION, rules=RULES)
        assert (decision.verdict, decision.rule) == ("promoted", "not_worse")
        assert decision.reason == "accuracy 1.0000 against the champion's 0.9500: not worse (p = 1)"


class TestResolution:
    """The rule knows what its test split can show: a promotion says "not measurably worse" where something was lost."""

    @pytest.mark.parametrize(
        ("lost", "significance", "text"),
        [
            (
                4,
                0.05,
                "0.9460 against the champion's 0.9500: not measurably worse (p = 0.062; on 1000 examples no loss below 0.0050",
            ),
            (0, 0.05, "0.9500 against the champion's 0.9500: not worse (p = 1)"),
            (1, 0.0, "0.9490 against the champion's 0.9500: not measurably worse (p = 0.5)"),
        ],
    )
    def test_a_loss_that_may_be_chance_is_not_called_none(self, lost: int, significance: float, text: str) -> None:
        decision = decide(candidate_of(first(50 + lost)), CHAMPION, rules=PromotionSection(significance=significance))
        assert (decision.verdict, text in decision.reason) == ("promoted", True), decision.reason

    def test_what_is_said_to_be_the_smallest_loss_is_the_smallest_that_is_refused(self) -> None:
        smallest = rules.smallest_loss(RULES, num_examples=1000)
        assert smallest == 0.005
        assert decide(candidate_of(first(55)), CHAMPION, rules=RULES).verdict == "refused"
        assert decide(candidate_of(first(54)), CHAMPION, rules=RULES).verdict == "promoted"

    def test_a_metric_that_is_no_share_of_examples_has_none(self) -> None:
        assert rules.smallest_loss(PromotionSection(metric="auc"), num_examples=1000) is None


class TestClasses:
    """Predictions of other classes are never compared, even where the numbers would fit."""

    def test_other_order_is_refused_with_both_said(self) -> None:
        champion = replace(CHAMPION, class_names=("1", "0", *NAMES[2:]))
        decision = decide(CANDIDATE, champion, rules=RULES)
        assert (decision.verdict, decision.rule) == ("refused", "other_classes")
        assert decision.reason == (
            "its classes (0, 1, 2, 3, 4, ...) are not the champion's (1, 0, 2, 3, 4, ...): class 0 is '0', the champion's is '1'"
        )

    @pytest.mark.parametrize("names", [None, tuple("abcdefghijkl")])
    def test_other_count_is_refused_with_both_said(self, names: tuple[str, ...] | None) -> None:
        champion = replace(CHAMPION, num_classes=12, class_names=names, probabilities=None)
        decision = decide(CANDIDATE, champion, rules=RULES)
        assert (decision.verdict, decision.rule) == ("refused", "other_classes")
        shown = " (a, b, c, d, e, ...)" if names else ""
        assert decision.reason == f"it knows 10 classes (0, 1, 2, 3, 4, ...), the champion 12{shown}"

    def test_names_are_compared_for_equal_weights_too(self) -> None:
        champion = replace(CHAMPION, model=replace(OLD, weights_digest="w2"), class_names=tuple("abcdefghij"))
        assert rule_of(CANDIDATE, replace(champion, probabilities=None)) == ("refused", "other_classes")

    @pytest.mark.parametrize("whose", ["ours", "theirs"])
    def test_names_that_an_older_run_does_not_record_are_not_compared(self, whose: str) -> None:
        candidate = replace(CANDIDATE, predictions=predictions(first(50), names=None if whose == "ours" else NAMES))
        champion = replace(CHAMPION, class_names=None if whose == "theirs" else tuple("abcdefghij"))
        assert rule_of(candidate, champion) == ("promoted", "not_worse")


class TestFirstChampion:
    """Without a champion to compare with, there is whoever always says the most frequent class."""

    @pytest.mark.parametrize(("num_right", "verdict"), [(100, "refused"), (116, "refused"), (117, "promoted")])
    def test_chance_is_not_enough(self, num_right: int, verdict: str) -> None:
        """P(X >= 116) = 0.055 and P(X >= 117) = 0.044 for X binomial(1000, 0.1)."""
        decision = decide(candidate_of(first(1000 - num_right)), None, rules=RULES)
        assert decision.verdict == verdict
        assert decision.rule == ("first" if verdict == "promoted" else "majority")

    def test_reason_tells_what_is_missing(self) -> None:
        below = decide(candidate_of(first(900)), None, rules=RULES).reason
        assert below.startswith("accuracy 0.1000 is not above 0.1000, which it takes to say the most frequent class")
        by_chance = decide(candidate_of(first(890)), None, rules=RULES).reason
        assert by_chance.startswith("accuracy 0.1100 is not above 0.1000 by more than chance (p = 0.16), which")
        assert by_chance.endswith("train longer, or move it by hand with promote --force")

    def test_without_significance_any_accuracy_above_is_enough(self) -> None:
        rules = PromotionSection(significance=0)
        assert rule_of(candidate_of(first(899)), None, rules)[0] == "promoted"
        assert rule_of(candidate_of(first(900)), None, rules)[0] == "refused"

    def test_majority_is_that_of_the_labels(self) -> None:
        labels = np.where(np.arange(1000) < 950, 3, LABELS)
        candidate = replace(CANDIDATE, predictions=predictions(0.9 * np.eye(10, dtype=np.float32)[[3] * 1000], labels))
        decision = decide(candidate, None, rules=RULES)
        assert (decision.rule, decision.numbers["constant"]) == ("majority", 0.955)

    @pytest.mark.parametrize(("metric", "constant"), [("auc", 0.5), ("f1_macro", 2 / 11 / 10), ("top_3_accuracy", 0.3)])
    def test_other_metrics_have_a_floor_of_their_own(self, metric: str, constant: float) -> None:
        same = np.full((1000, 10), 0.1, np.float32)
        decision = decide(candidate_of(same), None, rules=PromotionSection(metric=metric))
        assert decision.rule == "majority"
        assert decision.numbers["constant"] == pytest.approx(constant)
        assert rule_of(CANDIDATE, None, PromotionSection(metric=metric)) == ("promoted", "first")


class TestMetric:
    @pytest.mark.parametrize("metric", ["auc", "f1_macro", "top_1_accuracy"])
    def test_worse_and_equal_by_another_metric(self, metric: str) -> None:
        rules = PromotionSection(metric=metric)
        equal = decide(candidate_of(first(50, after=50)), CHAMPION, rules=rules)
        assert (equal.verdict, equal.rule) == ("promoted", "not_worse")
        assert equal.reason.startswith(f"{metric} 0.9")
        assert equal.numbers["metric"] == metric
        assert equal.numbers[metric] == pytest.approx(equal.numbers[f"champion_{metric}"], abs=0.01)
        worse = decide(candidate_of(first(70)), replace(CHAMPION, anchor=None), rules=rules)
        assert (worse.verdict, worse.rule) == ("refused", "max_accuracy_drop")
        assert worse.reason.startswith(f"{metric} 0.9")
        wide = decide(candidate_of(first(70)), CHAMPION, rules=PromotionSection(metric=metric, max_accuracy_drop=0.5))
        assert (wide.verdict, wide.rule) == ("refused", "significance")

    def test_decision_is_the_same_each_time(self) -> None:
        rules = PromotionSection(metric="auc")
        once, again = (decide(candidate_of(first(53, after=3)), CHAMPION, rules=rules) for _ in range(2))
        assert once == again

    def test_anchor_by_another_metric_is_compared_by_pairs_or_not_at_all(self) -> None:
        rules, candidate = PromotionSection(metric="f1_macro"), candidate_of(first(80))
        champion = replace(measured_by(first(50), value=0.95, metric="f1_macro"), probabilities=first(80))
        assert rule_of(candidate, champion, rules) == ("refused", "max_accuracy_drop")
        decision = decide(candidate, replace(champion, anchor_probabilities=None), rules=rules)
        assert (decision.verdict, "anchor_p_value" in decision.numbers) == ("promoted", False)

    @pytest.mark.parametrize(
        ("ours", "anchor", "rule", "is_new"),
        [
            (0.7, 0.7, "not_worse", False),
            (0.703, 0.7, "not_worse", True),
            (0.697, 0.7, "max_accuracy_drop", None),
            (0.7, 0.71, "max_accuracy_drop", None),
        ],
    )
    def test_metric_of_the_users_own_is_compared_as_recorded(
        self, ours: float, anchor: float, rule: str, is_new: bool | None
    ) -> None:
        candidate = replace(CANDIDATE, recorded={"test_mine": ours})
        champion = measured_by(first(50), value=anchor, metric="mine")
        decision = decide(candidate, champion, rules=PromotionSection(metric="mine"))
        assert (decision.rule, decision.numbers["test_mine"]) == (rule, ours)
        assert decision.numbers.get("is_new_anchor") == is_new
        assert "without a test" in decision.reason

    def test_metric_that_a_run_lacks_is_refused_by_name(self) -> None:
        rules = PromotionSection(metric="acuracy")
        for champion in (None, CHAMPION):
            decision = decide(CANDIDATE, champion, rules=rules)
            assert (decision.verdict, decision.rule) == ("refused", "no_metric")
            assert decision.reason == (
                "promotion.metric is acuracy: the run recorded no test_acuracy, only test_accuracy, test_mine; use accuracy, "
                "top_K_accuracy, auc, f1_macro, or a metric of your compiled model"
            )
        decision = decide(CANDIDATE, replace(CHAMPION, recorded={}), rules=PromotionSection(metric="mine"))
        assert (decision.verdict, decision.rule) == ("refused", "no_metric")
        assert decision.reason.endswith("the champion recorded no test_mine on this run's test examples")


def test_first_row_that_applies_decides() -> None:
    """Each row wins against all later ones: the broken rules are mended one by one, in the table's order."""
    candidate = replace(candidate_of(first(60)), model=replace(NEW, created="2026-01-01"))
    champion = replace(
        CHAMPION, model=replace(OLD, weights_digest="w2", dataset="digits"), class_names=NAMES[::-1], probabilities=None
    )
    rules = PromotionSection(min_accuracy=0.99, min_class_recall=0.99, max_accuracy_drop=0.0, metric="unknown")
    rows = []
    mend: list[Callable[[], tuple[Candidate, Champion, PromotionSection]]] = [
        lambda: (candidate, replace(champion, class_names=NAMES), rules),
        lambda: (candidate, replace(champion, model=replace(champion.model, weights_digest="w1")), rules),
        lambda: (candidate, replace(champion, model=replace(champion.model, dataset="mnist")), rules),
        lambda: (replace(candidate, model=replace(candidate.model, created="2026-03-01")), champion, rules),
        lambda: (candidate, replace(champion, probabilities=CHAMPION.probabilities), rules),
        lambda: (candidate, champion, rules.model_copy(update={"min_accuracy": 0.0})),
        lambda: (candidate, champion, rules.model_copy(update={"min_class_recall": 0.0})),
        lambda: (candidate, champion, rules.model_copy(update={"metric": "accuracy"})),
        lambda: (candidate, champion, rules.model_copy(update={"max_accuracy_drop": 0.5})),
        lambda: (candidate, champion, rules.model_copy(update={"significance": 0.0})),
    ]
    for step in mend:
        rows.append(decide(candidate, champion, rules=rules).rule)
        candidate, champion, rules = step()
    rows.append(decide(candidate, champion, rules=rules).rule)
    assert rows == [
        "other_classes",
        "same_weights",
        "other_dataset",
        "older_run",
        "not_comparable",
        "min_accuracy",
        "min_class_recall",
        "no_metric",
        "max_accuracy_drop",
        "significance",
        "not_worse",
    ]


def test_every_row_is_in_the_documents() -> None:
    """docs/retraining.md has the table, row by row."""
    source = Path(inspect.getfile(rules)).read_text("utf-8")
    rows = set(re.findall(r'return "(?:refused|same|promoted)", "(\w+)"', source))
    assert len(rows) == 13
    text = (REPOSITORY / "docs" / "retraining.md").read_text("utf-8")
    assert rows == set(
        re.findall(r"^\| `(\w+)` \|", text[text.index("| row (`rule`)") :].split("\n\n")[0], re.MULTILINE)
    )
