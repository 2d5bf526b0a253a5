"""Intervals by bootstrap over whole clusters, and what to do where a bootstrap cannot know.

Slices of one patient resemble each other, so what is drawn again is the patient (else the source slice, else
the slice), with all its slices: the cluster bootstrap (Davison and Hinkley 1997, section 3.8). The ends are
percentiles of the draws, taken a little further out by Hesterberg's expansion for few units ("What Teachers
Should Know About the Bootstrap", The American Statistician 2015, section 4.1), without which 20 units cover
clearly less than they claim; with hundreds of units it changes nothing.

A percentile bootstrap cannot see what did not happen. At 400 right of 400 all draws agree and it would claim
certainty; at 399 it rests on one unit. So where draws reach an end of the metric's range (more than 0.1% of
them), or all agree, the interval is widened to include a bound that takes each unit as one trial:

- a proportion (accuracy, precision, recall, specificity, FPR, NPV): Clopper-Pearson with value * n successes,
  n being the *units* that carry its denominator. Of all ways in which units can have that mean, all-or-none
  has the largest variance, so this is conservative;
- balanced accuracy, F1 and MCC: the value that follows from such bounds of their parts, each at level
  1 - alpha / parts (Bonferroni), as all three rise with every part;
- AUROC: Clopper-Pearson on the largest number of disjoint pairs of a unit with fractures and another with
  normal slices, each pair an independent trial of "the fracture scores higher";
- AUPRC, Brier and log loss: no such bound. Where all draws agree they have no interval, and say why; where
  some reach the end, `method` says that the interval may cover less than its level.

`tests/evaluation/test_intervals.py` holds by simulation that 20 units cover at least 91% (AUROC), 92% (Brier)
and 93% (accuracy) at a nominal 95%; near the end of the range they cover more than they claim.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from cspine.errors import InputError
from cspine.evaluation.estimate import Estimate
from cspine.evaluation.metrics import (
    METRICS,
    Cases,
    Floats,
    MetricValue,
    Totals,
    compute_totals,
    explain_metrics,
)

UNITS: Mapping[str, str] = {
    "patient_id": "patient",
    "study_uid": "study",
    "series_uid": "series",
    "source_id": "source slice",
    "slice_id": "slice",
}
"""Columns whose values may be drawn again, and what one value is called."""

REACHED_LIMIT = 0.001
"""Above this share of draws at an end of the range the percentiles rest on too few units that err."""

UNDEFINED_LIMIT = 0.05
"""Above this share of draws without a value there is no interval: those draws are not like the others."""

_SAME = 1e-12
_CHUNK_VALUES = 2**18  # a few arrays of 2 MB: small enough for a core's cache, large enough to hide Python
_THREADS_FROM = 2**24  # values drawn in all; below, threads cost more than they save


def choose_unit(table: pl.DataFrame, by: str = "auto") -> tuple[str, str]:
    """The column whose values are drawn again, and its name in reports.

    Args:
        table: Predictions.
        by: "auto" takes `patient_id` when no row lacks it, else `source_id` likewise, else `slice_id`. Or one
            of `UNITS`.

    Raises:
        InputError: `by` is none of these, or some rows have no value there.
    """
    if by == "auto":
        known = (name for name in ("patient_id", "source_id") if table[name].null_count() == 0)
        column = next(known, "slice_id")
        return column, UNITS[column]
    if by not in UNITS:
        raise InputError(f"no such unit: {by}", fix=f"choose one of auto, {', '.join(UNITS)}")
    if nulls := table[by].null_count():
        raise InputError(
            f"{nulls} of {table.height} slices have no {by}: they cannot be drawn by {UNITS[by]}",
            fix="choose auto, or fill the column in the manifest",
        )
    return by, UNITS[by]


def bootstrap(
    cases: Cases,
    *,
    unit: str,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    names: Sequence[str] = tuple(METRICS),
) -> dict[str, Estimate]:
    """Every named metric with its interval over units; see the head of this module.

    Args:
        cases: From `arrange_cases`, with its units.
        unit: Name of one unit, such as "patient".
        draws: How many times the units are drawn again; the first draws of a longer run are those of a
            shorter one.
        seed: Not negative. The same seed gives the same intervals on any number of threads.
        level: Nominal coverage.
        names: Keys of `METRICS`.

    Returns:
        An estimate a name. Its interval is None, with the reason, where the metric is undefined, where there
        is one unit only, where more than 5% of the draws have no value, or where all draws agree and no bound
        is known.

    Raises:
        InputError: too few draws for the level, a negative seed, or a level outside 0..1.
    """
    check_options(draws, seed, level)
    ranking = any(METRICS[name].ranking for name in names)
    totals = compute_totals(cases, np.ones((1, cases.units)), ranking=ranking)
    points = explain_metrics(totals, names)
    drawn: dict[str, Floats] = {}
    if cases.units > 1:
        drawn = _draw(cases, draws=draws, seed=seed, names=names, ranking=ranking)
    context = _Context(cases, totals, unit, draws, level)
    return {name: context.estimate(name, points[name], drawn.get(name)) for name in names}


def check_options(draws: int, seed: int, level: float) -> None:
    """Raise `InputError` for too few draws for the level, a negative seed, or a level outside 0..1."""
    if not 0 < level < 1:
        raise InputError(f"the level of an interval lies between 0 and 1, not at {level}", fix="give 0.95")
    least = int(np.ceil(2 / (1 - level) - 1e-9))
    if draws < least:
        raise InputError(
            f"{draws} draws cannot show the ends of a {100 * level:g}% interval",
            fix=f"give at least {least}, better 2000",
        )
    if seed < 0:
        raise InputError(f"a seed is not negative, as {seed} is", fix="give 0 or more")


def _draw(cases: Cases, *, draws: int, seed: int, names: Sequence[str], ranking: bool) -> dict[str, Floats]:
    """(draws,) values of each metric, NaN where undefined; in chunks that fit the cache, on all cores."""
    size = max(cases.slices, cases.units)
    step = max(1, _CHUNK_VALUES // size)
    chunks = [range(start, min(start + step, draws)) for start in range(0, draws, step)]

    def run(chunk: range) -> list[Floats]:
        totals = compute_totals(cases, _draw_weights(cases.units, seed, chunk), ranking=ranking)
        return [METRICS[name].compute(totals) for name in names]

    if size * draws < _THREADS_FROM:
        parts = [run(chunk) for chunk in chunks]
    else:
        with ThreadPoolExecutor(_count_cores()) as pool:
            parts = list(pool.map(run, chunks))
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def _draw_weights(units: int, seed: int, chunk: range) -> Floats:
    """(len(chunk), units): how often each unit is drawn. Each draw has a stream of its own."""
    weights = np.empty((len(chunk), units))
    for row, draw in enumerate(chunk):
        rng = np.random.default_rng((seed, draw))
        weights[row] = np.bincount(rng.integers(0, units, units, dtype=np.int32), minlength=units)
    return weights


def _count_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def expand_tail(units: int, level: float) -> float:
    """The tail to cut off the draws at each end, in place of (1 - level) / 2 (Hesterberg 2015).

    The spread of the draws is too small by sqrt((n - 1) / n), and a normal quantile stands where Student's t
    with n - 1 degrees of freedom should; both are made good by going further out.
    """
    t = stats.t.ppf((1 + level) / 2, units - 1)
    return float(stats.norm.cdf(-np.sqrt(units / (units - 1)) * t))


class _Context:
    """What every metric of one bootstrap shares."""

    def __init__(self, cases: Cases, totals: Totals, unit: str, draws: int, level: float) -> None:
        self.unit, self.level, self.units = unit, level, cases.units
        self.method = f"percentile cluster bootstrap, {draws} draws"
        self.bounds = UnitBounds(cases, totals, unit, level)

    def estimate(self, name: str, point: MetricValue, drawn: Floats | None) -> Estimate:
        """The estimate of one metric; `drawn` is None where there is a single unit."""
        if point.value is None:
            return self._make(None, reason=point.reason)
        if drawn is None:
            return self._make(point.value, reason=f"one {self.unit} only: an interval needs at least two")
        defined = drawn[~np.isnan(drawn)]
        missing = drawn.size - defined.size
        note = f"undefined in {missing} of {drawn.size} draws"
        if missing > UNDEFINED_LIMIT * drawn.size:
            return self._make(point.value, reason=f"{note} ({METRICS[name].undefined})")
        tail = expand_tail(self.units, self.level)
        low, high = (float(end) for end in np.quantile(defined, (tail, 1 - tail)))
        method = f"{self.method} ({note})" if missing else self.method
        agree = bool(np.ptp(defined) <= _SAME)
        reached = _share_at_ends(name, defined)
        if not agree and reached <= REACHED_LIMIT:
            return self._make(point.value, low, high, method=method)
        bound = self.bounds.find(name)
        if bound is not None:
            method = (
                f"{bound.method}, as every draw agreed" if agree else f"{method}, widened to {bound.method}"
            )
            return self._make(point.value, min(low, bound.low), max(high, bound.high), method=method)
        if agree:
            reason = f"every draw gave {point.value:.4g}: a bootstrap cannot bound it"
            return self._make(point.value, reason=reason)
        method += f"; {reached:.1%} of the draws reached the end of the range: may cover less than its level"
        return self._make(point.value, low, high, method=method)

    def _make(
        self,
        value: float | None,
        low: float | None = None,
        high: float | None = None,
        *,
        method: str | None = None,
        reason: str | None = None,
    ) -> Estimate:
        return Estimate(
            value=value,
            low=low,
            high=high,
            method=method or self.method,
            unit=self.unit,
            n=self.units,
            level=self.level,
            reason=reason,
        )


def _share_at_ends(name: str, defined: Floats) -> float:
    """Share of draws at the lowest or highest possible value of a metric."""
    metric = METRICS[name]
    at_end = defined <= metric.low + _SAME
    if metric.high is not None:
        at_end |= defined >= metric.high - _SAME
    return float(at_end.mean())


class Bound(NamedTuple):
    """Ends of an interval and how they were found."""

    low: float
    high: float
    method: str


def _combine_balanced_accuracy(recall: float, specificity: float) -> float:
    return (recall + specificity) / 2


def _combine_f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _combine_mcc(precision: float, recall: float, specificity: float, npv: float) -> float:
    # Chicco and Jurman 2020, BMC Genomics 21:6: MCC in terms of the four rates and their complements.
    parts = np.array([precision, recall, specificity, npv])
    return float(np.sqrt(np.prod(parts)) - np.sqrt(np.prod(1 - parts)))


_COMBINED: Mapping[str, tuple[tuple[str, ...], Callable[..., float]]] = {
    "balanced_accuracy": (("recall", "specificity"), _combine_balanced_accuracy),
    "f1": (("precision", "recall"), _combine_f1),
    "mcc": (("precision", "recall", "specificity", "npv"), _combine_mcc),
}


class UnitBounds:
    """Bounds that take each unit as one trial; see the head of this module."""

    def __init__(self, cases: Cases, totals: Totals, unit: str, level: float) -> None:
        self.cases, self.totals, self.unit, self.alpha = cases, totals, unit, 1 - level

    def find(self, name: str) -> Bound | None:
        """The bound of a metric that has a value; None for a metric that no bound is known for."""
        if METRICS[name].proportion:
            n = self._count_carriers(name)
            counted = f"{n} {self.unit if n == 1 else _plural(self.unit)}"
            return Bound(*self._bound_part(name, self.alpha), f"Clopper-Pearson on {counted}")
        if name in _COMBINED:
            return self._find_combined(name)
        return self._find_auroc() if name == "auroc" else None

    def _find_combined(self, name: str) -> Bound:
        parts, combine = _COMBINED[name]
        bounds = [self._bound_part(part, self.alpha / len(parts)) for part in parts]
        low, high = combine(*(low for low, _ in bounds)), combine(*(high for _, high in bounds))
        return Bound(low, high, f"Clopper-Pearson bounds of {', '.join(parts)} on {_plural(self.unit)}")

    def _find_auroc(self) -> Bound:
        value = float(METRICS["auroc"].compute(self.totals)[0])
        pairs = count_disjoint_pairs(self.cases)
        low, high = bound_proportion(value, pairs, self.alpha)
        return Bound(low, high, f"Clopper-Pearson on {pairs} disjoint pairs of {_plural(self.unit)}")

    def _bound_part(self, name: str, alpha: float) -> tuple[float, float]:
        """A proportion's bound. Undefined, it may be anything, so it cannot narrow what it is a part of."""
        value = float(METRICS[name].compute(self.totals)[0])
        return (0.0, 1.0) if np.isnan(value) else bound_proportion(value, self._count_carriers(name), alpha)

    def _count_carriers(self, name: str) -> int:
        """Units with at least one slice in the denominator."""
        return int(np.count_nonzero(METRICS[name].ratio(self.cases.per_unit)[1]))


def bound_proportion(value: float, n: int, alpha: float) -> tuple[float, float]:
    """Clopper-Pearson (Biometrika 1934) at value * n of n; the count need not be whole."""
    count = value * n
    low = 0.0 if value == 0 else float(stats.beta.ppf(alpha / 2, count, n - count + 1))
    high = 1.0 if value == 1 else float(stats.beta.ppf(1 - alpha / 2, count + 1, n - count))
    return low, high


def count_disjoint_pairs(cases: Cases) -> int:
    """The most pairs of a unit with a fracture and another with a normal slice, no unit in two pairs."""
    per_unit = cases.per_unit
    fracture, normal = per_unit.positives > 0, per_unit.negatives > 0
    return min(int(fracture.sum()), int(normal.sum()), cases.units // 2)


def _plural(unit: str) -> str:
    return {"study": "studies", "series": "series"}.get(unit, f"{unit}s")
