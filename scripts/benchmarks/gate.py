"""The gate's simulation: how often an equally good model is refused, and how far slow drift gets, by the old rules and by these.

Runs `job.registry.rules.decide` itself, on predictions that are drawn: no training, no store. `scripts/bench --gate` prints the
table of docs/retraining.md (How the gate decides).
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from job.config import PromotionSection
from job.registry.comparison import Anchor, Candidate, Champion
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
        loss_per_night: by which each night's true accuracy is lower than that of the night before.
    """

    num_examples: int
    accuracy: float
    correlation: float
    loss_per_night: float = 0.0


SMALL = {"num_examples": 360, "accuracy": 0.985, "correlation": 0.75}
LARGE = {"num_examples": 10_000, "accuracy": 0.98, "correlation": 0.54}
"""As measured between seeds 1, 2 and 3: digits (relu, adam 0.001, batch 32, 20 epochs): accuracy 0.983 to 0.986, phi 0.73, 0.73
and 0.80; MNIST (relu, adam 0.001, 5 epochs): accuracy 0.979 to 0.980, phi 0.55, 0.56 and 0.52."""
CASES = tuple(Case(**of, loss_per_night=loss) for of in (SMALL, LARGE) for loss in (0.0, 0.0005, 0.002))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of many series of nights.

    Attributes:
        refused: share of the nights after the first in which the gate refused, over all series.
        served_loss: of each series, the first night's true accuracy less that of the champion after the last night.
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
        self._champion: NDArray[np.float32] | None = None
        self._anchor = Anchor(value=-1.0, num_champions=0, probabilities=None)

    def promotes(self, is_right: NDArray[np.bool_]) -> bool:
        """Decide about one night's model, and remember it when it becomes champion."""
        labels = np.arange(len(is_right)) % _NUM_CLASSES
        probabilities = np.eye(_NUM_CLASSES, dtype=np.float32)[(labels + ~is_right) % _NUM_CLASSES]
        predictions = Predictions(probabilities=probabilities, labels=labels, sample_images=np.zeros((1, 1), np.uint8))
        candidate = Candidate(model=_model("candidate"), predictions=predictions, recorded={})
        champion = None if self._champion is None else self._to_champion(self._champion)
        if decide(candidate, champion, rules=self._rules).verdict != "promoted":
            return False
        accuracy, count = float(is_right.mean()), self._anchor.num_champions + 1
        is_best = accuracy > self._anchor.value
        value, best = (accuracy, probabilities) if is_best else (self._anchor.value, self._anchor.probabilities)
        self._anchor, self._champion = Anchor(value=value, num_champions=count, probabilities=best), probabilities
        return True

    def _to_champion(self, probabilities: NDArray[np.float32]) -> Champion:
        return Champion(
            model=_model("champion"),
            version=1,
            num_classes=_NUM_CLASSES,
            class_names=None,
            probabilities=probabilities,
            recorded={},
            anchor=self._anchor,
        )


def simulate(
    case: Case, make_rules: type[OldRules] | type[Rules], *, num_series: int, num_nights: int = 100
) -> Outcome:
    """Many series of nights, each on a test split of its own; the same draws for every kind of rules."""
    random, refusals, losses = np.random.default_rng(15), [], []
    for _ in range(num_series):
        rules, served = make_rules(), 0.0
        promoted = []
        for night, is_right in enumerate(_nights(case, random, num_nights=num_nights)):
            promoted.append(rules.promotes(is_right))
            served = night * case.loss_per_night if promoted[-1] else served
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
    night the chances of all examples grow a little.
    """
    wrong, strength = 1 - case.accuracy, 1 / case.correlation - 1
    chances = random.beta(wrong * strength, (1 - wrong) * strength, case.num_examples)
    for night in range(num_nights):
        more = night * case.loss_per_night / case.accuracy
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
    head = "| test examples | lost a night | rules | refused | longest row of refusals (median, worst) | served after 100 nights (median, worst) |"
    lines = [head, "| --- | --- | --- | --- | --- | --- |"]
    for case in CASES:
        for name, rules in (("before", OldRules), ("now", Rules)):
            found = simulate(case, rules, num_series=num_series)
            row, loss = found.longest_refused, found.served_loss
            served = f"{np.median(loss):.4f}, {loss.max():.4f} lower" if case.loss_per_night else "equal"
            lines.append(
                f"| {case.num_examples:,} | {case.loss_per_night or 'nothing'} | {name} | {found.refused:.1%} | "
                f"{np.median(row):.0f}, {row.max()} | {served} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench --gate", description=__doc__)
    parser.add_argument("--series", type=int, default=100, metavar="N", help="of 100 nights for each row (100)")
    print(table(num_series=parser.parse_args().series))


if __name__ == "__main__":
    main()
