"""Intervals: against scipy, by coverage, and at the edges where a bootstrap knows nothing."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from cspine.core.errors import InputError
from cspine.metrics import intervals as resampling
from cspine.metrics.intervals import (
    IntervalOptions,
    bound_proportion,
    choose_unit,
    compute_jackknife_error,
    count_disjoint_pairs,
    draw_metrics,
    estimate_intervals,
    expand_tail,
    explain_unit,
    find_link_ends,
    find_percentile_ends,
    leave_out_units,
)
from cspine.metrics.scores import METRICS, Cases, arrange_cases, compute_metrics

Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]


def make_clusters(rng: np.random.Generator, units: int, shift: float, size: int = 8) -> Arrays:
    """Slices of one class a unit, which share half of the variance of their logits."""
    y = np.repeat(rng.random(units) < 0.5, size).astype(np.int64)
    shared = np.repeat(rng.normal(size=units), size)
    z = shift * (2 * y - 1) + np.sqrt(0.5) * (shared + rng.normal(size=units * size))
    return y, 1 / (1 + np.exp(-z)), np.repeat(np.arange(units), size)


def find_ends_of_draws(
    cases: Cases, names: tuple[str, ...], draws: int = 2000
) -> dict[str, tuple[float, float]]:
    """Percentiles of the draws, with Hesterberg's tails."""
    drawn = draw_metrics(cases, {name: METRICS[name] for name in names}, draws=draws, seed=0)
    return {
        name: find_percentile_ends(values, expand_tail(cases.units, 0.95)) for name, values in drawn.items()
    }


def test_percentiles_of_the_draws_agree_with_scipy() -> None:
    rng = np.random.default_rng(1)
    y, p, _ = make_clusters(rng, 150, 0.5, size=1)
    found = find_ends_of_draws(arrange_cases(y, p, 0.5), ("accuracy", "brier", "auroc"), 4000)
    level = 1 - 2 * expand_tail(150, 0.95)

    def resample(data: tuple[npt.ArrayLike, ...], statistic: object, vectorized: bool, n: int) -> object:
        return stats.bootstrap(
            data, statistic, n_resamples=n, method="percentile", confidence_level=level,
            paired=len(data) > 1, vectorized=vectorized, rng=np.random.default_rng(2),
        ).confidence_interval  # fmt: skip

    references = {
        "accuracy": resample((((p >= 0.5) == y).astype(float),), np.mean, True, 4000),
        "brier": resample(((p - y) ** 2,), np.mean, True, 4000),
        "auroc": resample((y, p), roc_auc_score, False, 1000),
    }
    for name, reference in references.items():
        width = reference.high - reference.low
        assert found[name][0] == pytest.approx(reference.low, abs=0.08 * width), name
        assert found[name][1] == pytest.approx(reference.high, abs=0.08 * width), name


def test_whole_units_are_drawn() -> None:
    """A plain loop that draws patients and concatenates their rows has the same percentiles."""
    y, p, units = make_clusters(np.random.default_rng(3), 30, 0.4)
    rng = np.random.default_rng(4)
    rows = [np.flatnonzero(units == unit) for unit in range(30)]
    values = []
    for _ in range(2000):
        drawn = np.concatenate([rows[unit] for unit in rng.integers(0, 30, 30)])
        values.append(np.mean((p[drawn] >= 0.5) == y[drawn]))
    tail = expand_tail(30, 0.95)
    low, high = np.quantile(values, (tail, 1 - tail))
    cases = arrange_cases(y, p, 0.5, units=units, unit="patient")
    assert find_ends_of_draws(cases, ("accuracy",))["accuracy"] == pytest.approx((low, high), abs=0.015)
    found = estimate_intervals(cases, names=("accuracy",))["accuracy"]
    naive = estimate_intervals(arrange_cases(y, p, 0.5), names=("accuracy",))["accuracy"]
    assert found.high - found.low > 1.5 * (naive.high - naive.low)
    assert (found.unit, found.n, naive.unit, naive.n) == ("patient", 30, "slice", 240)


def test_the_expanded_tail_follows_student_for_few_units() -> None:
    assert expand_tail(100_000, 0.95) == pytest.approx(0.025, abs=1e-5)
    # Hesterberg 2015, section 4.1: z_{alpha'} = -sqrt(n / (n - 1)) t_{alpha/2, n-1}; here n = 20.
    assert expand_tail(20, 0.95) == pytest.approx(stats.norm.cdf(-np.sqrt(20 / 19) * 2.093024), abs=1e-6)


