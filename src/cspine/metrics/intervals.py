"""Bounds that take each independent unit as one trial, for where a bootstrap or a normal approximation cannot know.

At 400 right of 400 all draws of a bootstrap agree and a variance is zero. What is known then:

- a proportion (accuracy, precision, recall, specificity, FPR, NPV): Clopper-Pearson with value * n successes,
  n being the *units* that carry its denominator. Of all ways in which units can have that mean, all-or-none
  has the largest variance, so this is conservative;
- a metric that rises with each of some proportions (`Metric.parts`: balanced accuracy, F1, MCC, a predictive
  value at a given prevalence): the value that follows from such bounds of its parts, each at level
  1 - alpha / parts (Bonferroni);
- AUROC: Clopper-Pearson on the largest number of disjoint pairs of a unit with fractures and another with
  normal slices, each pair an independent trial of "the fracture scores higher".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from cspine.core.errors import InputError
from cspine.core.estimates import Estimate
from cspine.core.machine import count_cpus
from cspine.core.types import GROUP_NAMES, plural
from cspine.metrics.scores import (
    METRICS,
    Cases,
    Floats,
    Metric,
    MetricValue,
    Totals,
    compute_totals,
    explain_metrics,
)


@dataclass(frozen=True, slots=True)
class IntervalOptions:
    """How intervals are made.

    Attributes:
        draws: Times that the units are drawn again with replacement. The first draws of a longer run are those of a
            shorter one.
        seed: Not negative. The same seed gives the same bits on any number of threads.
        level: Nominal coverage, between 0 and 1.
        unit: What is independent: "auto", or a column of predictions; see `choose_unit`.

    Raises:
        InputError: a value outside its range, or too few draws for the level.
    """

    draws: int = 2000
    seed: int = 0
    level: float = 0.95
    unit: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InputError(
                f"the level of an interval lies between 0 and 1, not at {self.level}", fix="give 0.95"
            )
        least = int(np.ceil(2 / (1 - self.level) - 1e-9))
        if self.draws < least:
            raise InputError(
                f"{self.draws} draws cannot show the ends of a {100 * self.level:g}% interval",
                fix=f"give at least {least}, better 2000",
            )
        if self.seed < 0:
            raise InputError(f"a seed is not negative, as {self.seed} is", fix="give 0 or more")


DEFAULT_OPTIONS = IntervalOptions()


class Bound(NamedTuple):
    """Ends of an interval and how they were found."""

    low: float
    high: float
    method: str


class UnitBounds:
    """Bounds that take each unit as one trial; see the head of this module."""

    def __init__(self, cases: Cases, totals: Totals, level: float) -> None:
        self.cases, self.totals, self.unit, self.alpha = cases, totals, cases.unit, 1 - level

    def find(self, name: str, metric: Metric) -> Bound | None:
        """The bound of a metric that has a value; None for a metric that no bound is known for."""
        if metric.proportion:
            n = self.count_carriers(metric)
            counted = f"{n} {self.unit if n == 1 else plural(self.unit)}"
            return Bound(*self._bound_part(metric, self.alpha), f"Clopper-Pearson on {counted}")
        if metric.combine is not None:
            parts = metric.parts
            bounds = [self._bound_part(METRICS[part], self.alpha / len(parts)) for part in parts]
            low, high = metric.combine(*(b[0] for b in bounds)), metric.combine(*(b[1] for b in bounds))
            return Bound(low, high, f"Clopper-Pearson bounds of {', '.join(parts)} on {plural(self.unit)}")
        return self.find_auroc() if name == "auroc" else None

    def find_auroc(self) -> Bound:
        """The bound of AUROC, of cases with both classes."""
        value = float(METRICS["auroc"].compute(self.totals)[0])
        pairs = count_disjoint_pairs(self.cases)
        low, high = bound_proportion(value, pairs, self.alpha)
        return Bound(low, high, f"Clopper-Pearson on {pairs} disjoint pairs of {plural(self.unit)}")

    def _bound_part(self, metric: Metric, alpha: float) -> tuple[float, float]:
        """A proportion's bound. Undefined, it may be anything, so it cannot narrow what it is a part of."""
        value = float(metric.compute(self.totals)[0])
        return (0.0, 1.0) if np.isnan(value) else bound_proportion(value, self.count_carriers(metric), alpha)

    def count_carriers(self, metric: Metric) -> int:
        """Units with at least one slice in the denominator."""
        return int(np.count_nonzero(metric.ratio(self.cases.per_unit)[1]))


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


