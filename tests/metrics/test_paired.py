"""Models compared pair by pair: who may be compared, what is said, and the corrections behind it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from cspine.core.errors import InputError, PredictionsError
from cspine.core.estimates import Estimate
from cspine.core.predictions import compute_sigmoid
from cspine.metrics.intervals import IntervalOptions, estimate_intervals, estimate_wilson, leave_out_units
from cspine.metrics.paired import (
    NO_DIFFERENCE,
    ModelComparison,
    compare_models,
    correct_holm,
    run_mcnemar,
    subtract_estimates,
)
from cspine.metrics.scores import METRICS, arrange_cases, compute_metrics
from tests.metrics.builders import make_logits, make_table

Y, Z, UNIT = make_logits(7, 24, 6, mixed=True)


def make_models(*shifts: float) -> list[pl.DataFrame]:
    return [
        make_table(
            Y, Z + shift * (2 * Y - 1) + np.random.default_rng(i).normal(size=Y.size), UNIT, model=f"m{i}"
        )
        for i, shift in enumerate(shifts)
    ]


def test_only_a_better_model_is_named() -> None:
    found = compare_models(make_models(-0.8, 1.0, 1.0), swaps=999, options=IntervalOptions(draws=100))
    assert [(pair.first, pair.second) for pair in found.pairs] == [("m0", "m1"), ("m0", "m2"), ("m1", "m2")]
    worse, _, equal = found.pairs
    for metric in worse.metrics:
        assert (metric.better, metric.words) == ("m1", "m1 is better")
        assert metric.difference.high < 0
        assert metric.difference.value == pytest.approx(metric.first.value - metric.second.value)
    for metric in equal.metrics:
        assert (metric.better, metric.words) == (None, NO_DIFFERENCE)
        assert metric.difference.low < 0 < metric.difference.high
    assert found.family == "6 tests: 3 pairs of models in AUROC and accuracy"
    assert (found.unit, found.units, found.slices, found.split) == ("patient", 24, 144, "test")
    assert ModelComparison.model_validate_json(found.model_dump_json()) == found


def test_words_say_where_interval_and_test_disagree() -> None:
    """100 of 100 right and 7 errors: the bound of the perfect model's AUROC is wide, its test is sure."""
    y = np.tile([0, 1], 50)
    first = np.where(y == 1, 1.0, -1.0) * np.tile([1.0, 1.3, 1.6, 1.9, 1.5], 20)
    second = np.where(np.arange(100) < 93, first, -first)
    tables = [make_table(y, z, model=f"m{i}", checkpoint=f"c{i}") for i, z in enumerate((first, second), 1)]
    auroc, accuracy = compare_models(tables, swaps=999, options=IntervalOptions(draws=200)).pairs[0].metrics
    assert auroc.difference.low < 0 < auroc.difference.high
    assert (auroc.better, accuracy.words) == ("m1", "m1 is better")
    assert auroc.words == "m1 is better, though the interval of the difference includes 0"
    more = [tables[0].with_columns(model=pl.lit(f"m{i}"), checkpoint_hash=pl.lit(f"c{i}")) for i in (3, 4)]
    pair = compare_models([*tables, *more], ("accuracy",), options=IntervalOptions(draws=200)).pairs[0]
    assert pair.metrics[0].test.p == pytest.approx(2 / 2**7)
    assert pair.metrics[0].words == "no difference shown, though the interval of the difference excludes 0"


def test_lower_is_better_where_it_is() -> None:
    metric = (
        compare_models(make_models(-0.8, 1.0), ("brier",), swaps=999, options=IntervalOptions(draws=100))
        .pairs[0]
        .metrics[0]
    )
    assert metric.difference.value > 0
    assert metric.words == "m1 is better"


