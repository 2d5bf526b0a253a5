"""Predictive values by prevalence and net benefit: by hand, against published figures, at the edges."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cspine.core.errors import InputError, PredictionsError
from cspine.metrics.clinical import (
    DecisionCurve,
    PredictiveValues,
    compute_decision_curve,
    compute_predictive_values,
)
from cspine.metrics.evaluation import estimate_metrics
from cspine.metrics.intervals import IntervalOptions
from tests.metrics.builders import make_clustered_table, make_table

TABLE = make_clustered_table(1, 30, 6, mixed=True)


def make_counts(tp: int, fn: int, fp: int, tn: int) -> pl.DataFrame:
    """One slice a patient with these counts at a threshold of 0.5."""
    y = np.repeat([1, 1, 0, 0], [tp, fn, fp, tn])
    return make_table(y, np.repeat([1.0, -1.0, 1.0, -1.0], [tp, fn, fp, tn]), np.arange(y.size))


def test_at_the_sets_prevalence_ppv_is_its_precision() -> None:
    share = float(TABLE["y_true"].mean())
    found = compute_predictive_values(TABLE, prevalences=(share,), options=IntervalOptions(draws=100)).points[
        0
    ]
    own = estimate_metrics(TABLE, ("precision", "npv"), options=IntervalOptions(draws=100))
    assert found.ppv.value == pytest.approx(own["precision"].value)
    assert found.npv.value == pytest.approx(own["npv"].value)


def test_bayes_by_hand() -> None:
    """Sensitivity 0.9, specificity 0.8, prevalence 5%: PPV 0.045 / 0.235, NPV 0.76 / 0.765."""
    point = compute_predictive_values(
        make_counts(90, 10, 20, 80), prevalences=(0.05,), options=IntervalOptions(draws=100)
    ).points[0]
    assert point.ppv.value == pytest.approx(0.045 / 0.235)
    assert point.npv.value == pytest.approx(0.76 / 0.765)


def test_the_interval_is_near_that_of_mercaldo() -> None:
    """Mercaldo, Lau and Zhou 2007 (Stat Med 26:2170): the logit interval by the delta method, for independent cases."""
    sensitivity, specificity, n, p = 0.84, 0.88, 100, 0.03
    point = compute_predictive_values(
        make_counts(84, 16, 12, 88), prevalences=(p,), options=IntervalOptions(draws=100)
    ).points[0]
    logit = np.log(sensitivity * p / ((1 - specificity) * (1 - p)))
    error = np.sqrt((1 - sensitivity) / (sensitivity * n) + specificity / ((1 - specificity) * n))
    low, high = 1 / (1 + np.exp(-(logit - 1.96 * error))), 1 / (1 + np.exp(-(logit + 1.96 * error)))
    assert (point.ppv.low, point.ppv.high) == pytest.approx((low, high), rel=0.04)


def test_default_prevalences_mark_the_literature() -> None:
    found = compute_predictive_values(TABLE, options=IntervalOptions(draws=40))
    assert len(found.points) == 50
    assert [p.prevalence for p in found.points if p.in_literature] == [0.04, 0.05, 0.06, 0.07, 0.08, 0.09]
    assert np.all(np.diff([p.ppv.value for p in found.points]) > 0)
    assert np.all(np.diff([p.npv.value for p in found.points]) < 0)
    for point in found.points:
        assert point.ppv.low < point.ppv.value < point.ppv.high
        assert (point.ppv.unit, point.ppv.n) == ("patient", 30)
    assert PredictiveValues.model_validate_json(found.model_dump_json()) == found


def test_no_false_call_is_not_certainty() -> None:
    point = compute_predictive_values(make_counts(45, 5, 0, 50), prevalences=(0.05,)).points[0]
    assert (point.ppv.value, point.ppv.high) == (1.0, 1.0)
    recall_low, specificity_low = 0.76, 0.0125 ** (1 / 50)  # Bonferroni: each part at 97.5%
    assert point.ppv.low == pytest.approx(
        0.05 * recall_low / (0.05 * recall_low + 0.95 * (1 - specificity_low)), rel=0.02
    )
    assert "Clopper-Pearson bounds of recall, specificity on patients" in point.ppv.method


def test_what_is_undefined_says_why() -> None:
    point = compute_predictive_values(
        make_counts(0, 5, 0, 5), prevalences=(0.1,), options=IntervalOptions(draws=100)
    ).points[0]
    assert point.ppv.reason == "no slice was called fracture, or the slices are of one class only"
    assert point.npv.value == pytest.approx(0.9)
    with pytest.raises(InputError, match="a prevalence lies between 0 and 1"):
        compute_predictive_values(TABLE, prevalences=(0.0,))
    with pytest.raises(InputError, match="a threshold lies between 0 and 1"):
        compute_decision_curve(TABLE, thresholds=(1.0,))
    with pytest.raises(PredictionsError, match="needs fractures and normal slices"):
        compute_decision_curve(make_table([1, 1], [0.0, 1.0]))


@given(st.integers(0, 300), st.sampled_from([None, 0.05]))
@settings(max_examples=20, deadline=None)
def test_net_benefit_is_that_counted_by_hand(seed: int, prevalence: float | None) -> None:
    table = make_clustered_table(seed, 6, 5, mixed=True).with_columns(pl.col("prob").round(2))
    y, prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
    found = compute_decision_curve(
        table, prevalence=prevalence, shown=(0.1, 0.3), options=IntervalOptions(draws=40)
    )
    share = y.mean() if prevalence is None else prevalence
    assert found.prevalence == pytest.approx(share)
    for t, benefit, treat_all in zip(found.thresholds, found.net_benefit, found.treat_all, strict=True):
        called = prob >= t
        odds = t / (1 - t)
        expected = share * called[y == 1].mean() - (1 - share) * called[y == 0].mean() * odds
        assert benefit == pytest.approx(expected, abs=1e-12)
        assert treat_all == pytest.approx(share - (1 - share) * odds, abs=1e-12)
    for point in found.shown:
        place = found.thresholds.index(point.threshold)
        assert point.net_benefit.value == pytest.approx(found.net_benefit[place], abs=1e-12)
        assert point.treat_all == pytest.approx(found.treat_all[place])


def test_net_benefit_has_an_interval_within_what_is_possible() -> None:
    found = compute_decision_curve(TABLE, prevalence=0.05)
    for point in found.shown:
        odds = point.threshold / (1 - point.threshold)
        assert (
            -0.95 * odds <= point.net_benefit.low < point.net_benefit.value < point.net_benefit.high <= 0.05
        )
    assert DecisionCurve.model_validate_json(found.model_dump_json()) == found
