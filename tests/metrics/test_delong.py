"""DeLong and Obuchowski: against a published example, direct double sums, and by coverage."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cspine.metrics.intervals import IntervalOptions
from cspine.metrics.paired import compare_areas, compute_areas, estimate_area, estimate_auroc
from tests.metrics.builders import make_logits, make_table

# DeLong et al. 1988, as in the SAS/STAT User's Guide, "Comparing Receiver Operating Characteristic Curves": albumin,
# total protein, K-G score and outcome of 43 patients with ovarian cancer.
OVARIAN_TEXT = """\
    3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1
    3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0
    2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1
    3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0
    3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1
    3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1"""
OVARIAN = np.array(OVARIAN_TEXT.split(), dtype=float).reshape(-1, 4)


def test_the_published_example_comes_out() -> None:
    y, scores = OVARIAN[:, 3], np.stack([OVARIAN[:, 0], OVARIAN[:, 1], 10 - OVARIAN[:, 2]])
    areas = compute_areas(y, scores)
    assert np.round(areas.values, 4).tolist() == [0.7366, 0.6478, 0.7258]
    assert np.round(np.sqrt(np.diag(areas.covariance)), 4).tolist() == [0.0927, 0.1000, 0.1028]
    plain = estimate_area(y, scores[2] / 10, np.arange(43), unit="slice", logit=False)
    assert (round(plain.low, 4), round(plain.high, 4)) == (0.5243, 0.9273)
    for first, chi_square, p in ((0, 0.0127, 0.9102), (1, 0.5554, 0.4561)):
        found = compare_areas(y, scores[first], scores[2])
        assert (round(found.statistic**2, 4), round(found.p, 4)) == (chi_square, p)


def sum_directly(
    y: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], unit: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Obuchowski 1997, section 2, written out as it stands there."""
    k = len(scores)
    fractures, normals = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    kernel = np.empty((k, fractures.size, normals.size))
    for model in range(k):
        for a, i in enumerate(fractures):
            for b, j in enumerate(normals):
                x, z = scores[model, i], scores[model, j]
                kernel[model, a, b] = 1.0 if x > z else 0.5 if x == z else 0.0
    area = kernel.mean(axis=(1, 2))
    v10, v01 = kernel.mean(axis=2), kernel.mean(axis=1)
    clusters = np.unique(unit)
    s10, s01, s11 = np.zeros((k, k)), np.zeros((k, k)), np.zeros((k, k))
    for cluster in clusters:
        mine, others = unit[fractures] == cluster, unit[normals] == cluster
        x = v10[:, mine].sum(axis=1) - mine.sum() * area
        z = v01[:, others].sum(axis=1) - others.sum() * area
        s10 += np.outer(x, x)
        s01 += np.outer(z, z)
        s11 += np.outer(x, z)
    i10, i01, i = len(set(unit[fractures])), len(set(unit[normals])), len(clusters)
    m, n = fractures.size, normals.size
    s10 *= i10 / ((i10 - 1) * m)
    s01 *= i01 / ((i01 - 1) * n)
    s11 *= i / (i - 1)
    return s10 / m + s01 / n + (s11 + s11.T) / (m * n)