@pytest.mark.parametrize(
    ("shift", "least", "most"),
    [
        (0.7, {"accuracy": 0.93, "auroc": 0.93, "auprc": 0.93, "brier": 0.92}, 0.98),
        (2.0, {"accuracy": 0.93, "auroc": 0.93}, 1.0),  # near the end of the range: conservative
    ],
)
def test_the_interval_covers_at_20_units(shift: float, least: dict[str, float], most: float) -> None:
    y, p, _ = make_clusters(np.random.default_rng(99), 20_000, shift)
    truth = compute_metrics(y, p, 0.5)
    hits = dict.fromkeys(least, 0)
    sets = 250
    for seed in range(sets):
        y, p, units = make_clusters(np.random.default_rng(seed), 20, shift)
        cases = arrange_cases(y, p, 0.5, units=units)
        options = IntervalOptions(draws=300, seed=seed)
        for name, found in estimate_intervals(cases, options, tuple(least)).items():
            hits[name] += found.low <= truth[name].value <= found.high
    for name, count in hits.items():
        assert least[name] <= count / sets <= most, (name, count / sets)


def test_auprc_near_one_is_covered_where_percentiles_fall_short() -> None:
    """The reason for the default: see the tables of `benchmarks/coverage.py` in docs/log.md."""
    y, p, _ = make_clusters(np.random.default_rng(99), 20_000, 1.2)
    truth = compute_metrics(y, p, 0.5)["auprc"].value
    jackknife = percentiles = 0
    for seed in range(120):
        y, p, units = make_clusters(np.random.default_rng(seed), 20, 1.2)
        cases = arrange_cases(y, p, 0.5, units=units)
        found = estimate_intervals(cases, IntervalOptions(draws=150), ("auprc",))["auprc"]
        jackknife += found.low is not None and found.low <= truth <= found.high
        low, high = find_ends_of_draws(cases, ("auprc",), 150)["auprc"]
        percentiles += low <= truth <= high
    assert jackknife / 120 >= 0.92
    assert percentiles / 120 <= 0.92


def test_the_jackknife_of_a_mean_is_its_textbook_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    y, p, units = make_clusters(np.random.default_rng(13), 60, 0.5)
    cases = arrange_cases(y, p, 0.5, units=units)
    accuracy = {"accuracy": METRICS["accuracy"]}
    error = compute_jackknife_error(leave_out_units(cases, accuracy)["accuracy"])
    right = np.bincount(units, weights=(p >= 0.5) == y) / 8
    assert error == pytest.approx(stats.sem(right), rel=1e-9)
    monkeypatch.setattr(resampling, "JACKKNIFE_GROUPS", 20)
    grouped = leave_out_units(cases, accuracy)["accuracy"]
    assert grouped.shape == (20,)
    assert compute_jackknife_error(grouped) == pytest.approx(error, rel=0.35)


@given(st.floats(0.001, 0.999), st.floats(1e-6, 5.0), st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, None)]))
def test_link_ends_hold_the_value_and_stay_in_the_range(
    place: float, error: float, limits: tuple[float, float | None]
) -> None:
    low, high = limits
    value = low + place * ((high if high is not None else 1.0) - low)
    left, right = find_link_ends(value, error, 1.96, low, high)
    assert low <= left <= value <= right
    assert high is None or right <= high


def test_a_seed_gives_the_same_bits_in_any_chunks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    y, p, units = make_clusters(np.random.default_rng(5), 40, 0.5)
    cases = arrange_cases(y, p, 0.5, units=units)
    counted = ("accuracy", "f1", "mcc", "auroc", "auprc")
    chosen = {name: METRICS[name] for name in counted}

    def draw(seed: int) -> bytes:
        return b"".join(
            values.tobytes() for values in draw_metrics(cases, chosen, draws=200, seed=seed).values()
        )

    first = draw(7)
    assert draw(8) != first
    monkeypatch.setattr(resampling, "_THREADS_FROM", 0)
    monkeypatch.setattr(resampling, "_CHUNK_VALUES", 1000)
    assert draw(7) == first