def test_identical_models_have_p_1_and_no_difference_is_shown() -> None:
    tables = [make_table(Y, Z, UNIT, model=name) for name in ("a", "b")]
    pair = compare_models(
        tables, ("auroc", "accuracy", "f1", "brier"), options=IntervalOptions(draws=100)
    ).pairs[0]
    for metric in pair.metrics:
        assert (metric.test.p, metric.test.p_holm, metric.words) == (1.0, 1.0, NO_DIFFERENCE)
        assert (metric.difference.value, metric.difference.low) == (0.0, None)
        assert metric.difference.reason == "the models do not differ on these cases"
    assert [test.p for test in pair.others] == [1.0, 1.0, 1.0]


def test_swapping_the_models_flips_every_difference() -> None:
    tables = make_models(0.0, 1.0)
    one = compare_models(tables, swaps=199, options=IntervalOptions(draws=100)).pairs[0]
    other = compare_models(tables[::-1], swaps=199, options=IntervalOptions(draws=100)).pairs[0]
    for a, b in zip(one.metrics, other.metrics, strict=True):
        assert a.difference.value == -b.difference.value
        assert (a.difference.low, a.difference.high) == pytest.approx((-b.difference.high, -b.difference.low))
        assert (a.test.p, a.words) == (b.test.p, b.words)


def test_no_order_of_rows_moves_anything() -> None:
    tables = make_models(0.0, 1.0)
    shuffled = [table.sample(fraction=1, shuffle=True, seed=i) for i, table in enumerate(tables)]
    assert compare_models(shuffled, swaps=99, options=IntervalOptions(draws=50)) == compare_models(
        tables, swaps=99, options=IntervalOptions(draws=50)
    )


def test_the_further_tests_are_corrected_over_the_pairs_each() -> None:
    found = compare_models(make_models(0.0, 0.4, 0.8), swaps=99, options=IntervalOptions(draws=50))
    names = [test.name.split(",")[0] for test in found.pairs[0].others]
    assert names == ["clustered DeLong (Obuchowski 1997)", "DeLong", "exact McNemar"]
    for place in range(3):
        tests = [pair.others[place] for pair in found.pairs]
        assert [test.p_holm for test in tests] == correct_holm([test.p for test in tests])
    independent = compare_models(
        [t.with_columns(patient_id=pl.lit(None, pl.String)) for t in make_models(0, 1)]
    )
    assert [test.name.split(",")[0] for test in independent.pairs[0].others] == ["DeLong", "exact McNemar"]


def test_holm_is_that_of_statsmodels() -> None:
    rng = np.random.default_rng(8)
    for size in (1, 2, 5, 12, 12, 12):
        p_values = np.round(rng.random(size) ** 3, 2)  # some ties
        reference = multipletests(p_values, method="holm")[1]
        assert correct_holm(p_values.tolist()) == pytest.approx(reference, abs=1e-12)


def test_a_test_without_p_does_not_count_in_the_family() -> None:
    assert correct_holm([0.02, None, 0.03]) == [0.04, None, 0.04]


