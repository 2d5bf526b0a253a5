"""Effective size: what copies and slices of one patient are worth."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from cspine.metrics.effective_size import HEADLINE, EffectiveSize, compute_effective_size
from cspine.metrics.evaluation import estimate_metrics
from cspine.metrics.intervals import IntervalOptions, estimate_wilson
from cspine.metrics.paired import estimate_auroc
from tests.metrics.builders import make_clustered_table, make_logits, make_table


def test_identical_copies_are_worth_one_slice() -> None:
    """Each slice ten times: the variance over sources is ten times that over files, but for n - 1."""
    y, z, _ = make_logits(1, 60, 1)
    table = make_table(np.repeat(y, 10), np.repeat(z, 10)).with_columns(
        source_id=pl.Series([f"s{i // 10:02d}" for i in range(600)])
    )
    found = compute_effective_size(table, ("accuracy", "auroc"), options=IntervalOptions(draws=100))
    assert (found.files, found.distinct_slices, found.series, found.patients) == (600, 60, None, None)
    assert (found.unit, found.units) == ("source slice", 60)
    accuracy, auroc = found.metrics
    assert accuracy.design_effect == pytest.approx(10 * 599 / 590, rel=1e-6)
    assert accuracy.effective_n == pytest.approx(59.1, abs=0.1)
    assert auroc.design_effect == pytest.approx(10, rel=0.1)
    for both in found.metrics:
        assert both.clustered.high - both.clustered.low > 2 * (both.naive.high - both.naive.low)
        assert both.clustered.value == pytest.approx(both.naive.value)


def test_independent_slices_have_a_design_effect_of_one() -> None:
    table = make_table(*make_logits(2, 150, 1))
    found = compute_effective_size(table, options=IntervalOptions(draws=100))
    for both in found.metrics:
        assert both.design_effect == pytest.approx(1)
        assert both.effective_n == pytest.approx(150)


def test_the_naive_intervals_are_wilson_and_delong() -> None:
    table = make_clustered_table(3, 30, 6, mixed=True)
    found = {
        both.metric: both
        for both in compute_effective_size(table, options=IntervalOptions(draws=100)).metrics
    }
    assert tuple(found) == HEADLINE
    y, called = table["y_true"].to_numpy() == 1, table["prob"].to_numpy() >= 0.5
    assert found["recall"].naive == estimate_wilson(int((called & y).sum()), int(y.sum()))
    assert found["accuracy"].naive == estimate_wilson(int((called == y).sum()), y.size)
    assert found["auroc"].naive == estimate_auroc(table, options=IntervalOptions(unit="slice_id"))
    assert (
        found["f1"].naive
        == estimate_metrics(table, ("f1",), options=IntervalOptions(draws=100, unit="slice_id"))["f1"]
    )
    assert (
        found["recall"].clustered
        == estimate_metrics(table, ("recall",), options=IntervalOptions(draws=100))["recall"]
    )


def test_what_is_unknown_stays_unknown() -> None:
    perfect = compute_effective_size(
        make_table([0, 1] * 6, [-1.0, 1.0] * 6, np.arange(12) // 2), options=IntervalOptions(draws=100)
    )
    assert all(both.design_effect is both.effective_n is None for both in perfect.metrics)
    one_class = compute_effective_size(
        make_table([0] * 6, np.zeros(6) - 1, np.arange(6) // 2), options=IntervalOptions(draws=100)
    )
    recall = next(both for both in one_class.metrics if both.metric == "recall")
    assert recall.naive.reason == recall.clustered.reason == "no slice is a fracture"
    single = compute_effective_size(
        make_table([0, 1], [-1.0, 1.0], [0, 0]), ("accuracy",), options=IntervalOptions(draws=100)
    )
    assert single.metrics[0].design_effect is None
    assert EffectiveSize.model_validate_json(one_class.model_dump_json()) == one_class