def test_400_of_400_right_in_20_source_slices_is_not_certainty() -> None:
    y = np.repeat([0, 1], 200)
    found = estimate_intervals(
        arrange_cases(y, y * 0.8 + 0.1, 0.5, units=np.arange(400) // 20, unit="source slice")
    )
    accuracy = found["accuracy"]
    assert (accuracy.value, accuracy.high) == (1.0, 1.0)
    assert accuracy.low == pytest.approx(0.025 ** (1 / 20))
    assert accuracy.method == "Clopper-Pearson on 20 source slices, as every draw agreed"
    for name in ("precision", "recall", "specificity", "npv"):
        assert found[name].low == pytest.approx(0.025 ** (1 / 10)), name
    assert (found["fpr"].low, found["fpr"].high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    # Bonferroni: both parts at 1 - 0.05 / 2, on 10 units each.
    part = 0.0125 ** (1 / 10)
    assert found["balanced_accuracy"].low == pytest.approx(part)
    assert found["f1"].low == pytest.approx(part)
    quarter = 0.00625 ** (1 / 10)
    assert found["mcc"].low == pytest.approx(quarter**2 - (1 - quarter) ** 2)
    assert found["auroc"].low == pytest.approx(0.025 ** (1 / 10))
    assert "10 disjoint pairs of source slices" in found["auroc"].method
    assert found["auprc"].low is None
    assert found["auprc"].reason == "every draw gave 1: a bootstrap cannot bound it"
    assert found["brier"].low is None


def test_one_mistake_does_not_make_a_narrower_interval_than_none() -> None:
    """Without widening, 399 of 400 would give [0.99, 1] beside [0.83, 1] for 400 of 400."""
    y = np.repeat([0, 1], 200)
    p = y * 0.8 + 0.1
    p[0] = 0.9
    found = estimate_intervals(arrange_cases(y, p, 0.5, units=np.arange(400) // 20, unit="source slice"))
    assert found["accuracy"].low < 0.84
    assert found["accuracy"].low < 399 / 400 < found["accuracy"].high
    assert "widened to Clopper-Pearson on 20 source slices" in found["accuracy"].method
    assert "may cover less than its level" in found["auprc"].method


def test_decisions_all_wrong_are_bounded_from_above() -> None:
    y = np.repeat([0, 1], 20)
    found = estimate_intervals(arrange_cases(y, 1 - y * 1.0, 0.5))
    assert (found["accuracy"].value, found["accuracy"].low) == (0.0, 0.0)
    assert found["accuracy"].high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert found["mcc"].value == -1
    assert found["mcc"].low == pytest.approx(-1)
    assert -1 < found["mcc"].high < 0
    assert (found["f1"].value, found["f1"].low) == (0.0, 0.0)
    assert 0 < found["f1"].high < 0.4
    assert (found["auroc"].value, found["auroc"].low) == (0.0, 0.0)
    assert found["auroc"].high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_a_classifier_that_calls_nothing() -> None:
    y = np.repeat([0, 1], 20)
    found = estimate_intervals(arrange_cases(y, np.full(40, 0.1), 0.5))
    for name in ("precision", "mcc"):
        assert found[name].value is None
        assert found[name].low is None
        assert found[name].reason == METRICS[name].undefined
    assert found["f1"].value == 0
    assert 0 < found["f1"].high < 0.6
    assert found["recall"].high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert found["balanced_accuracy"].low < 0.5 < found["balanced_accuracy"].high
    assert found["auroc"].low < 0.5 < found["auroc"].high


def test_a_metric_undefined_in_many_draws_has_no_interval() -> None:
    y = np.array([1] + [0] * 30)
    found = estimate_intervals(arrange_cases(y, np.linspace(0.9, 0.1, 31), 0.5))
    recall = found["recall"]
    assert recall.value == 1.0
    assert recall.low is None
    assert recall.reason is not None
    assert recall.reason.startswith("undefined in ")
    assert recall.reason.endswith("of 2000 draws (no slice is a fracture)")
    assert found["accuracy"].low is not None


def test_one_unit_has_no_interval() -> None:
    found = estimate_intervals(
        arrange_cases([0, 1, 1], [0.1, 0.9, 0.2], 0.5, units=[0, 0, 0], unit="patient")
    )
    for name, estimate in found.items():
        assert estimate.value is not None, name
        assert estimate.low is None
        assert estimate.reason == "one patient only: an interval needs at least two"


def test_pairs_of_units_are_disjoint() -> None:
    def count(y: list[int], units: list[int]) -> int:
        return count_disjoint_pairs(arrange_cases(y, [0.5] * len(y), 0.5, units=units))

    assert count([0, 1], [0, 0]) == 0  # a unit is no pair with itself
    assert count([0, 1, 0, 1], [0, 0, 1, 1]) == 1
    assert count([1, 0, 0, 0], [0, 1, 2, 3]) == 1
    assert count([1, 1, 0, 0, 1, 0], [0, 1, 2, 3, 4, 4]) == 2


def test_two_units_of_both_classes_bound_auroc_by_one_pair() -> None:
    found = estimate_intervals(
        arrange_cases([0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8], 0.5, units=[0, 0, 1, 1], unit="patient")
    )
    assert found["auroc"].low == pytest.approx(0.025)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (7, 7)])
def test_the_proportion_bound_is_clopper_pearson(k: int, n: int) -> None:
    exact = stats.binomtest(k, n).proportion_ci(0.9, method="exact")
    assert bound_proportion(k / n, n, 0.1) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_unit_is_the_largest_that_every_slice_knows() -> None:
    table = pl.DataFrame(
        {
            "slice_id": ["a", "b"],
            "patient_id": ["p", None],
            "study_uid": [None, "u"],
            "series_uid": ["x", "x"],
            "source_id": ["s", "s"],
        }
    )
    assert choose_unit(table) == ("source_id", "source slice")
    assert choose_unit(table.with_columns(patient_id=pl.lit("p"))) == ("patient_id", "patient")
    bare = table.with_columns(source_id=pl.lit(None, dtype=pl.String))
    assert choose_unit(bare) == ("slice_id", "slice")
    assert choose_unit(table, "series_uid") == ("series_uid", "series")
    with pytest.raises(InputError, match="1 of 2 slices have no patient_id"):
        choose_unit(table, "patient_id")
    with pytest.raises(InputError, match="no such unit: hospital"):
        choose_unit(table, "hospital")


def make_rows_of_series(series: int, **columns: object) -> pl.DataFrame:
    rows = {
        "series_uid": [f"x{row % series}" for row in range(60)],
        "slice_id": [f"s{row}" for row in range(60)],
    }
    rest = {"patient_id": None, "study_uid": None, "source_id": None, **columns}
    return pl.DataFrame(rows).with_columns(**{name: pl.lit(one, pl.String) for name, one in rest.items()})


@pytest.mark.parametrize(
    ("series", "columns", "column"),
    [
        (9, {"source_id": "s"}, "source_id"),
        (9, {}, "slice_id"),
        (10, {"source_id": "s"}, "series_uid"),
        (10, {"study_uid": "one study"}, "series_uid"),
        (10, {"patient_id": "p"}, "patient_id"),
    ],
)
def test_from_ten_series_on_the_series_is_the_unit(series: int, columns: dict[str, str], column: str) -> None:
    assert choose_unit(make_rows_of_series(series, **columns))[0] == column


def test_a_series_that_is_unknown_for_one_slice_is_no_unit() -> None:
    table = make_rows_of_series(12).with_columns(
        series_uid=pl.when(pl.col("slice_id") != "s7").then("series_uid")
    )
    assert choose_unit(table)[0] == "slice_id"


@pytest.mark.parametrize(
    ("series", "columns", "by", "words"),
    [
        (
            3,
            {"source_id": "s"},
            "auto",
            "over 1 source slice, as patients are unknown and there are only 3 series",
        ),
        (12, {"source_id": "s"}, "auto", "over 12 series, as patients are unknown: too narrow where several"),
        (3, {"patient_id": "p"}, "slice_id", "over 60 slices, as was asked for: they hold for other slices"),
        (3, {"patient_id": "p"}, "auto", None),
    ],
)
def test_what_intervals_cannot_know_is_said(
    series: int, columns: dict[str, str], by: str, words: str | None
) -> None:
    said = explain_unit(make_rows_of_series(series, **columns), by)
    assert said is None if words is None else words in str(said)


@pytest.mark.parametrize(
    ("options", "what"), [({"draws": 39}, "39 draws"), ({"seed": -1}, "seed"), ({"level": 1.0}, "level")]
)
def test_options_outside_their_range_are_refused(options: dict[str, float], what: str) -> None:
    with pytest.raises(InputError, match=what):
        IntervalOptions(**options)


def test_values_that_no_unit_moves_get_no_interval_of_no_width() -> None:
    """Draws differ, but without any one of three units the average precision is the same."""
    found = None
    for order in itertools.permutations(np.linspace(0.1, 0.9, 6)):
        cases = arrange_cases([0, 1, 0, 1, 1, 0], order, 0.5, units=[0, 0, 1, 1, 2, 2])
        if np.ptp(leave_out_units(cases, {"auprc": METRICS["auprc"]})["auprc"]) < 1e-15:
            found = estimate_intervals(cases, names=("auprc",), options=IntervalOptions(draws=40))["auprc"]
            if found.value < 1:
                break
    assert found is not None
    assert (found.low, found.high) == (None, None)