@given(st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_mcnemar_is_that_of_statsmodels(first_only: int, second_only: int) -> None:
    first = np.repeat([True, False, True], [first_only, second_only, 5])
    second = np.repeat([False, True, True], [first_only, second_only, 5])
    reference = mcnemar([[5, first_only], [second_only, 0]], exact=True).pvalue
    assert run_mcnemar(first, second).p == pytest.approx(reference, abs=1e-9)


def test_mcnemar_gives_a_published_example() -> None:
    """Fagerland, Lydersen and Laake 2013 (BMC Med Res Methodol 13:91): 1 against 7 discordant pairs, p = 0.070."""
    found = run_mcnemar(np.repeat([True, False], [1, 7]), np.repeat([False, True], [1, 7]))
    assert found.p == pytest.approx(0.0703125, abs=1e-12)
    assert "1 right by the first alone, 7 by the second" in found.name


def test_models_of_other_cases_are_refused() -> None:
    first, second = make_models(0.0, 1.0)
    with pytest.raises(PredictionsError, match="at least two models"):
        compare_models([first])
    with pytest.raises(PredictionsError, match="the same name"):
        compare_models([first, first])
    with pytest.raises(PredictionsError, match="are of different slices"):
        compare_models([first, second.head(100)])
    for column, value in (
        ("y_true", pl.lit(1, pl.Int8)),
        ("patient_id", pl.lit("p")),
        ("manifest_hash", pl.lit("x")),
    ):
        with pytest.raises(PredictionsError, match=f"differ in {column}"):
            compare_models([first, second.with_columns(value.alias(column))])
    with pytest.raises(InputError, match="no threshold for m1"):
        compare_models([first, second], thresholds={"m0": 0.5})


def test_each_model_has_its_own_threshold() -> None:
    tables = make_models(0.0, 1.0)
    pair = compare_models(
        tables, ("accuracy",), thresholds={"m0": 0.3, "m1": 0.7}, swaps=99, options=IntervalOptions(draws=50)
    ).pairs[0]
    for table, threshold, found in zip(
        tables, (0.3, 0.7), (pair.metrics[0].first, pair.metrics[0].second), strict=True
    ):
        right = (table["prob"] >= threshold) == (table["y_true"] == 1)
        assert found.value == pytest.approx(right.mean())


def test_one_class_leaves_the_words_to_the_reason() -> None:
    tables = [
        make_table([1] * 10, np.linspace(-1, 1 + i, 10), np.arange(10) // 2, model=f"m{i}") for i in (0, 1)
    ]
    pair = compare_models(tables, options=IntervalOptions(draws=50)).pairs[0]
    assert pair.metrics[0].words == "no difference shown: the slices are of one class only"
    assert pair.metrics[0].difference.value is None
    assert len(pair.others) == 1


def test_uncorrelated_equal_proportions_give_newcombes_interval() -> None:
    """Newcombe 1998 (Stat Med 17:873), method 10, table II (a): 56/70 - 48/80 is 0.0524 to 0.3339."""
    first, second = estimate_wilson(56, 70), estimate_wilson(48, 80)
    found = subtract_estimates(first, second, np.array([0.0, 1.0]), np.array([0.5, 0.5]))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_method_of_a_difference_passes_on_what_its_parts_say() -> None:
    known = {"value": 0.9, "low": 0.8, "high": 0.95, "unit": "patient", "n": 20}
    plain = Estimate(method="x", **known)
    for words, expected in (
        (
            "x; 3% of the draws reached the end: may cover less than its level",
            "; may cover less than its level",
        ),
        ("x, widened to Clopper-Pearson on 20 patients", "one is a bound: covers more than its level"),
    ):
        other = Estimate(method=words, **known)
        found = subtract_estimates(plain, other, np.array([0.8, 0.9]), np.array([0.9, 0.7]))
        assert found.method.endswith(expected)


def test_the_difference_of_auroc_near_one_is_covered_at_20_units() -> None:
    """Percentiles of the paired bootstrap cover 0.88 of these: docs/log.md."""

    def draw(seed: int, units: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        y, z, unit = make_logits(seed, units, 8, shift=0.0, shared=0.5)
        own = np.random.default_rng(seed + 5000).normal(size=(2, z.size)) * 0.5
        return (
            y,
            [compute_sigmoid(z + own[i] + shift * (2 * y - 1)) for i, shift in enumerate((1.7, 1.2))],
            unit,
        )

    auroc = {"auroc": METRICS["auroc"]}
    y, probs, _ = draw(10**6, 10_000)
    truth = float(np.subtract(*[compute_metrics(y, p, 0.5)["auroc"].value for p in probs]))
    hits, sets = 0, 80
    for seed in range(sets):
        y, probs, unit = draw(seed, 20)
        cases = [arrange_cases(y, p, 0.5, units=unit) for p in probs]
        first, second = (
            estimate_intervals(c, names=("auroc",), options=IntervalOptions(draws=100))["auroc"]
            for c in cases
        )
        found = subtract_estimates(first, second, *(leave_out_units(c, auroc)["auroc"] for c in cases))
        hits += found.low <= truth <= found.high
    assert hits / sets >= 0.9, hits / sets
