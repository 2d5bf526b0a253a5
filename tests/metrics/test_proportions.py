"""Wilson's interval: against scipy, statsmodels, Newcombe's examples, and by coverage in clusters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from cspine.core.errors import InputError
from cspine.metrics.intervals import bound_wilson, estimate_clustered_proportion, estimate_wilson


@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_that_of_scipy_and_statsmodels(n: int, data: st.DataObject, level: float) -> None:
    hits = data.draw(st.integers(0, n))
    found = estimate_wilson(hits, n, level=level)
    exact = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    other = proportion_confint(hits, n, alpha=1 - level, method="wilson")
    assert (found.low, found.high) == pytest.approx(other, abs=1e-9)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_examples(hits: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    found = estimate_wilson(hits, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_no_trials_and_impossible_counts() -> None:
    assert estimate_wilson(0, 0).reason == "no trials"
    assert estimate_clustered_proportion([0, 0], [0, 0], unit="patient").reason == "no trials"
    with pytest.raises(InputError, match="3 of 2 is no proportion"):
        estimate_wilson(3, 2)


def test_one_trial_a_unit_is_the_plain_interval() -> None:
    found = estimate_clustered_proportion([1, 0, 1, 1, 0], [1, 0, 1, 1, 1], unit="patient")
    plain = estimate_wilson(3, 4, unit="patient")
    assert found == plain


def test_units_of_equal_trials_that_agree_within_count_once_each() -> None:
    """All or none of 8 in each of 20 units: 160 trials know as much as 20, less what the design effect costs."""
    hits = np.array([8] * 14 + [0] * 6)
    found = estimate_clustered_proportion(hits, np.full(20, 8), unit="patient")
    shrink = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 19)) ** 2
    assert (found.low, found.high) == pytest.approx(bound_wilson(0.7, 19 * shrink), abs=1e-9)
    assert found.n == 20
    assert found.method == f"Wilson at an effective n of {19 * shrink:.1f} (Korn and Graubard 1998)"


def test_where_all_agree_each_unit_is_one_trial() -> None:
    found = estimate_clustered_proportion([8] * 20, [8] * 20, unit="patient")
    assert (found.low, found.high) == pytest.approx(bound_wilson(1.0, 20))
    assert found.method == "Wilson, each of 20 patients one trial, as all agree"


@pytest.mark.parametrize(("mean", "least"), [(0.7, 0.93), (0.9, 0.93)])
def test_the_clustered_interval_covers_at_20_units(mean: float, least: float) -> None:
    rng = np.random.default_rng(5)
    hits = rng.binomial(8, rng.beta(2 * mean, 2 * (1 - mean), (1000, 20)))
    found = [estimate_clustered_proportion(row, np.full(20, 8), unit="patient") for row in hits]
    covered = np.mean([estimate.low <= mean <= estimate.high for estimate in found])
    assert least <= covered <= 0.985, covered
