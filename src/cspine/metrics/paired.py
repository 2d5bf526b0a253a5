"""The interval of a difference of two estimates on the same units, from the interval of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from cspine.core.errors import InputError, PredictionsError
from cspine.core.estimates import Estimate, FrozenModel, HypothesisTest
from cspine.core.types import plural
from cspine.metrics.evaluation import arrange_table, index_units, name_splits, sort_labelled
from cspine.metrics.intervals import (
    DEFAULT_OPTIONS,
    FEW_UNITS,
    IntervalOptions,
    UnitBounds,
    estimate_intervals,
    find_link_ends,
    leave_out_units,
)
from cspine.metrics.scores import METRICS, Cases, Floats, Integers, arrange_cases, compute_totals

_SAME = 1e-12


def subtract_estimates(
    first: Estimate, second: Estimate, left_out: Floats, other_left_out: Floats
) -> Estimate:
    """Subtract the second from the first, with an interval.

    The ends follow from those of both estimates and the correlation between them (MOVER: Zou and Donner 2008, Stat
    Med 27:1693; Newcombe 1998, Stat Med 17:2635, method 10), which is taken from the cluster jackknife. So a skew
    interval near the end of the range makes a skew one of the difference. A percentile interval of the paired cluster
    bootstrap falls far short there; figures are in docs/log.md.

    Args:
        first, second: Of one metric, over the same units, at the same level.
        left_out, other_left_out: (units,) the metric of each model without each unit, from `leave_out_units`.

    Returns:
        No interval, with the reason, where an estimate has none or where the models agree without every unit too.
    """
    shared = {"method": _METHOD, "unit": first.unit, "n": first.n, "level": first.level}
    if first.value is None or second.value is None:
        reason = first.reason if first.value is None else second.reason
        return Estimate.model_validate({**shared, "value": None, "low": None, "high": None, "reason": reason})
    if "Clopper-Pearson" in first.method + second.method:
        shared["method"] = f"{_METHOD}, of which one is a bound: covers more than its level"
    elif _SHORT in first.method + second.method:
        shared["method"] = f"{_METHOD}; {_SHORT}"
    found = {**shared, "value": first.value - second.value, "low": None, "high": None}
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Estimate.model_validate({**found, "reason": first.reason or second.reason})
    if np.allclose(left_out, other_left_out, rtol=0, atol=_SAME, equal_nan=True):
        return Estimate.model_validate({**found, "reason": "the models do not differ on these cases"})
    correlation = _correlate(left_out, other_left_out)
    below = _combine(first.value - first.low, second.high - second.value, correlation)
    above = _combine(first.high - first.value, second.value - second.low, correlation)
    value = first.value - second.value
    return Estimate.model_validate({**found, "low": value - below, "high": value + above})


_SHORT = "may cover less than its level"
_METHOD = "from both intervals and their cluster jackknife correlation (MOVER)"


def _combine(a: float, b: float, correlation: float) -> float:
    return float(np.sqrt(max(a * a + b * b - 2 * correlation * a * b, 0.0)))


def _correlate(first: Floats, second: Floats) -> float:
    """Correlation of the influences of the units; 0 where one does not vary.

    A bound of the range (400 of 400 right) knows no correlation, and 0 makes the interval wider for it.
    """
    both = ~(np.isnan(first) | np.isnan(second))
    a, b = first[both], second[both]
    if a.size < 2 or np.ptp(a) <= _SAME or np.ptp(b) <= _SAME:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


# AUROC without resampling: DeLong's variance, and Obuchowski's for slices in clusters.
#
# DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837) write AUROC as a mean over fractures and over normals of
# *placements*: for a fracture the share of normals that score lower, for a normal the share of fractures that score
# higher, ties counting one half. Their covariances give that of the AUROCs of any number of models on the same
# slices.
# Placements come from ranks (Sun and Xu 2014, IEEE Signal Process Lett 21:1389). Obuchowski 1997 (Biometrics 53:567)
# sums the placements of a cluster first; where each slice is its own cluster it is DeLong's formula.
#
# Both hold for many clusters. For few, Student's t with clusters - 1 degrees of freedom stands for the normal
# distribution, and the interval is taken on the logit scale. With 20 clusters it still falls short near 1, and
# `method`
# says so; figures are in docs/log.md. `estimate_intervals` does better there.


_ONE_CLASS = METRICS["auroc"].undefined
_ZERO = 1e-14  # variances of AUROCs below this are rounding


class Areas(NamedTuple):
    """AUROCs of k models on the same slices: (k,) values and their (k, k) covariance."""

    values: Floats
    covariance: Floats


def compute_areas(y_true: npt.ArrayLike, scores: npt.ArrayLike, units: npt.ArrayLike | None = None) -> Areas:
    """AUROCs and their covariance.

    Args:
        y_true: (n,) 0 or 1, both there.
        scores: (k, n) or (n,): one row a model; only the order within a row matters.
        units: (n,) cluster of each slice, 0.. without gaps (Obuchowski); each slice its own where None (DeLong).

    Raises:
        ValueError: one class only, or shapes that differ.
    """
    y = np.asarray(y_true) == 1
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if rows.shape[1:] != y.shape:
        raise ValueError(f"scores must be (k, {y.size}), not {rows.shape}")
    if y.all() or not y.any():
        raise ValueError(_ONE_CLASS)
    unit = _number_units(y.size, units)
    of_fractures, of_normals = _place(rows, y)
    values = of_fractures.mean(axis=1)
    count = int(unit.max()) + 1
    fractures = _sum_deviations(of_fractures - values[:, np.newaxis], unit[y], count)
    normals = _sum_deviations(of_normals - values[:, np.newaxis], unit[~y], count)
    m, n = int(y.sum()), int((~y).sum())
    with_fracture, with_normal = len(np.unique(unit[y])), len(np.unique(unit[~y]))
    clusters = len(np.unique(unit))
    cross = _correct(clusters) * (fractures @ normals.T) / (m * n)
    covariance = (
        _correct(with_fracture) * (fractures @ fractures.T) / m**2
        + _correct(with_normal) * (normals @ normals.T) / n**2
        + cross
        + cross.T
    )
    return Areas(values, covariance)


def _number_units(slices: int, units: npt.ArrayLike | None) -> Integers:
    """(slices,) cluster of each slice; each its own where None."""
    return np.arange(slices) if units is None else np.asarray(units, dtype=np.int64)


def _correct(clusters: int) -> float:
    """I / (I - 1); a single cluster has no variance to correct."""
    return clusters / (clusters - 1) if clusters > 1 else 1.0


def _place(rows: Floats, y: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Placements (k, fractures) and (k, normals)."""
    everywhere = stats.rankdata(rows, axis=1)
    among_fractures = stats.rankdata(rows[:, y], axis=1)
    among_normals = stats.rankdata(rows[:, ~y], axis=1)
    of_fractures = (everywhere[:, y] - among_fractures) / among_normals.shape[1]
    of_normals = 1 - (everywhere[:, ~y] - among_normals) / among_fractures.shape[1]
    return of_fractures, of_normals


