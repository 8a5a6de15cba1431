"""The gate as a pure function: every row of its table, their order, and the exact McNemar test against brute force."""

import inspect
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from job.config import PromotionSection
from job.registry import rules
from job.registry.rules import Candidate, Champion, Decision, decide, mcnemar
from job.runs.read import CommittedModel
from tests.conftest import REPOSITORY

LABELS = np.arange(1000, dtype=np.int64) % 10
RULES = PromotionSection()


def with_wrong(*wrong: int) -> NDArray[np.int64]:
    """Predictions that are right but at these positions."""
    predicted = LABELS.copy()
    predicted[list(wrong)] = (LABELS[list(wrong)] + 1) % 10
    return predicted


NEW = CommittedModel(
    run="new", created="2026-02-02", dataset="mnist", evaluation_digest="e", weights_digest="w2", accuracy=0.95
)
OLD = replace(NEW, run="old", created="2026-02-01", weights_digest="w1")
CANDIDATE = Candidate(model=NEW, predicted=with_wrong(*range(50)), labels=LABELS)
CHAMPION = Champion(model=OLD, version=7, predicted=with_wrong(*range(50)), best_accuracy=0.95)


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
            numbers={"accuracy": 0.95, "examples": 1000, "lowest_recall": 0.95, "lowest_recall_class": 0},
        )
        assert rule_of(CANDIDATE, None, PromotionSection(min_accuracy=0.951)) == ("refused", "min_accuracy")

    def test_same_weights_are_not_promoted_and_not_refused(self) -> None:
        decision = decide(
            CANDIDATE, replace(CHAMPION, model=replace(OLD, weights_digest="w2"), predicted=None), rules=RULES
        )
        assert (decision.verdict, decision.rule) == ("same", "same_weights")
        assert decision.reason == "same as champion: the weights of version 7 (run old)"

    def test_another_dataset_is_refused(self) -> None:
        decision = decide(
            CANDIDATE, replace(CHAMPION, model=replace(OLD, dataset="digits"), predicted=None), rules=RULES
        )
        assert (decision.verdict, decision.rule) == ("refused", "other_dataset")
        assert decision.reason == "trained on mnist, the champion on digits"

    @pytest.mark.parametrize(("created", "verdict"), [("2026-01-31", "refused"), ("2026-02-01", "promoted")])
    def test_run_that_was_started_before_the_champions_is_refused(self, created: str, verdict: str) -> None:
        assert rule_of(replace(CANDIDATE, model=replace(NEW, created=created)), CHAMPION)[0] == verdict

    def test_champion_without_comparable_predictions_is_not_displaced(self) -> None:
        assert rule_of(CANDIDATE, replace(CHAMPION, predicted=None)) == ("refused", "not_comparable")

    @pytest.mark.parametrize(("floor", "verdict"), [(0.95, "promoted"), (0.9501, "refused")])
    def test_accuracy_below_the_floor_is_refused(self, floor: float, verdict: str) -> None:
        assert rule_of(CANDIDATE, CHAMPION, PromotionSection(min_accuracy=floor))[0] == verdict

    @pytest.mark.parametrize(("floor", "verdict"), [(0.9, "promoted"), (0.91, "refused")])
    def test_one_class_recalled_too_seldom_is_refused(self, floor: float, verdict: str) -> None:
        wrong = [position for position in range(1000) if LABELS[position] == 3][:10]
        candidate = replace(CANDIDATE, predicted=with_wrong(*wrong))
        decision = decide(candidate, CHAMPION, rules=PromotionSection(min_class_recall=floor))
        assert decision.verdict == verdict
        assert (decision.numbers["lowest_recall"], decision.numbers["lowest_recall_class"]) == (0.9, 3)

    def test_class_without_test_examples_has_no_recall(self) -> None:
        labels = LABELS % 5
        candidate = replace(CANDIDATE, labels=labels, predicted=labels)
        assert rule_of(candidate, None, PromotionSection(min_class_recall=1.0)) == ("promoted", "first")

    @pytest.mark.parametrize(("num_worse", "rule"), [(2, "not_worse"), (3, "max_accuracy_drop")])
    def test_drop_below_the_best_champion_is_refused(self, num_worse: int, rule: str) -> None:
        candidate = replace(CANDIDATE, predicted=with_wrong(*range(50 + num_worse)))
        assert rule_of(candidate, CHAMPION)[1] == rule

    def test_small_drops_do_not_add_up(self) -> None:
        """Not worse than the champion, but than the one before it."""
        champion = replace(CHAMPION, best_accuracy=0.9521)
        decision = decide(CANDIDATE, champion, rules=RULES)
        assert decision.rule == "max_accuracy_drop"
        assert decision.reason == (
            "accuracy 0.9500 is 0.0021 below the best champion so far (0.9521); promotion.max_accuracy_drop is 0.002"
        )

    def test_champion_scored_again_counts_as_the_best_of_its_test_split(self) -> None:
        champion = replace(CHAMPION, predicted=with_wrong(*range(40)), best_accuracy=None)
        decision = decide(CANDIDATE, champion, rules=RULES)
        assert (decision.rule, decision.numbers["best_accuracy"]) == ("max_accuracy_drop", 0.96)

    def test_worse_by_mcnemar_is_refused(self) -> None:
        """Within the allowed drop, but hardly by chance."""
        candidate = replace(CANDIDATE, predicted=with_wrong(*range(60)))
        decision = decide(candidate, CHAMPION, rules=PromotionSection(max_accuracy_drop=0.1))
        assert (decision.verdict, decision.rule) == ("refused", "significance")
        assert decision.numbers["p_value"] == pytest.approx(2**-10)
        assert "10 examples only the champion gets right, 0 only this run; p = 0.00098 is below" in decision.reason
        assert (
            rule_of(candidate, CHAMPION, PromotionSection(max_accuracy_drop=0.1, significance=2**-10))[1] == "not_worse"
        )

    def test_as_many_lost_as_won_is_not_worse(self) -> None:
        candidate = replace(CANDIDATE, predicted=with_wrong(*range(50, 100)))
        decision = decide(candidate, CHAMPION, rules=PromotionSection(significance=1.0))
        assert (decision.verdict, decision.rule) == ("promoted", "not_worse")
        assert (decision.numbers["only_champion_right"], decision.numbers["only_candidate_right"]) == (50, 50)

    def test_better_is_promoted(self) -> None:
        decision = decide(replace(CANDIDATE, predicted=LABELS), CHAMPION, rules=RULES)
        assert (decision.verdict, decision.rule) == ("promoted", "not_worse")
        assert decision.reason == "accuracy 1.0000 against the champion's 0.9500: not worse (p = 1)"