# Metrics under other weights of the units: bootstrap draws, and each unit left out in turn.


JACKKNIFE_GROUPS = 1000
"""More units than this are left out by groups: the acceleration is the same in expectation, the cost bounded."""

_CHUNK_VALUES = 2**18  # a few arrays of 2 MB: small enough for a core's cache, large enough to hide Python
_THREADS_FROM = 2**24  # values drawn in all; below, threads cost more than they save


def draw_metrics(cases: Cases, metrics: Mapping[str, Metric], *, draws: int, seed: int) -> dict[str, Floats]:
    """Draw the units again with replacement, with all their slices, and take the metrics each time.

    Two models on the same cases, with the same units and seed, get the same draws: the difference of their values
    is that of a paired bootstrap.

    Args:
        cases: At least one unit.
        metrics: What to take.
        draws: How often. The first draws of a longer run are those of a shorter one.
        seed: Not negative. The same seed gives the same bits in any chunks and on any number of threads.

    Returns:
        (draws,) values of each metric, NaN where undefined.
    """
    return _compute_rows(cases, metrics, draws, lambda rows: draw_weights(cases.units, seed, rows))


def leave_out_units(cases: Cases, metrics: Mapping[str, Metric]) -> dict[str, Floats]:
    """The metrics without each unit in turn: the cluster jackknife.

    Returns:
        (groups,) values of each metric, NaN where undefined; a group is a unit, or several of more than
        `JACKKNIFE_GROUPS`.
    """
    groups = min(cases.units, JACKKNIFE_GROUPS)
    group = np.arange(cases.units) % groups
    return _compute_rows(
        cases, metrics, groups, lambda rows: (group != np.asarray(rows)[:, np.newaxis]).astype(np.float64)
    )


def _compute_rows(
    cases: Cases, metrics: Mapping[str, Metric], count: int, weigh: Callable[[range], Floats]
) -> dict[str, Floats]:
    """Metrics under `count` rows of unit weights; in chunks that fit the cache, on all cores."""
    size = max(cases.slices, cases.units)
    step = max(1, _CHUNK_VALUES // size)
    chunks = [range(start, min(start + step, count)) for start in range(0, count, step)]
    ranking = any(metric.ranking for metric in metrics.values())

    def run(chunk: range) -> list[Floats]:
        totals = compute_totals(cases, weigh(chunk), ranking=ranking)
        return [metric.compute(totals) for metric in metrics.values()]

    if size * count < _THREADS_FROM:
        parts = [run(chunk) for chunk in chunks]
    else:
        with ThreadPoolExecutor(count_cpus()) as pool:
            parts = list(pool.map(run, chunks))
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(metrics)}


def draw_weights(units: int, seed: int, chunk: range) -> Floats:
    """(len(chunk), units): how often each unit is drawn. Each draw has a stream of its own."""
    weights = np.empty((len(chunk), units))
    for row, draw in enumerate(chunk):
        rng = np.random.default_rng((seed, draw))
        weights[row] = np.bincount(rng.integers(0, units, units, dtype=np.int32), minlength=units)
    return weights


# Ends of an interval from draws of a bootstrap or from the values without each unit in turn. Plain arrays in.


Ends = tuple[float, float]

_LARGEST_EXPONENT = 500.0  # the exponential of more than 709 overflows; the end of the range is meant