def _sum_deviations(deviations: Floats, unit: Integers, count: int) -> Floats:
    """(k, slices) -> (k, clusters)."""
    return np.stack([np.bincount(unit, weights=row, minlength=count) for row in deviations])


def estimate_auroc(
    table: pl.DataFrame, options: IntervalOptions = DEFAULT_OPTIONS, *, logit: bool = True
) -> Estimate:
    """AUROC of one model with DeLong's interval, or Obuchowski's where the units hold several slices.

    Args:
        table: Predictions, all labelled.
        options: Of these `unit` ("slice_id" takes each slice as independent) and `level`.
        logit: See `estimate_area`.

    Raises:
        PredictionsError, InputError: see `evaluate_table`.
    """
    table = sort_labelled(table)
    units, unit = index_units(table, options.unit)
    y, prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
    return estimate_area(y, prob, units, unit=unit, level=options.level, logit=logit)


def estimate_area(
    y_true: npt.ArrayLike,
    prob: npt.ArrayLike,
    units: npt.ArrayLike,
    *,
    unit: str,
    level: float = 0.95,
    logit: bool = True,
) -> Estimate:
    """AUROC with its interval from arrays.

    Args:
        y_true, prob, units: As of `arrange_cases`.
        unit: Name of one unit.
        level: Nominal coverage.
        logit: Whether the interval is made on the logit scale, so that it stays inside 0..1; else it is the symmetric
            one of the papers, cut at 0 and 1.

    Returns:
        Undefined with one class only. Where the variance is zero, as fractures and normals do not overlap, or not
        known, as a class is of one unit, the interval is the bound of `UnitBounds`.
    """
    y, unit_of = np.asarray(y_true), np.asarray(units, dtype=np.int64)
    count = int(unit_of.max()) + 1
    clustered = count < y.size
    method = "clustered DeLong (Obuchowski 1997)" if clustered else "DeLong"
    shared: dict[str, Any] = {"unit": unit, "n": count, "level": level}
    if y.min() == y.max():
        return Estimate(value=None, low=None, high=None, method=method, reason=_ONE_CLASS, **shared)
    areas = compute_areas(y, prob, unit_of)
    value, variance = float(areas.values[0]), float(areas.covariance[0, 0])
    if count < 2:
        reason = f"one {unit} only: an interval needs at least two"
        return Estimate(value=value, low=None, high=None, method=method, reason=reason, **shared)
    lone = _find_lone_class(y, unit_of)
    if lone or variance <= _ZERO or not 0 < value < 1:
        cases = arrange_cases(y, prob, 0.5, units=unit_of, unit=unit)
        bound = UnitBounds(cases, compute_totals(cases, np.ones((1, count))), level).find_auroc()
        reason = f"all {lone} are of one {unit}" if lone else f"the variance of {method} is zero"
        method = f"{bound.method}, as {reason}"
        return Estimate(value=value, low=bound.low, high=bound.high, method=method, **shared)
    error, quantile = float(np.sqrt(variance)), find_quantile(count, level, clustered=clustered)
    if logit:
        low, high = find_link_ends(value, error, quantile, 0.0, 1.0)
    else:
        low, high = max(0.0, value - quantile * error), min(1.0, value + quantile * error)
    method += (", logit scale" if logit else "") + (", Student's t" if clustered else "")
    if clustered and count < FEW_UNITS:
        method += f"; {count} {plural(unit)}: may cover less than its level"
    return Estimate(value=value, low=low, high=high, method=method, **shared)