def test_first_row_that_applies_decides() -> None:
    """Each row wins against all later ones: the broken rules are mended one by one, in the table's order."""
    candidate = replace(CANDIDATE, model=replace(NEW, created="2026-01-01"), predicted=with_wrong(*range(60)))
    champion = replace(CHAMPION, model=replace(OLD, weights_digest="w2", dataset="digits"), predicted=None)
    rules = PromotionSection(min_accuracy=0.99, min_class_recall=0.99, max_accuracy_drop=0.0)
    rows = []
    mend: list[Callable[[], tuple[Candidate, Champion, PromotionSection]]] = [
        lambda: (candidate, replace(champion, model=replace(champion.model, weights_digest="w1")), rules),
        lambda: (candidate, replace(champion, model=replace(champion.model, dataset="mnist")), rules),
        lambda: (replace(candidate, model=replace(candidate.model, created="2026-03-01")), champion, rules),
        lambda: (candidate, replace(champion, predicted=CHAMPION.predicted), rules),
        lambda: (candidate, champion, rules.model_copy(update={"min_accuracy": 0.0})),
        lambda: (candidate, champion, rules.model_copy(update={"min_class_recall": 0.0})),
        lambda: (candidate, champion, rules.model_copy(update={"max_accuracy_drop": 0.5})),
        lambda: (candidate, champion, rules.model_copy(update={"significance": 0.0})),
    ]
    for step in mend:
        rows.append(decide(candidate, champion, rules=rules).rule)
        candidate, champion, rules = step()
    rows.append(decide(candidate, champion, rules=rules).rule)
    assert rows == [
        "same_weights",
        "other_dataset",
        "older_run",
        "not_comparable",
        "min_accuracy",
        "min_class_recall",
        "max_accuracy_drop",
        "significance",
        "not_worse",
    ]


class TestMcNemar:
    @pytest.mark.parametrize(("lost", "won"), list(itertools.product(range(13), repeat=2)))
    def test_equals_the_exact_sum(self, lost: int, won: int) -> None:
        total = lost + won
        exact = Fraction(sum(math.comb(total, number) for number in range(lost, total + 1)), 2**total)
        received = mcnemar(only_champion_right=lost, only_candidate_right=won)
        assert received == pytest.approx(float(exact), rel=1e-12)

    @pytest.mark.parametrize(
        ("lost", "won"), [(520, 480), (5100, 4900), (500_500, 499_500), (10_000, 0), (0, 10_000), (1, 1_000_000)]
    )
    def test_large_counts_are_exact_enough_and_quick(self, lost: int, won: int) -> None:
        received = mcnemar(only_champion_right=lost, only_candidate_right=won)
        z = (lost - 0.5 - (lost + won) / 2) / (math.sqrt(lost + won) / 2)
        normal = math.erfc(z / math.sqrt(2)) / 2
        assert received == pytest.approx(normal, abs=1e-4)

    @given(lost=st.integers(0, 3000), won=st.integers(0, 3000))
    @settings(max_examples=200)
    def test_is_a_probability_and_falls_with_each_example_lost(self, lost: int, won: int) -> None:
        received = mcnemar(only_champion_right=lost, only_candidate_right=won)
        assert 0 <= received <= 1
        assert mcnemar(only_champion_right=lost + 1, only_candidate_right=won) <= received + 1e-12


def test_every_row_is_in_the_documents() -> None:
    """docs/retraining.md has the table, row by row."""
    source = Path(inspect.getfile(rules)).read_text("utf-8")
    rows = set(re.findall(r'return "(?:refused|same)", "(\w+)"', source)) | set(re.findall(r'rule="(\w+)"', source))
    assert len(rows) == 10
    text = (REPOSITORY / "docs" / "retraining.md").read_text("utf-8")
    assert rows == set(
        re.findall(r"^\| `(\w+)` \|", text[text.index("| row (`rule`)") :].split("\n\n")[0], re.MULTILINE)
    )
