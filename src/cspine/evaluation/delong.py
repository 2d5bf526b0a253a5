"""AUROC without resampling: DeLong's variance, and Obuchowski's for slices in clusters.

DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837) write AUROC as a mean over fractures and over normals of
*placements*: for a fracture the share of normals that score lower, for a normal the share of fractures that score
higher, ties counting one half. Their covariances give that of the AUROCs of any number of models on the same slices.
Placements come from ranks (Sun and Xu 2014, IEEE Signal Process Lett 21:1389). Obuchowski 1997 (Biometrics 53:567)
sums the placements of a cluster first; where each slice is its own cluster it is DeLong's formula.

Both hold for many clusters. For few, Student's t with clusters - 1 degrees of freedom stands for the normal
distribution, and the interval is taken on the logit scale. With 20 clusters it still falls short near 1, and `method`
says so; figures are in docs/log.md. The default of `bootstrap` does better there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from cspine.data.types import plural
from cspine.evaluation.bounds import UnitBounds
from cspine.evaluation.ends import find_link_ends
from cspine.evaluation.estimate import Estimate, HypothesisTest
from cspine.evaluation.evaluate import index_units, sort_labelled
from cspine.evaluation.intervals import FEW_UNITS
from cspine.evaluation.metrics import METRICS, Floats, Integers, arrange_cases, compute_totals

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
    table: pl.DataFrame, *, by: str = "auto", level: float = 0.95, logit: bool = True
) -> Estimate:
    """AUROC of one model with DeLong's interval, or Obuchowski's where the units hold several slices.

    Args:
        table: Predictions, all labelled.
        by: See `choose_unit`; "slice_id" takes each slice as independent.
        level: Nominal coverage.
        logit: See `estimate_area`.

    Raises:
        PredictionsError, InputError: see `evaluate`.
    """
    table = sort_labelled(table)
    units, unit = index_units(table, by)
    y, prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
    return estimate_area(y, prob, units, unit=unit, level=level, logit=logit)


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
        cases = arrange_cases(y, prob, 0.5, units=unit_of)
        bound = UnitBounds(cases, compute_totals(cases, np.ones((1, count))), unit, level).find_auroc()
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