def _find_lone_class(y: npt.NDArray[Any], units: Integers) -> str | None:
    """The class that one unit holds all of, in words: how such units differ, nothing says. None where there is none."""
    for label, name in ((1, "fractures"), (0, "normal slices")):
        if len(np.unique(units[y == label])) == 1:
            return name
    return None


def find_quantile(units: int, level: float, *, clustered: bool) -> float:
    """Half an interval's width in standard errors: Student's t for clusters, else the normal quantile."""
    tail = (1 + level) / 2
    return float(stats.t.ppf(tail, units - 1) if clustered else stats.norm.ppf(tail))


def compare_areas(
    y_true: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, units: npt.ArrayLike | None = None
) -> HypothesisTest:
    """Test that two models have the same AUROC on the same slices (DeLong 1988; clustered: Obuchowski 1997).

    Args:
        y_true: (n,) 0 or 1, both there.
        first, second: (n,) scores; swapping them flips the sign of the statistic.
        units: (n,) cluster of each slice; each its own where None. With clusters the statistic is referred to
            Student's t with clusters - 1 degrees of freedom, else to the normal distribution.

    Returns:
        p is None where the variance is zero though the AUROCs differ, or where it is not known, as a class is of one
        cluster (one slice, where each is its own).

    Raises:
        ValueError: see `compute_areas`.
    """
    name = "DeLong, slices as independent"
    areas = compute_areas(y_true, np.stack([np.asarray(first), np.asarray(second)]), units)
    count = np.asarray(y_true).size if units is None else int(np.max(units)) + 1
    clustered = count < np.asarray(y_true).size
    if clustered:
        name = "clustered DeLong (Obuchowski 1997), Student's t"
    difference = float(areas.values[0] - areas.values[1])
    variance = float(areas.covariance[0, 0] + areas.covariance[1, 1] - 2 * areas.covariance[0, 1])
    if variance <= _ZERO:
        if abs(difference) <= _ZERO:
            return HypothesisTest(name=name, statistic=0.0, p=1.0)
        reason = "the variance of the difference is zero"
        return HypothesisTest(name=name, statistic=None, p=None, reason=reason)
    if lone := _find_lone_class(np.asarray(y_true), _number_units(np.size(y_true), units)):
        reason = f"all {lone} are of one {'cluster' if clustered else 'slice'}: their variance is unknown"
        return HypothesisTest(name=name, statistic=None, p=None, reason=reason)
    statistic = difference / float(np.sqrt(variance))
    tail = stats.t.sf(abs(statistic), count - 1) if clustered else stats.norm.sf(abs(statistic))
    return HypothesisTest(name=name, statistic=statistic, p=float(min(1.0, 2 * tail)))


