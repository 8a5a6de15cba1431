"""The table of docs/retraining.md: which losses the gate sees on how many test examples, by the gate's own rule and test."""

import math
import operator
from bisect import bisect
from functools import cache
from pathlib import Path

from generators.splice import splice, to_rows
from job.config import PromotionSection
from job.registry.rules import smallest_loss
from job.registry.significance import binomial_tail, mcnemar

_PAGE = "docs/retraining.md"
_COUNTS = (100, 360, 1_000, 3_000, 10_000, 60_000)
_DISAGREEMENT = 0.02
"""Share of the examples that only one of the two models gets right, as between two good models for MNIST."""
_POWER = 0.9
_MAX_COUNTS = 40
"""Of examples that tell, that are looked at: more would not change a digit that is shown."""


def make_files(root: Path) -> dict[str, str]:
    """Path -> content."""
    return {_PAGE: splice(root / _PAGE, "resolution", make_resolution())}


def make_resolution() -> str:
    """A row for each number of test examples."""
    rules = PromotionSection()
    rows = []
    for count in _COUNTS:
        smallest = smallest_loss(rules, num_examples=count)
        assert smallest is not None
        seen = _seen_loss(count, level=rules.significance)
        is_coarse = "too small: `gate.coarse`" if rules.max_accuracy_drop < smallest else "counts"
        rows.append((f"{count:,}", f"{1 / count:.5f}", f"{smallest:.4f}", f"{seen:.4f}", is_coarse))
    default = f"`max_accuracy_drop` {rules.max_accuracy_drop:g}"
    heads = ("test examples", "one is", "no loss below is refused", "refused in 9 of 10 nights", default)
    return to_rows(heads, *rows)


def _seen_loss(num_examples: int, *, level: float) -> float:
    """The smallest true loss, in whole examples, that is refused in nine nights of ten."""
    found = bisect(
        range(num_examples), _POWER, lo=1, key=lambda lost: _power(lost / num_examples, num_examples, level=level)
    )
    return found / num_examples


def _power(loss: float, num_examples: int, *, level: float) -> float:
    """How often a model is refused that is worse by `loss`: over how many examples tell, and which model each of them favours."""
    telling = max(_DISAGREEMENT, loss)
    share, mean = (1 + loss / telling) / 2, num_examples * telling
    reach = 6 * math.sqrt(mean) + 6
    lowest, highest = max(1, int(mean - reach)), min(num_examples, int(mean + reach))
    counts = range(lowest, highest + 1, max(1, (highest - lowest) // _MAX_COUNTS))
    shares = [_share_of(count, num_examples, telling) for count in counts]
    refused = (_refused(count, share=share, level=level) for count in counts)
    return float(sum(map(operator.mul, shares, refused)) / sum(shares))


def _share_of(count: int, total: int, share: float) -> float:
    if share == 1:
        return float(count == total)
    ways = math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
    return math.exp(ways + count * math.log(share) + (total - count) * math.log1p(-share))


def _refused(told: int, *, share: float, level: float) -> float:
    """How often the test refuses a model that loses each of the examples that tell with this chance."""
    at_least = _fewest_of(told, level)
    if at_least > told * share:
        return binomial_tail(told, at_least, share=share)
    return 1 - binomial_tail(told, told - at_least + 1, share=1 - share)


@cache
def _fewest_of(told: int, level: float) -> int:
    """How many of the examples that tell must be lost; one more than there are where no number is enough."""

    def minus_p(lost: int) -> float:
        return -mcnemar(only_champion_right=lost, only_candidate_right=told - lost)

    return bisect(range(told + 1), -level, key=minus_p)