def expand_tail(units: int, level: float) -> float:
    """The tail to cut off the draws at each end, in place of (1 - level) / 2 (Hesterberg 2015, section 4.1).

    The spread of the draws is too small by sqrt((n - 1) / n), and a normal quantile stands where Student's t
    with n - 1 degrees of freedom should; both are made good by going further out.
    """
    t = stats.t.ppf((1 + level) / 2, units - 1)
    return float(stats.norm.cdf(-np.sqrt(units / (units - 1)) * t))


def find_percentile_ends(drawn: Floats, tail: float) -> Ends:
    """Percentiles of (draws,) values that cut off `tail` at each end."""
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return float(low), float(high)


def compute_jackknife_error(left_out: Floats, carriers: int | None = None) -> float:
    """Standard error from (units,) values without each unit (Efron and Tibshirani 1993, eq. 11.5).

    Args:
        left_out: The values.
        carriers: How many of the units matter for the value at all; all of them where None.
    """
    n = carriers or left_out.size
    return float(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2)))


def find_link_ends(value: float, error: float, quantile: float, low: float, high: float | None) -> Ends:
    """Go quantile * error to both sides of a value, on the scale on which its metric has no ends.

    That scale is the logit of the place between `low` and `high`; the logarithm of the distance from `low` where
    `high` is None. The error goes there by the derivative (delta method), so the ends stay inside the range and
    reach further towards its middle.

    Args:
        value: Strictly inside the range.
        error: Standard error on the metric's own scale.
        quantile: Of the normal or Student's t distribution, such as 1.96.
    """
    if high is None:
        factor = float(np.exp(min(quantile * error / (value - low), _LARGEST_EXPONENT)))
        return low + (value - low) / factor, low + (value - low) * factor
    odds = (value - low) / (high - value)
    step = quantile * error * (high - low) / ((value - low) * (high - value))
    factor = float(np.exp(min(step, _LARGEST_EXPONENT)))
    return (
        low + (high - low) * (odds / factor) / (1 + odds / factor),
        low + (high - low) * odds / (odds + 1 / factor),
    )


# Wilson's interval for a proportion, of independent trials and of trials in clusters.


def bound_wilson(value: float, n: float, level: float = 0.95) -> Ends:
    """Wilson's score interval (Wilson 1927, JASA 22:209; method 3 of Newcombe 1998, Stat Med 17:857).

    Args:
        value: Share of successes, 0..1.
        n: Trials, more than 0; an effective number need not be whole.
        level: Nominal coverage.
    """
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    centre = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = float(np.sqrt(z2 * (value * (1 - value) / n + z2 / (4 * n**2)))) / (1 + z2 / n)
    # At none and at all of n the end is 0 or 1; rounding would leave it beside.
    return (0.0 if value == 0 else centre - half), (1.0 if value == 1 else centre + half)


def estimate_wilson(hits: int, n: int, *, unit: str = "slice", level: float = 0.95) -> Estimate:
    """A proportion of `n` independent trials with Wilson's interval; undefined at n = 0.

    Raises:
        InputError: not 0 <= hits <= n.
    """
    if not 0 <= hits <= n:
        raise InputError(f"{hits} of {n} is no proportion", fix="give 0 <= hits <= n")
    if n == 0:
        return Estimate(
            value=None, low=None, high=None, method="Wilson", unit=unit, n=0, level=level, reason="no trials"
        )
    low, high = bound_wilson(hits / n, n, level)
    return Estimate(value=hits / n, low=low, high=high, method="Wilson", unit=unit, n=n, level=level)


