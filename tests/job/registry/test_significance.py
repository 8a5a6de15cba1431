"""The tests behind the gate against brute force, and how often they are wrong when nothing is worse."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.registry.significance import binomial_tail, fewest_lost, fisher, mcnemar, sign_flip


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


@pytest.mark.parametrize("level", [1.0, 0.5, 0.05, 0.025, 0.001, 1e-9])
def test_so_many_must_be_lost_before_the_test_says_anything(level: float) -> None:
    number = fewest_lost(level)
    assert mcnemar(only_champion_right=number, only_candidate_right=0) < level
    assert number == 1 or mcnemar(only_champion_right=number - 1, only_candidate_right=0) >= level
    assert (fewest_lost(0.05), fewest_lost(0.025), fewest_lost(0.0)) == (5, 6, 1)


@pytest.mark.parametrize(("total", "share"), [(10, Fraction(1, 10)), (25, Fraction(1, 3)), (7, Fraction(9, 10))])
def test_binomial_tail_equals_the_exact_sum(total: int, share: Fraction) -> None:
    for at_least in range(math.ceil(total * share), total + 2):
        terms = (math.comb(total, n) * share**n * (1 - share) ** (total - n) for n in range(at_least, total + 1))
        assert binomial_tail(total, at_least, share=float(share)) == pytest.approx(float(sum(terms)), rel=1e-12)


def test_binomial_tail_of_a_share_without_doubt() -> None:
    assert binomial_tail(10, 1, share=0.0) == 0.0
    assert binomial_tail(10, 10, share=1.0) == 1.0


@pytest.mark.parametrize(("wrong", "before", "num"), [(5, 1, 10), (3, 3, 20), (10, 0, 10), (0, 0, 5), (14, 4, 360)])
def test_fisher_equals_the_exact_sum(wrong: int, before: int, num: int) -> None:
    errors = wrong + before
    ways = [math.comb(errors, n) * math.comb(2 * num - errors, num - n) for n in range(wrong, min(errors, num) + 1)]
    exact = Fraction(sum(ways), math.comb(2 * num, num))
    assert fisher(wrong=wrong, wrong_before=before, num_examples=num) == pytest.approx(float(exact), rel=1e-9)


class TestSignFlip:
    @pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (3, 0), (7, 2), (2, 7), (40, 25), (900, 800)])
    def test_equal_sizes_give_what_mcnemar_gives(self, lost: int, won: int) -> None:
        losses = np.array([0.1] * lost + [-0.1] * won + [0.0] * 5)
        exact = mcnemar(only_champion_right=lost, only_candidate_right=won)
        assert sign_flip(losses) == pytest.approx(exact, abs=0.01)

    def test_all_signs_of_a_few_losses(self) -> None:
        losses = np.array([3.0, -1.0, 2.0, 0.5, 4.0, -0.25])
        sums = [float(np.dot(signs, np.abs(losses))) for signs in itertools.product((-1, 1), repeat=6)]
        exact = sum(value >= losses.sum() for value in sums) / 64
        assert sign_flip(losses) == pytest.approx(exact, abs=0.01)

    def test_smallest_p_is_one_of_all_draws_and_each_call_draws_the_same(self) -> None:
        assert sign_flip(np.full(5000, 0.5)) == 1 / 20_000
        losses = np.random.default_rng(1).normal(0.05, 1, 500)
        assert sign_flip(losses) == sign_flip(losses)

    def test_equally_good_models_are_called_worse_no_more_often_than_the_level(self) -> None:
        random = np.random.default_rng(3)
        found = [sign_flip(random.normal(0, random.uniform(0.1, 2, 60))) < 0.05 for _ in range(300)]
        assert sum(found) <= 26  # of 15 expected: 3 standard deviations
