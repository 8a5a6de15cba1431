"""The gate over many nights, on drawn predictions: a small version of `scripts/bench --gate`."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.gate import LARGE, SMALL, Case, OldRules, Rules, simulate


@pytest.mark.parametrize(("case", "at_most"), [(SMALL, 0.02), (LARGE, 0.12)], ids=["360", "10000"])
def test_equal_model_is_seldom_refused(case: Case, at_most: float) -> None:
    """The rules before refused it night after night: their bar was the luckiest champion so far."""
    before = simulate(case, OldRules, num_series=6, num_nights=50)
    now = simulate(case, Rules, num_series=6, num_nights=50)
    assert now.refused <= at_most
    assert before.refused >= 0.2


@pytest.mark.parametrize(
    ("case", "loss", "at_most"), [(SMALL, 0.002, 0.06), (LARGE, 0.0005, 0.008)], ids=["360", "10000"]
)
def test_slow_drift_comes_to_an_end(case: Case, loss: float, at_most: float) -> None:
    """Each night is a little worse than the one before. Without an anchor the last night would be served."""
    found = simulate(replace(case, loss_per_night=loss), Rules, num_series=6, num_nights=60)
    assert found.served_loss.max() <= at_most < 59 * loss
    assert np.median(found.longest_refused) >= 20