def estimate_clustered_proportion(
    hits: npt.ArrayLike, trials: npt.ArrayLike, *, unit: str, level: float = 0.95
) -> Estimate:
    """A proportion of trials that come in units, with Wilson's interval at the effective number of trials.

    That number is trials / design effect, brought down further for the few units that the design effect is estimated
    from (Korn and Graubard 1998, Survey Methodology 24:193: times the squared ratio of the normal quantile to
    Student's with units - 1 degrees of freedom), and never more than the trials. Where all trials agree there is no
    design effect to estimate: each unit then counts as one trial. With one trial a unit this is Wilson's interval.

    Args:
        hits: (units,) successes of each unit.
        trials: (units,) trials of each unit; units without any count for nothing.
        unit: Name of one unit.
        level: Nominal coverage; by simulation (docs/log.md) it is held at 20 units.
    """
    h, t = np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    h, t = h[t > 0], t[t > 0]
    units, total = h.size, float(t.sum())
    if units == 0:
        return Estimate(
            value=None, low=None, high=None, method="Wilson", unit=unit, n=0, level=level, reason="no trials"
        )
    value = float(h.sum()) / total
    effective, method = total, "Wilson"
    if total > units:
        effective = count_effective_trials(h, t, level)
        method = f"Wilson at an effective n of {effective:.1f} (Korn and Graubard 1998)"
        if not 0 < value < 1:
            method = f"Wilson, each of {units} {unit if units == 1 else plural(unit)} one trial, as all agree"
    low, high = bound_wilson(value, effective, level)
    return Estimate(value=value, low=low, high=high, method=method, unit=unit, n=units, level=level)


def count_effective_trials(
    hits: npt.NDArray[np.float64], trials: npt.NDArray[np.float64], level: float = 0.95
) -> float:
    """How many independent trials know as much as these; see `estimate_clustered_proportion`.

    Args:
        hits, trials: (units,), every unit with trials.
    """
    units, total = hits.size, float(trials.sum())
    value = float(hits.sum()) / total
    variance = units / max(units - 1, 1) * float(np.sum((hits - value * trials) ** 2)) / total**2
    if units < 2 or not 0 < value < 1 or variance == 0:
        return float(units)
    quantile = (1 + level) / 2
    shrink = (stats.norm.ppf(quantile) / stats.t.ppf(quantile, units - 1)) ** 2
    return float(min(value * (1 - value) / variance * shrink, total))


# Intervals over whole independent units.
#
# Slices of one patient resemble each other, so what varies is the patient (else the study, the series, the source
# slice, the slice: see `choose_unit`), with all its slices. The standard error is that of the cluster jackknife (each
# unit left out in turn); the interval is that of Student's t with units - 1 degrees of freedom on the scale on which
# the metric is unbounded (the logit; for log loss the logarithm). By simulation (`benchmarks/coverage.py`, quoted in
# docs/log.md) it keeps its level better at 20 units than bootstrap percentiles, above all near the end of the range.
# A proportion counts as its units those that carry its denominator: recall varies between the units with fractures.
#
# A jackknife does not see what did not happen: at 400 right of 400 nothing varies, at 399 all rests on one unit. So the
# units are also drawn again with replacement, and where the draws reach an end of the metric's range (more than 0.1% of
# them), or all agree, the interval is widened to include the bound of `UnitBounds`. There it covers more than it
# claims. AUPRC, Brier and log loss have no such bound: where all draws agree they have no interval, and say why; where
# some reach the end, `method` says that the interval may cover less than its level.


UNITS = GROUP_NAMES
"""Columns whose values may be drawn again, and what one value is called."""

REACHED_LIMIT = 0.001
"""Above this share of draws at an end of the range the percentiles rest on too few units that err."""

UNDEFINED_LIMIT = 0.05
"""Above this share of draws without a value there is no interval: those draws are not like the others."""

FEW_UNITS = 30
"""Below this many units two intervals fall short: of a loss (Brier, log loss), whose values are skew; Obuchowski's."""

FEWEST_SERIES = 10
"""Fewer studies or series than this are not drawn: their interval would say next to nothing (decision 007)."""

_SAME = 1e-12


