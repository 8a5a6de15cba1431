"""The tests behind the gate's rules: how probable a loss is when nothing is worse. Pure functions; each returns a one-sided p.

Owns the arithmetic, not what a p means for a run (`rules.py`).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_NEGLIGIBLE = 1e-18
_NUM_FLIPS = 19_999
"""Draws of `sign_flip`: its smallest p is 1 / 20,000."""
_SEED = 0
_ELEMENTS_AT_ONCE = 4_000_000
_TOLERANCE = 1e-5
"""Of the sum of all sizes: sums of float32 in another order differ by less, and equal sums must count as equal."""


def mcnemar(*, only_champion_right: int, only_candidate_right: int) -> float:
    """Exact McNemar test, one-sided (McNemar 1947): takes the examples that only one of the two models gets right.

    Returns:
        The probability that an equally good candidate loses at least so many of them; each is then a fair coin.
    """
    total = only_champion_right + only_candidate_right
    if only_champion_right <= total / 2:
        # P(X >= b) = 1 - P(X >= n - b + 1): sums stay in the short tail.
        return 1.0 - binomial_tail(total, total - only_champion_right + 1, share=0.5)
    return binomial_tail(total, only_champion_right, share=0.5)


def fewest_lost(level: float) -> int:
    """How many examples must be lost, and none won, before McNemar's test says a p below the level; 1 where nothing is tested."""
    number = 1
    while level > 0 and 0.5**number >= level:
        number += 1
    return number


def binomial_tail(total: int, at_least: int, *, share: float) -> float:
    """P(X >= at_least) for X binomial(total, share), where at_least is above the mean: its terms only get smaller."""
    if at_least > total or share == 0:
        return 0.0
    if share == 1:
        return 1.0
    log_first = _log_choose(total, at_least) + at_least * math.log(share) + (total - at_least) * math.log1p(-share)
    odds = share / (1 - share)
    return _sum_tail(log_first, range(at_least, total + 1), lambda number: odds * (total - number) / (number + 1))


def fisher(*, wrong: int, wrong_before: int, num_examples: int) -> float:
    """Fisher's exact test, one-sided: two models that are wrong on so many of as many examples, which examples is not known.

    Where both were asked the same examples it says less than McNemar's test, and never too much: their errors go together.

    Returns:
        The probability that of all the errors at least `wrong` fall to the one model; 1 when it has fewer than the other.
    """
    if wrong < wrong_before:
        return 1.0
    errors, right = wrong + wrong_before, 2 * num_examples - wrong - wrong_before
    log_first = (
        _log_choose(errors, wrong)
        + _log_choose(right, num_examples - wrong)
        - _log_choose(2 * num_examples, num_examples)
    )

    def ratio(number: int) -> float:
        more = (errors - number) * (num_examples - number)
        return more / ((number + 1) * (right - num_examples + number + 1))

    return _sum_tail(log_first, range(wrong, min(errors, num_examples) + 1), ratio)


def sign_flip(losses: NDArray[np.float64]) -> float:
    """Permutation test of pairs by Monte Carlo (Fisher 1935; Phipson and Smyth 2010), one-sided.

    Between two equally good models it is chance which of the two an example favours: the sign of each loss is a fair coin. The
    draws are the same ones each time.

    Args:
        losses: float64 [N], by how much each example favours the champion; negative where it favours the candidate.

    Returns:
        The share of draws that lose at least as much, the observed one among them.
    """
    sizes = losses[losses != 0].astype(np.float32)
    if not len(sizes):
        return 1.0
    wanted = float(losses.sum()) - _TOLERANCE * float(np.abs(sizes).sum())
    random, num_reached, num_drawn = np.random.Generator(np.random.PCG64(_SEED)), 0, 0
    rows_at_once = max(1, _ELEMENTS_AT_ONCE // len(sizes))
    while num_drawn < _NUM_FLIPS:
        num_rows = min(rows_at_once, _NUM_FLIPS - num_drawn)
        bits = np.unpackbits(
            np.frombuffer(random.bytes(num_rows * -(-len(sizes) // 8)), np.uint8).reshape(num_rows, -1), axis=1
        )
        flipped = bits[:, : len(sizes)].astype(np.float32) @ sizes
        num_reached += int((float(sizes.sum()) - 2 * flipped >= wanted).sum())
        num_drawn += num_rows
    return (num_reached + 1) / (_NUM_FLIPS + 1)


def _log_choose(total: int, number: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(number + 1) - math.lgamma(total - number + 1)


def _sum_tail(log_first: float, numbers: range, ratio: Callable[[int], float]) -> float:
    """The sum of terms that only get smaller: exp(log_first), and each next one by its ratio to the one before."""
    term = first = math.exp(log_first)
    summed = 0.0
    for number in numbers:
        summed += term
        if term <= first * _NEGLIGIBLE:
            break
        term *= ratio(number)
    return min(summed, 1.0)