@pytest.mark.parametrize("size", [1, 4])
def test_the_covariance_is_that_of_the_direct_double_sum(size: int) -> None:
    y, z, unit = make_logits(1, 24 // size, size, mixed=True)
    scores = np.stack([np.round(z, 1), z + np.random.default_rng(2).normal(size=z.size)])
    areas = compute_areas(y, scores, unit)
    assert areas.covariance == pytest.approx(sum_directly(y, scores, unit), abs=1e-12)
    assert areas.values == pytest.approx([roc_auc_score(y, row) for row in scores], abs=1e-12)


def test_clusters_of_one_are_delongs_formula() -> None:
    y, z, _ = make_logits(3, 40, 1)
    kernel = (z[y == 1][:, None] > z[y == 0]).astype(float)
    m, n = kernel.shape
    expected = kernel.mean(axis=1).var(ddof=1) / m + kernel.mean(axis=0).var(ddof=1) / n
    assert compute_areas(y, z).covariance[0, 0] == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_monotone_transforms_move_nothing_swaps_flip_the_sign(seed: int, clustered: bool) -> None:
    y, z, unit = make_logits(seed, 10, 3, mixed=True)
    other = z + np.random.default_rng(seed).normal(size=z.size)
    units = unit if clustered else None
    before = compare_areas(y, z, other, units)
    after = compare_areas(y, np.exp(z) + 3, other, units)
    assert (after.statistic, after.p) == pytest.approx((before.statistic, before.p), abs=1e-9)
    swapped = compare_areas(y, other, z, units)
    assert (swapped.statistic, swapped.p) == pytest.approx((-before.statistic, before.p), abs=1e-9)
    assert compare_areas(y, z, z, units).p == 1.0


def test_perfect_separation_is_bounded_by_pairs_of_units() -> None:
    y = np.repeat([0, 1], 10)
    table = make_table(y, 8.0 * y - 4.0, np.arange(20) // 2)
    found = estimate_auroc(table)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 5))
    assert "5 disjoint pairs of patients, as the variance of clustered DeLong" in found.method


@pytest.mark.parametrize(("label", "name"), [(1, "fractures"), (0, "normal slices")])
def test_a_class_of_one_unit_has_no_variance_to_go_by(label: int, name: str) -> None:
    """DeLong divides by the units of a class less one: what one patient's fractures vary by, nothing says."""
    rng = np.random.default_rng(0)
    y, unit = np.full(100, 1 - label), np.arange(100) // 10
    y[:10] = label
    first, second = y + rng.normal(size=100), y + rng.normal(size=100)
    found = estimate_auroc(make_table(y, first, unit))
    assert (
        found.method == f"Clopper-Pearson on 1 disjoint pairs of patients, as all {name} are of one patient"
    )
    assert found.low < 0.5 < found.value < found.high
    test = compare_areas(y, first, second, unit)
    assert (test.p, test.reason) == (None, f"all {name} are of one cluster: their variance is unknown")
    y[1:10] = 1 - label
    assert (
        f"as all {name} are of one slice"
        in estimate_auroc(make_table(y, first, unit), options=IntervalOptions(unit="slice_id")).method
    )
    assert compare_areas(y, first, second).reason == f"all {name} are of one slice: their variance is unknown"
    assert compare_areas(y, first, first).p == 1


def test_what_has_no_interval_says_why() -> None:
    assert estimate_auroc(make_table([1, 1], [0.0, 1.0])).reason == "the slices are of one class only"
    single = estimate_auroc(make_table([0, 1], [0.0, 1.0], [0, 0]))
    assert single.reason == "one patient only: an interval needs at least two"
    with pytest.raises(ValueError, match="one class only"):
        compute_areas([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="scores must be"):
        compute_areas([0, 1], [0.1, 0.2, 0.3])
    certain = compare_areas([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert (certain.p, certain.reason) == (None, "the variance of the difference is zero")


def test_the_unit_is_said_and_slices_may_be_taken_as_independent() -> None:
    y, z, unit = make_logits(4, 20, 8)
    table = make_table(y, z, unit)
    clustered, naive = estimate_auroc(table), estimate_auroc(table, options=IntervalOptions(unit="slice_id"))
    assert clustered.value == naive.value
    assert (clustered.unit, clustered.n, naive.unit, naive.n) == ("patient", 20, "slice", 160)
    assert clustered.high - clustered.low > 1.5 * (naive.high - naive.low)
    assert clustered.method == (
        "clustered DeLong (Obuchowski 1997), logit scale, Student's t; 20 patients: may cover less than its level"
    )
    assert naive.method == "DeLong, logit scale"


@pytest.mark.parametrize(("size", "units"), [(1, 80), (8, 20)])
def test_the_interval_covers(size: int, units: int) -> None:
    truth = 0.9214  # Phi(2 * shift / sqrt(2)) with shift 1 is 0.92135
    sets = 300
    hits = 0
    for seed in range(sets):
        y, z, unit = make_logits(seed, units, size)
        found = estimate_area(y, 1 / (1 + np.exp(-z)), unit, unit="patient")
        hits += found.low <= truth <= found.high
    assert 0.925 <= hits / sets <= 0.98, hits / sets