def choose_unit(table: pl.DataFrame, unit: str = "auto") -> tuple[str, str]:
    """The column of the independent unit, and its name in reports.

    Args:
        table: Predictions.
        unit: "auto" is `find_unit_column`. Or one of `UNITS`.

    Raises:
        InputError: `unit` is none of these, or some rows have no value there.
    """
    if unit == "auto":
        column = find_unit_column(table)
        return column, UNITS[column]
    if unit not in UNITS:
        raise InputError(f"no such unit: {unit}", fix=f"choose one of auto, {', '.join(UNITS)}")
    if nulls := table[unit].null_count():
        raise InputError(
            f"{nulls} of {table.height} slices have no {unit}: they cannot be drawn by {UNITS[unit]}",
            fix="choose auto, or fill the column in the manifest",
        )
    return unit, UNITS[unit]


def find_unit_column(table: pl.DataFrame, copies: str = "source_id") -> str:
    """The column of what is independent, as far as it is known: the largest that no row lacks.

    The patient; else the study, else the series, where there are ten and more of them; else `copies`; else `slice_id`.

    Args:
        table: Predictions, or a manifest's rows.
        copies: The column that copies of one slice share.
    """
    for column in ("patient_id", "study_uid", "series_uid", copies):
        few = column in ("study_uid", "series_uid") and table[column].n_unique() < FEWEST_SERIES
        if not few and table[column].null_count() == 0:
            return column
    return "slice_id"


def explain_unit(table: pl.DataFrame, unit: str = "auto", copies: str = "source_id") -> str | None:
    """What intervals over the unit cannot know, in a sentence; None where they are over patients.

    Args:
        table, copies: See `find_unit_column`.
        unit: See `choose_unit`.

    Raises:
        InputError: see `choose_unit`.
    """
    column = find_unit_column(table, copies) if unit == "auto" else choose_unit(table, unit)[0]
    if column == "patient_id" or table.is_empty():
        return None
    units, word = table[column].n_unique(), UNITS.get(column, "distinct slice")
    unknown, series = table["patient_id"].null_count(), table["series_uid"].n_unique()
    few_series = column not in ("study_uid", "series_uid") and not table["series_uid"].null_count()
    few_series = few_series and series < FEWEST_SERIES
    reason = f"{'some ' if unknown < table.height else ''}patients are unknown"
    if few_series:
        reason += f" and there {'is' if series == 1 else 'are'} only {series} series"
    if unit != "auto":
        reason = "was asked for"
    doubt = "too narrow where several of these are of one patient"
    if few_series:
        doubt = "they hold for other slices of the same series, and are too narrow for other patients"
    return f"Intervals are over {units:,} {word if units == 1 else plural(word)}, as {reason}: {doubt}."


def estimate_intervals(
    cases: Cases,
    options: IntervalOptions = DEFAULT_OPTIONS,
    names: Sequence[str] | None = None,
    metrics: Mapping[str, Metric] = METRICS,
) -> dict[str, Estimate]:
    """Each named metric with its interval over units; the comment above says how.

    Args:
        cases: From `arrange_cases`, with their units.
        options: How intervals are made; the unit is that of the cases.
        names: Keys of `metrics`; all of them where None.
        metrics: The registry, or metrics made for the occasion.

    Returns:
        An estimate for each name. Its interval is None, with the reason, where the metric is undefined, where there is
        one unit only, where more than 5% of the draws have no value, or where all draws agree and no bound is known.
    """
    chosen = {name: metrics[name] for name in (metrics if names is None else names)}
    estimator = _Estimator(cases, chosen, options.level)
    drawn: dict[str, Floats] = {}
    left_out: dict[str, Floats] = {}
    if cases.units > 1:
        drawn = draw_metrics(cases, chosen, draws=options.draws, seed=options.seed)
        left_out = leave_out_units(cases, chosen)
    return {name: estimator.estimate(name, drawn.get(name), left_out.get(name)) for name in chosen}


_METHOD = "cluster jackknife on the logit scale, Student's t"