# Clustered permutation test: were two models exchangeable, their scores could be swapped in any unit.
#
# Under the hypothesis that within each unit (the patient, say) it does not matter which model gave which score,
# swapping
# the scores of all slices of a unit changes nothing but chance. So the difference of a metric is taken again under
# swaps of whole units; p is the share of swaps with a difference at least as large (sign-flip test; Good 2005,
# "Permutation, Parametric and Bootstrap Tests of Hypotheses", chapter 3). Few units that differ are enumerated, and p
# is
# then exact; else swaps are drawn and p = (1 + hits) / (1 + draws) (Phipson and Smyth 2010, Stat Appl Genet Mol Biol
# 9).
#
# For AUROC, scores of two models must be on one scale to be swapped: each model's are replaced by their ranks among
# all slices (Venkatraman and Begg 1996, Biometrika 83:835; Bandos, Rockette and Gur 2005, Stat Med 24:2873), so that
# a
# monotone transform of a model's scores moves nothing. The difference is then linear in the signs of the units.


ENUMERATED_UNITS = 13
"""Up to this many units that differ, all swaps are taken."""

PERMUTABLE = tuple(name for name in METRICS if name not in ("auprc", "log_loss"))
"""Metrics that the test is made for."""

_CHUNK_VALUES = 2**20
_SLACK = 1e-9  # differences that are equal but for rounding count as equal

Statistic = Callable[[Floats], Floats]


class Swaps(NamedTuple):
    """How many swaps of units are drawn, and their seed."""

    draws: int = 9999
    seed: int = 0


DEFAULT_SWAPS = Swaps()


def permute_units(
    metric: str,
    y_true: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    units: npt.ArrayLike,
    *,
    unit: str,
    thresholds: tuple[float, float] = (0.5, 0.5),
    swaps: Swaps = DEFAULT_SWAPS,
) -> HypothesisTest:
    """Test that two models are exchangeable within units, by the difference of one metric.

    Args:
        metric: One of `PERMUTABLE`.
        y_true: (n,) 0 or 1.
        first, second: (n,) probabilities of the two models.
        units: (n,) unit of each slice, 0.. without gaps.
        unit: Name of one unit.
        thresholds: Of the first and the second model.
        swaps: How they are drawn where there are too many to take them all.

    Returns:
        `statistic` is first - second. p is None where the metric is undefined for a model. Swaps under which the
        metric is undefined count as hits, which makes p larger.

    Raises:
        InputError: a metric without this test.
    """
    if metric not in PERMUTABLE:
        raise InputError(f"no permutation test for {metric}", fix=f"choose from {', '.join(PERMUTABLE)}")
    y, unit_of = np.asarray(y_true), np.asarray(units, dtype=np.int64)
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    count = int(unit_of.max()) + 1
    if METRICS[metric].ranking:
        effects = _find_area_effects(y, a, b, unit_of, count)
        statistic: Statistic = lambda signs: signs @ effects  # noqa: E731
        differs = np.abs(effects) > _SLACK / count
        undefined = bool(y.min() == y.max())
    else:
        cases = [arrange_cases(y, p, cut, units=unit_of) for p, cut in zip((a, b), thresholds, strict=True)]
        statistic = _make_count_statistic(metric, cases[0], cases[1])
        differs = np.any(np.abs(cases[0].sums - cases[1].sums) > _SLACK, axis=1)
        undefined = bool(np.isnan(statistic(np.ones((1, count)))[0]))
    name = f"permutation of whole {plural(unit)}"
    if undefined:
        return HypothesisTest(name=name, p=None, reason=METRICS[metric].undefined)
    observed = float(statistic(np.ones((1, count)))[0])
    hits, taken, exact = _count_hits(statistic, observed, differs, swaps)
    p = hits / taken if exact else (1 + hits) / (1 + taken)
    name += f", all {taken} swaps" if exact else f", {taken} swaps"
    return HypothesisTest(name=name, statistic=observed, p=p)


def _count_hits(
    statistic: Statistic, observed: float, differs: npt.NDArray[np.bool_], swaps: Swaps
) -> tuple[int, int, bool]:
    """(swaps at least as extreme, swaps taken, whether these are all there are)."""
    exact = int(differs.sum()) <= ENUMERATED_UNITS
    hits = taken = 0
    for signs in _list_signs(differs) if exact else _draw_signs(differs, swaps):
        values = statistic(signs)
        hits += int(np.count_nonzero(np.isnan(values) | (np.abs(values) >= abs(observed) - _SLACK)))
        taken += len(signs)
    return hits, taken, exact


