"""The gate's simulation: how often an equally good model is refused, and how far slow drift gets, by the old rules and by these.

Runs `job.registry.rules.decide` itself, on predictions that are drawn: no training, no store. `scripts/bench --gate` prints the
table of docs/retraining.md (How the gate decides).
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.config import PromotionSection
from job.registry.comparison import Anchor, Candidate, Champion, Probabilities
from job.registry.rules import decide
from job.registry.significance import mcnemar
from job.runs.read import CommittedModel, Predictions

_NUM_CLASSES = 10
_OLD_DROP, _OLD_SIGNIFICANCE = 0.002, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A test split and the models that are scored on it.

    Attributes:
        correlation: of being wrong, between two models with other seeds (phi), as `measured` says.
        gain_nights: so many nights come first in which each is better by as much as later ones are worse.
        loss_per_night: by which each night's true accuracy is lower than that of the night before.
    """

    num_examples: int
    accuracy: float
    correlation: float
    loss_per_night: float = 0.0
    gain_nights: int = 0

    def loss(self, night: int) -> float:
        """By which that night's true accuracy is lower than that of the best night."""
        return abs(night - self.gain_nights) * self.loss_per_night


SMALL = Case(num_examples=360, accuracy=0.985, correlation=0.75)
LARGE = Case(num_examples=10_000, accuracy=0.98, correlation=0.54)
"""As measured between seeds 1, 2 and 3: digits (relu, adam 0.001, batch 32, 20 epochs): accuracy 0.983 to 0.986, phi 0.73, 0.73
and 0.80; MNIST (relu, adam 0.001, 5 epochs): accuracy 0.979 to 0.980, phi 0.55, 0.56 and 0.52."""
CASES = tuple(
    replace(of, loss_per_night=loss, gain_nights=gain)
    for of in (SMALL, LARGE)
    for loss, gain in ((0.0, 0), (0.0005, 0), (0.002, 0), (0.0005, 50))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of many series of nights.

    Attributes:
        refused: share of the nights after the first in which the gate refused, over all series.
        served_loss: of each series, the best night's true accuracy less that of the champion after the last night.
        longest_refused: of each series, the most nights in a row that were refused.
    """

    refused: float
    served_loss: NDArray[np.float64]
    longest_refused: NDArray[np.int64]


class OldRules:
    """Until ADR 15: no more than 0.002 below the most accurate champion so far, and not worse by McNemar's test."""

    def __init__(self) -> None:
        self._best, self._champion = -1.0, np.zeros(0, np.bool_)

    def promotes(self, is_right: NDArray[np.bool_]) -> bool:
        """Decide about one night's model, and remember it when it becomes champion."""
        accuracy, theirs = float(is_right.mean()), self._champion
        if len(theirs):
            lost, won = int((theirs & ~is_right).sum()), int((is_right & ~theirs).sum())
            p_value = mcnemar(only_champion_right=lost, only_candidate_right=won)
            if self._best - accuracy > _OLD_DROP + 1e-12 or (p_value < _OLD_SIGNIFICANCE and lost > won):
                return False
        self._best, self._champion = max(self._best, accuracy), is_right
        return True


class Rules:
    """`decide` with the default settings, or those given; keeps what the champions' records would."""

    def __init__(self, rules: PromotionSection | None = None) -> None:
        self._rules = rules or PromotionSection()
        self._champion: Champion | None = None

    def promotes(self, is_right: NDArray[np.bool_]) -> bool:
        """Decide about one night's model, and remember it when it becomes champion."""
        labels = np.arange(len(is_right)) % _NUM_CLASSES
        probabilities = np.eye(_NUM_CLASSES, dtype=np.float32)[(labels + ~is_right) % _NUM_CLASSES]
        images = np.zeros((1, 1), np.uint8)
        predictions = Predictions(probabilities=probabilities, labels=labels, sample_images=images)
        candidate = Candidate(model=_model("candidate"), predictions=predictions, recorded={})
        decision = decide(candidate, self._champion, rules=self._rules)
        if decision.verdict == "promoted":
            self._champion = self._after(decision.numbers, probabilities)
        return decision.verdict == "promoted"

    def _after(self, numbers: Mapping[str, Any], probabilities: NDArray[np.float32]) -> Champion:
        before = self._champion
        anchor = Anchor(evaluation_digest="e", metric="accuracy", value=numbers["accuracy"], run="anchor")
        of_anchor: Probabilities | None = probabilities
        if before and not numbers["is_new_anchor"]:
            anchor, of_anchor = before.anchor or anchor, before.anchor_probabilities
        return Champion(
            model=_model("champion"),
            version=1,
            num_classes=_NUM_CLASSES,
            class_names=None,
            probabilities=probabilities,
            recorded={},
            anchor=anchor,
            anchor_probabilities=of_anchor,
        )


def simulate(
    case: Case, make_rules: type[OldRules] | type[Rules], *, num_series: int, num_nights: int = 100
) -> Outcome:
    """Many series of nights, each on a test split of its own; the same draws for every kind of rules."""
    random, refusals, losses = np.random.default_rng(15), [], []
    for _ in range(num_series):
        rules, served, promoted = make_rules(), 0.0, []
        for night, is_right in enumerate(_nights(case, random, num_nights=num_nights)):
            promoted.append(rules.promotes(is_right))
            served = case.loss(night) if promoted[-1] else served
        refusals.append([not each for each in promoted[1:]])
        losses.append(served)
    return Outcome(
        refused=float(np.mean(refusals)),
        served_loss=np.array(losses),
        longest_refused=np.array([_longest(each) for each in refusals]),
    )


def _nights(case: Case, random: np.random.Generator, *, num_nights: int) -> Iterator[NDArray[np.bool_]]:
    """Which examples each night's model gets right.

    Each example has a chance of its own to be got wrong, from a beta distribution whose spread makes the correlation. Night after
    night the chances of all examples change a little.
    """
    wrong, strength = 1 - case.accuracy, 1 / case.correlation - 1
    chances = random.beta(wrong * strength, (1 - wrong) * strength, case.num_examples)
    for night in range(num_nights):
        more = case.loss(night) / case.accuracy
        yield random.random(case.num_examples) >= chances + (1 - chances) * more


def _longest(refused: Sequence[bool]) -> int:
    longest = run = 0
    for each in refused:
        run = run + 1 if each else 0
        longest = max(longest, run)
    return longest


def _model(run: str) -> CommittedModel:
    return CommittedModel(
        run=run, created="2026-01-01", dataset="drawn", evaluation_digest="e", weights_digest=run, accuracy=0.0
    )


def table(*, num_series: int) -> str:
    """The rows of docs/retraining.md."""
    titles = ("examples", "true accuracy, night by night", "rules", "refused", "in a row", "served at the end")
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for case in CASES:
        for name, rules in (("before", OldRules), ("now", Rules)):
            found = simulate(case, rules, num_series=num_series)
            row, loss = found.longest_refused, found.served_loss
            served = f"{np.median(loss):.4f} ({loss.max():.4f}) lower" if case.loss_per_night else "as good"
            cells = (f"{case.num_examples:,}", _describe(case), name, f"{found.refused:.1%}")
            lines.append(f"| {' | '.join(cells)} | {np.median(row):.0f} ({row.max()}) | {served} |")
    return "\n".join(lines)


def _describe(case: Case) -> str:
    if not case.loss_per_night:
        return "equal"
    up = f"{case.gain_nights} times +{case.loss_per_night}, then " if case.gain_nights else ""
    return f"{up}-{case.loss_per_night}"


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench --gate", description=__doc__)
    parser.add_argument("--series", type=int, default=100, metavar="N", help="of 100 nights for each row (100)")
    print(table(num_series=parser.parse_args().series))


if __name__ == "__main__":
    main()