class _Estimator:
    """The parts shared by all metrics of one set of cases."""

    def __init__(self, cases: Cases, metrics: Mapping[str, Metric], level: float) -> None:
        ranking = any(metric.ranking for metric in metrics.values())
        totals = compute_totals(cases, np.ones((1, cases.units)), ranking=ranking)
        self.points: dict[str, MetricValue] = explain_metrics(totals, metrics)
        self.bounds = UnitBounds(cases, totals, level)
        self.metrics, self.unit, self.units, self.level = metrics, cases.unit, cases.units, level

    def estimate(self, name: str, drawn: Floats | None, left_out: Floats | None) -> Estimate:
        """The estimate of one metric; the values are None where there is a single unit."""
        metric, point = self.metrics[name], self.points[name]
        if point.value is None:
            return self._make(None, reason=point.reason)
        if drawn is None or left_out is None:
            return self._make(point.value, reason=f"one {self.unit} only: an interval needs at least two")
        defined = drawn[~np.isnan(drawn)]
        missing = drawn.size - defined.size
        if missing > UNDEFINED_LIMIT * drawn.size:
            reason = f"undefined in {missing} of {drawn.size} draws ({metric.undefined})"
            return self._make(point.value, reason=reason)
        method = _METHOD.replace("logit scale", "logarithmic scale") if metric.high is None else _METHOD
        if self.units < FEW_UNITS and not (metric.higher_is_better or metric.proportion):
            method += f"; {self.units} units of a skew loss: may cover less than its level"
        agree = bool(np.ptp(defined) <= _SAME)
        reached = _share_at_ends(metric, defined)
        ends = None if agree else self._find_ends(metric, point.value, left_out)
        if ends is not None and reached <= REACHED_LIMIT:
            return self._make(point.value, *ends, method=method)
        bound = self.bounds.find(name, metric)
        if bound is not None:
            if ends is None:
                cause = (
                    "every draw agreed"
                    if agree
                    else "the value is at the end of its range, or no unit moves it"
                )
                return self._make(point.value, *bound[:2], method=f"{bound.method}, as {cause}")
            low, high = min(ends[0], bound.low), max(ends[1], bound.high)
            return self._make(point.value, low, high, method=f"{method}, widened to {bound.method}")
        if ends is None:
            reason = f"every draw gave {point.value:.4g}: a bootstrap cannot bound it"
            if not agree:
                reason = (
                    "the value is at the end of its range, or no unit moves it: a jackknife cannot bound it"
                )
            return self._make(point.value, reason=reason)
        method += f"; {reached:.1%} of the draws reached the end of the range: may cover less than its level"
        return self._make(point.value, *ends, method=method)

    def _find_ends(self, metric: Metric, value: float, left_out: Floats) -> Ends | None:
        """None at an end of the range, or where no unit moves the value."""
        carriers = self.bounds.count_carriers(metric) if metric.proportion else self.units
        at_end = value <= metric.low + _SAME or (metric.high is not None and value >= metric.high - _SAME)
        if carriers < 2 or at_end:
            return None
        error = compute_jackknife_error(left_out[~np.isnan(left_out)], carriers)
        if error <= _SAME:
            return None
        t = float(stats.t.ppf((1 + self.level) / 2, carriers - 1))
        return find_link_ends(value, error, t, metric.low, metric.high)

    def _make(
        self,
        value: float | None,
        low: float | None = None,
        high: float | None = None,
        *,
        method: str = _METHOD,
        reason: str | None = None,
    ) -> Estimate:
        return Estimate(
            value=value,
            low=low,
            high=high,
            method=method,
            unit=self.unit,
            n=self.units,
            level=self.level,
            reason=reason,
        )


def _share_at_ends(metric: Metric, defined: Floats) -> float:
    """Share of draws at the lowest or highest possible value of a metric."""
    at_end = defined <= metric.low + _SAME
    if metric.high is not None:
        at_end |= defined >= metric.high - _SAME
    return float(at_end.mean())