def _list_signs(differs: npt.NDArray[np.bool_]) -> Iterator[Floats]:
    """All swaps of the units that differ; swapping another changes nothing."""
    places = np.flatnonzero(differs)
    signs = np.ones((2**places.size, differs.size))
    numbers = np.arange(2**places.size)[:, np.newaxis]
    signs[:, places] = 1 - 2 * ((numbers >> np.arange(places.size)) & 1)
    yield signs


def _draw_signs(differs: npt.NDArray[np.bool_], swaps: Swaps) -> Iterator[Floats]:
    """Random swaps in chunks. One stream, row by row, so that the chunks' size moves nothing."""
    rng = np.random.default_rng(swaps.seed)
    step = max(1, _CHUNK_VALUES // differs.size)
    for start in range(0, swaps.draws, step):
        rows = min(step, swaps.draws - start)
        yield np.where(rng.integers(0, 2, (rows, differs.size)) == 1, -1.0, 1.0)


def _make_count_statistic(metric: str, first: Cases, second: Cases) -> Statistic:
    """(swaps, units) signs -> (swaps,) differences of a metric that is a function of sums over units."""
    both = replace(first, sums=np.vstack([first.sums, second.sums]))

    def compute(signs: Floats) -> Floats:
        kept, swapped = (1 + signs) / 2, (1 - signs) / 2
        values = [
            METRICS[metric].compute(compute_totals(both, np.hstack(weights), ranking=False))
            for weights in ((kept, swapped), (swapped, kept))
        ]
        return np.asarray(values[0] - values[1])

    return compute


def _find_area_effects(
    y: npt.NDArray[np.int64], first: Floats, second: Floats, units: Integers, count: int
) -> Floats:
    """(units,): what each unit's sign carries of the difference of AUROCs.

    With signs e (1: as it is, -1: swapped), psi the comparison of a fracture's and a normal's rank, and a, b the
    models: the difference is the mean over pairs (i, j) of
    (e_i + e_j) / 2 * (psi(a_i, a_j) - psi(b_i, b_j)) + (e_i - e_j) / 2 * (psi(a_i, b_j) - psi(b_i, a_j)).
    """
    a, b = stats.rankdata(first), stats.rankdata(second)
    fracture, normal = y == 1, y == 0
    pairs = int(fracture.sum()) * int(normal.sum())
    if pairs == 0:
        return np.zeros(count)
    (fa, fb), (na, nb) = (a[fracture], b[fracture]), (a[normal], b[normal])
    of_fractures = _count_wins(fa, na) - _count_wins(fb, nb) + _count_wins(fa, nb) - _count_wins(fb, na)
    # Of a normal's view, a fracture's win is its loss: the sign turns.
    of_normals = -_count_wins(na, fa) + _count_wins(nb, fb) + _count_wins(nb, fa) - _count_wins(na, fb)
    effects = np.zeros(y.size)
    effects[fracture], effects[normal] = of_fractures / 2, of_normals / 2
    return np.bincount(units, weights=effects, minlength=count) / pairs


def _count_wins(scores: Floats, others: Floats) -> Floats:
    """For each score, how many of the others it exceeds; a tie counts one half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left")
    return np.asarray((below + np.searchsorted(ordered, scores, side="right")) / 2)


# Models compared pair by pair on the same cases: which differences are shown, and which are not.
#
# The words of a comparison follow from one test alone: the clustered permutation test (`permutation`), with Holm's
# correction (Holm 1979, Scand J Statist 6:65) over everything that the words speak of, that is all pairs and all
# metrics
# of the call. DeLong's and McNemar's tests stand beside it, each corrected over the pairs; they ask the same
# questions
# again, so they are no further hypotheses, and where they take slices as independent their names say so.


COMPARED = ("auroc", "accuracy")
"""Metrics that models are compared by unless told."""

NO_DIFFERENCE = "no difference shown"
"""The words where a test does not reject; not that the models are equal."""

_SAME_COLUMNS = (
    "slice_id",
    "y_true",
    "split",
    "patient_id",
    "study_uid",
    "series_uid",
    "source_id",
    "manifest_hash",
)


class PairedMetric(FrozenModel):
    """One metric of two models on the same cases.

    Attributes:
        metric: Key of `METRICS`.
        first, second: Each model's estimate.
        difference: first - second, with its interval (`subtract_estimates`). That is of this difference alone, not
            corrected for the others, so it and the test may disagree; the words then say so.
        test: The clustered permutation test, with Holm's correction over the family of the comparison.
        better: Name of the model that the test shows to be better; None where it shows no difference.
        words: What may be said, in words.
    """

    metric: str
    first: Estimate
    second: Estimate
    difference: Estimate
    test: HypothesisTest
    better: str | None
    words: str


class PairComparison(FrozenModel):
    """Two models. `others` are further tests: DeLong on AUROC, by units and by slices, and exact McNemar."""

    first: str
    second: str
    metrics: tuple[PairedMetric, ...]
    others: tuple[HypothesisTest, ...]


class ModelComparison(FrozenModel):
    """All pairs of models on the same cases.

    Attributes:
        split, slices, unit, units: What the cases are.
        level: Nominal coverage of intervals; 1 - level is the family-wise error of the words.
        family: How many tests Holm's correction is over, and of what.
        pairs: In the order in which the models were given.
    """

    split: str
    slices: int
    unit: str
    units: int
    level: float
    family: str
    pairs: tuple[PairComparison, ...]


def compare_models(
    tables: Sequence[pl.DataFrame],
    metrics: Sequence[str] = COMPARED,
    thresholds: float | Mapping[str, float] = 0.5,
    options: IntervalOptions = DEFAULT_OPTIONS,
    *,
    swaps: int = 9999,
) -> ModelComparison:
    """Compare every pair of models on the same cases.

    Args:
        tables: Predictions, one table a model, of the same slices in any order.
        metrics: From `PERMUTABLE`.
        thresholds: One for all, or one a model's name.
        options: How intervals are made; the seed is also that of the permutation test.
        swaps: Of the permutation test.

    Raises:
        PredictionsError: fewer than two models, a name twice, or tables that do not hold the same slices with the
            same labels, splits, units and manifest.
        InputError: an option outside its range, or a model without a threshold.
    """
    sorted_tables = join_tables(tables)
    units, unit = index_units(sorted_tables[0], options.unit)
    models = [_Model(table, _find_threshold(thresholds, table), options.unit) for table in sorted_tables]
    for model in models:
        model.estimates = estimate_intervals(model.cases, options, tuple(metrics))
    pairs = [
        _compare(a, b, metrics, units, unit, Swaps(swaps, options.seed)) for a, b in combinations(models, 2)
    ]
    first = sorted_tables[0]
    return ModelComparison(
        split=name_splits(first),
        slices=first.height,
        unit=unit,
        units=int(units.max()) + 1,
        level=options.level,
        family=f"{len(pairs) * len(metrics)} tests: {len(pairs)} pairs of models in {_name_metrics(metrics)}",
        pairs=tuple(_correct_pairs(pairs, options.level)),
    )


def join_tables(tables: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """Check that predictions are of the same cases, and sort each by `slice_id`.

    Raises:
        PredictionsError: see `compare_models`.
    """
    if len(tables) < 2:
        raise PredictionsError(
            "a comparison needs at least two models", fix="give predictions of another model"
        )
    found = [sort_labelled(table) for table in tables]
    names = [str(table["model"][0]) for table in found]
    if len(set(names)) < len(names):
        raise PredictionsError(
            f"two of the models have the same name: {', '.join(names)}", fix="name each once"
        )
    for name, table in zip(names[1:], found[1:], strict=True):
        check_same_cases(found[0], table, f"{names[0]} and {name}")
    return found


def check_same_cases(first: pl.DataFrame, second: pl.DataFrame, where: str) -> None:
    """Raise `PredictionsError` unless both sorted tables hold the same slices, said of in the same way."""
    for column in _SAME_COLUMNS:
        if not first[column].equals(second[column], null_equal=True):
            what = "are of different slices" if column == "slice_id" else f"differ in {column}"
            raise PredictionsError(
                f"the predictions {what}: they cannot be compared pair by pair",
                where=where,
                fix="predict the same manifest and split with both models",
            )


def _name_metrics(metrics: Sequence[str]) -> str:
    labels = (METRICS[name].label for name in metrics)
    return " and ".join(label if label.isupper() else label.lower() for label in labels)


def correct_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; tests without a p stay so and do not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[place] = largest
    return corrected


def run_mcnemar(first_right: npt.NDArray[np.bool_], second_right: npt.NDArray[np.bool_]) -> HypothesisTest:
    """Exact McNemar test (binomial on the discordant slices); it takes every slice as independent.

    Args:
        first_right, second_right: (n,) whether each model called each slice rightly.
    """
    first_only = int(np.count_nonzero(first_right & ~second_right))
    second_only = int(np.count_nonzero(second_right & ~first_right))
    discordant = first_only + second_only
    p = float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0
    name = f"exact McNemar, slices as independent ({first_only} right by the first alone, {second_only} by the second)"
    return HypothesisTest(name=name, p=p)


class _Model:
    """One model's sorted predictions, arranged."""

    def __init__(self, table: pl.DataFrame, threshold: float, unit: str) -> None:
        self.name, self.threshold = str(table["model"][0]), threshold
        self.y, self.prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
        self.cases: Cases = arrange_table(table, threshold, unit)
        self.right = (self.prob >= threshold) == (self.y == 1)
        self.estimates: dict[str, Estimate] = {}


def _find_threshold(thresholds: float | Mapping[str, float], table: pl.DataFrame) -> float:
    if not isinstance(thresholds, Mapping):
        return thresholds
    name = str(table["model"][0])
    if name not in thresholds:
        raise InputError(f"no threshold for {name}", fix="give one for every model")
    return thresholds[name]


def _compare(
    a: _Model,
    b: _Model,
    metrics: Sequence[str],
    units: Integers,
    unit: str,
    swaps: Swaps,
) -> PairComparison:
    """One pair, before Holm's correction: no words yet."""
    chosen = {metric: METRICS[metric] for metric in metrics}
    left_out = leave_out_units(a.cases, chosen), leave_out_units(b.cases, chosen)
    found = []
    for metric in metrics:
        test = permute_units(
            metric, a.y, a.prob, b.prob, units, unit=unit, thresholds=(a.threshold, b.threshold), swaps=swaps,
        )  # fmt: skip
        first, second = a.estimates[metric], b.estimates[metric]
        found.append(
            PairedMetric(
                metric=metric,
                first=first,
                second=second,
                difference=subtract_estimates(first, second, left_out[0][metric], left_out[1][metric]),
                test=test,
                better=None,
                words="",
            )
        )
    others = [run_mcnemar(a.right, b.right)]
    if a.y.min() < a.y.max():
        clustered = int(units.max()) + 1 < units.size
        others = [
            *([compare_areas(a.y, a.prob, b.prob, units)] if clustered else []),
            compare_areas(a.y, a.prob, b.prob),
            *others,
        ]
    return PairComparison(first=a.name, second=b.name, metrics=tuple(found), others=tuple(others))


def _correct_pairs(pairs: Sequence[PairComparison], level: float) -> list[PairComparison]:
    """Holm's correction: the metrics' tests over all pairs and metrics, each further test over the pairs."""
    corrected = iter(correct_holm([found.test.p for pair in pairs for found in pair.metrics]))
    further = [correct_holm([pair.others[i].p for pair in pairs]) for i in range(len(pairs[0].others))]
    result = []
    for place, pair in enumerate(pairs):
        metrics = tuple(_put_in_words(pair, found, next(corrected), level) for found in pair.metrics)
        others = tuple(
            test.model_copy(update={"p_holm": further[i][place]}) for i, test in enumerate(pair.others)
        )
        result.append(pair.model_copy(update={"metrics": metrics, "others": others}))
    return result


def _put_in_words(
    pair: PairComparison, found: PairedMetric, p_holm: float | None, level: float
) -> PairedMetric:
    test = found.test.model_copy(update={"p_holm": p_holm})
    better, words = None, f"{NO_DIFFERENCE}: {test.reason}" if p_holm is None else NO_DIFFERENCE
    if p_holm is not None and p_holm <= 1 - level and found.test.statistic:
        first_better = (found.test.statistic > 0) == METRICS[found.metric].higher_is_better
        better = pair.first if first_better else pair.second
        words = f"{better} is better"
    low, high = found.difference.low, found.difference.high
    if p_holm is not None and low is not None and high is not None and (low <= 0 <= high) != (better is None):
        words += f", though the interval of the difference {'excludes' if better is None else 'includes'} 0"
    return found.model_copy(update={"test": test, "better": better, "words": words})
