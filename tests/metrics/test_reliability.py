"""Reliability, ECE and the Brier parts: by hand, by their sum, and by coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from cspine.core.errors import InputError
from cspine.core.predictions import compute_sigmoid
from cspine.metrics.calibration import Reliability, compute_reliability
from cspine.metrics.intervals import IntervalOptions
from tests.metrics.builders import make_clustered_table, make_table

TABLE = make_clustered_table(1, 40, 6, mixed=True)
Y, PROB = TABLE["y_true"].to_numpy(), TABLE["prob"].to_numpy()


@pytest.mark.parametrize(("kind", "strategy"), [("equal_width", "uniform"), ("equal_mass", "quantile")])
def test_the_bins_are_those_of_scikit_learn(kind: str, strategy: str) -> None:
    found = compute_reliability(TABLE, kind=kind, options=IntervalOptions(draws=40))
    observed, predicted = calibration_curve(Y, PROB, n_bins=10, strategy=strategy)
    if kind == "equal_width":
        assert [part.observed.value for part in found.bins] == pytest.approx(observed, abs=1e-9)
        assert [part.mean_prob for part in found.bins] == pytest.approx(predicted, abs=1e-9)
    else:  # its quantiles are interpolated; ours are probabilities that were seen
        assert [part.mean_prob for part in found.bins] == pytest.approx(predicted, abs=0.02)
        assert {part.slices for part in found.bins} == {24}
    assert sum(part.slices for part in found.bins) == TABLE.height
    for part in found.bins:
        assert part.low <= part.mean_prob <= part.high
        assert part.observed.low <= part.observed.value <= part.observed.high
    assert (found.bins[0].observed.unit, found.split, found.model) == ("patient", "test", "m")


def test_ece_is_the_weighted_distance_of_the_bins() -> None:
    found = compute_reliability(TABLE, bins=7, options=IntervalOptions(draws=40))
    by_hand = (
        sum(part.slices * abs(part.mean_prob - part.observed.value) for part in found.bins) / TABLE.height
    )
    assert found.ece.value == pytest.approx(by_hand, abs=1e-12)


@given(st.integers(0, 300), st.integers(2, 15), st.sampled_from(["equal_mass", "equal_width"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_brier_parts_sum_to_it(seed: int, bins: int, kind: str, coarse: bool) -> None:
    table = make_clustered_table(seed, 8, 5, mixed=True)
    if coarse:
        table = table.with_columns(prob=table["prob"].round(1))
    parts = compute_reliability(table, bins=bins, kind=kind, options=IntervalOptions(draws=40)).brier
    total = parts.reliability.value - parts.resolution.value + parts.uncertainty.value + parts.within.value
    assert total == pytest.approx(parts.brier.value, abs=1e-12)
    assert parts.brier.value == pytest.approx(brier_score_loss(table["y_true"], table["prob"]), abs=1e-12)
    assert parts.reliability.value >= 0
    assert parts.resolution.value >= -1e-15


def test_probabilities_of_one_value_a_bin_leave_nothing_within() -> None:
    """Murphy's own decomposition, by hand: half of 4 at 0.25, half of 4 at 0.75."""
    table = make_table([0, 0, 1, 1, 0, 1, 1, 1], [0.0] * 8).with_columns(
        prob=np.repeat([0.25, 0.75], 4), patient_id=np.array([f"p{i}" for i in range(8)])
    )
    parts = compute_reliability(table, bins=2, kind="equal_width", options=IntervalOptions(draws=100)).brier
    assert parts.within.value == pytest.approx(0, abs=1e-15)
    assert parts.reliability.value == pytest.approx((0.25**2 + 0) / 2)
    assert parts.resolution.value == pytest.approx(2 * 0.125**2 / 2)
    assert parts.uncertainty.value == pytest.approx(5 / 8 * 3 / 8)


def test_uncertainty_of_equal_classes_lies_in_its_interval() -> None:
    """It is the largest there is, 0.25, so nearly every draw of a large set stays below."""
    y = np.tile([0, 1], 4000)
    found = compute_reliability(make_table(y, y + 0.0), options=IntervalOptions(draws=100)).brier.uncertainty
    assert (found.value, found.high) == (0.25, 0.25)


def test_what_a_bootstrap_cannot_know_has_a_reason() -> None:
    single = compute_reliability(make_table([0, 1], [0.0, 1.0], [0, 0]), options=IntervalOptions(draws=40))
    assert single.ece.reason == "one patient only: an interval needs at least two"
    assert single.ece_bias is None
    one_class = compute_reliability(
        make_table([1] * 8, np.linspace(-1, 1, 8)), options=IntervalOptions(draws=40)
    )
    assert one_class.brier.uncertainty.reason == "every draw gave the same: a bootstrap cannot bound it"
    assert Reliability.model_validate_json(one_class.model_dump_json()) == one_class
    for options in ({"bins": 1}, {"kind": "round"}):
        with pytest.raises(InputError, match="no such bins"):
            compute_reliability(TABLE, **options)


def test_equal_probabilities_stay_in_one_bin() -> None:
    found = compute_reliability(make_table([0, 1] * 10, [1.0] * 20), options=IntervalOptions(draws=40))
    assert [part.slices for part in found.bins] == [20]


@pytest.mark.parametrize(("steepness", "least"), [(1.0, 0.9), (2.0, 0.9)])
def test_the_interval_of_ece_covers_that_of_its_bins(steepness: float, least: float) -> None:
    """Labels drawn from sigmoid(logit); the model says sigmoid(steepness * logit). 40 patients of 4."""

    def draw(seed: int, units: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(units), 4)
        logit = 1.5 * (rng.normal(size=units)[unit] + rng.normal(size=unit.size)) / np.sqrt(2)
        return (rng.random(unit.size) < compute_sigmoid(logit)).astype(int), steepness * logit, unit

    y, z, _ = draw(10**6, 20_000)
    place = np.minimum((compute_sigmoid(z) * 5).astype(int), 4)
    gaps = np.bincount(place, weights=compute_sigmoid(z) - y)
    truth = np.abs(gaps).sum() / y.size if steepness > 1 else 0.0
    hits, by_chance, sets, bias = 0, 0, 60, []
    for seed in range(sets):
        table = make_table(*draw(seed, 40))
        found = compute_reliability(table, bins=5, kind="equal_width", options=IntervalOptions(draws=100))
        hits += found.ece.low <= truth <= found.ece.high
        bias.append(found.ece.value - truth)
        by_chance += "chance alone gives as much" in found.ece.method
    assert hits / sets >= least, hits / sets
    assert np.mean(bias) > 0
    assert by_chance > 50 if steepness == 1 else by_chance < 40
