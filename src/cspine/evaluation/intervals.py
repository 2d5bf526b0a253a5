"""Intervals over whole independent units, and what to do where the data cannot tell.

Slices of one patient resemble each other, so what varies is the patient (else the study, the series, the source
slice, the slice: see `choose_unit`), with all its slices. Three ways, each named in `Estimate.method`:

- "logit" (the default): the standard error is that of the cluster jackknife (each unit left out in turn), the
  interval is that of Student's t with units - 1 degrees of freedom on the scale on which the metric has no ends (the
  logit; for log loss the logarithm). By simulation (`benchmarks/coverage.py`, quoted in docs/log.md) it keeps its
  level best at 20 units, above all near the end of the range, where percentiles fall far short;
- "bca": bias-corrected and accelerated percentiles of the cluster bootstrap, acceleration by the cluster jackknife;
- "percentile": percentiles of the cluster bootstrap (Davison and Hinkley 1997, section 3.8).

The tails of both bootstraps are taken a little further out by Hesterberg's expansion for few units ("What Teachers
Should Know About the Bootstrap", The American Statistician 2015, section 4.1). A proportion counts as its units those
that carry its denominator: recall varies between the units that have fractures.

None of them sees what did not happen: at 400 right of 400 all draws agree, at 399 they rest on one unit. So the draws
are taken whatever the way, and where they reach an end of the metric's range (more than 0.1% of them), or all agree,
the interval is widened to include the bound of `cspine.evaluation.bounds`, which takes each unit as one trial. There
it covers more than it claims. AUPRC, Brier and log loss have no such bound: where all draws agree they have no
interval, and say why; where some reach the end, `method` says that the interval may cover less than its level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from scipy import stats

from cspine.data.types import GROUP_NAMES, plural
from cspine.errors import InputError
from cspine.evaluation.bounds import UnitBounds
from cspine.evaluation.ends import (
    Ends,
    compute_jackknife_error,
    expand_tail,
    find_bca_ends,
    find_link_ends,
    find_percentile_ends,
)
from cspine.evaluation.estimate import Estimate
from cspine.evaluation.metrics import (
    METRICS,
    Cases,
    Floats,
    Metric,
    MetricValue,
    compute_totals,
    explain_metrics,
)
from cspine.evaluation.resampling import draw_metrics, leave_out_units

IntervalKind = Literal["logit", "bca", "percentile"]
DEFAULT_KIND: IntervalKind = "logit"

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


def choose_unit(table: pl.DataFrame, by: str = "auto") -> tuple[str, str]:
    """The column whose values are drawn again, and its name in reports.

    Args:
        table: Predictions.
        by: "auto" is `find_unit_column`. Or one of `UNITS`.

    Raises:
        InputError: `by` is none of these, or some rows have no value there.
    """
    if by == "auto":
        column = find_unit_column(table)
        return column, UNITS[column]
    if by not in UNITS:
        raise InputError(f"no such unit: {by}", fix=f"choose one of auto, {', '.join(UNITS)}")
    if nulls := table[by].null_count():
        raise InputError(
            f"{nulls} of {table.height} slices have no {by}: they cannot be drawn by {UNITS[by]}",
            fix="choose auto, or fill the column in the manifest",
        )
    return by, UNITS[by]


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


def explain_unit(table: pl.DataFrame, by: str = "auto", copies: str = "source_id") -> str | None:
    """What intervals over the unit cannot know, in a sentence; None where they are over patients.

    Args:
        table, copies: See `find_unit_column`.
        by: See `choose_unit`.

    Raises:
        InputError: see `choose_unit`.
    """
    column = find_unit_column(table, copies) if by == "auto" else choose_unit(table, by)[0]
    if column == "patient_id" or table.is_empty():
        return None
    units, word = table[column].n_unique(), UNITS.get(column, "distinct slice")
    unknown, series = table["patient_id"].null_count(), table["series_uid"].n_unique()
    few_series = column not in ("study_uid", "series_uid") and not table["series_uid"].null_count()
    few_series = few_series and series < FEWEST_SERIES
    reason = f"{'some ' if unknown < table.height else ''}patients are unknown"
    if few_series:
        reason += f" and there {'is' if series == 1 else 'are'} only {series} series"
    if by != "auto":
        reason = "was asked for"
    doubt = "too narrow where several of these are of one patient"
    if few_series:
        doubt = "they hold for other slices of the same series, and are too narrow for other patients"
    return f"Intervals are over {units:,} {word if units == 1 else plural(word)}, as {reason}: {doubt}."


def bootstrap(
    cases: Cases,
    *,
    unit: str,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    names: Sequence[str] | None = None,
    metrics: Mapping[str, Metric] = METRICS,
    kind: IntervalKind = DEFAULT_KIND,
) -> dict[str, Estimate]:
    """Every named metric with its interval over units; see the head of this module.

    Args:
        cases: From `arrange_cases`, with its units.
        unit: Name of one unit, such as "patient".
        draws: How many times the units are drawn again; the first draws of a longer run are those of a
            shorter one.
        seed: Not negative. The same seed gives the same intervals on any number of threads.
        level: Nominal coverage.
        names: Keys of `metrics`; all of them where None.
        metrics: The registry; another one may hold metrics made for the occasion.
        kind: How the ends are found.

    Returns:
        An estimate a name. Its interval is None, with the reason, where the metric is undefined, where there
        is one unit only, where more than 5% of the draws have no value, or where all draws agree and no bound
        is known.

    Raises:
        InputError: too few draws for the level, a negative seed, a level outside 0..1, or an unknown kind.
    """
    check_options(draws, seed, level)
    if kind not in _METHODS:
        raise InputError(f"no such kind of interval: {kind}", fix=f"choose one of {', '.join(_METHODS)}")
    chosen = {name: metrics[name] for name in (metrics if names is None else names)}
    context = _Context(cases, chosen, unit, draws=draws, level=level, kind=kind)
    drawn: dict[str, Floats] = {}
    left_out: dict[str, Floats] = {}
    if cases.units > 1:
        drawn = draw_metrics(cases, chosen, draws=draws, seed=seed)
        if kind != "percentile":
            left_out = leave_out_units(cases, chosen)
    return {name: context.estimate(name, drawn.get(name), left_out.get(name)) for name in chosen}


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


_METHODS: Mapping[str, str] = {
    "logit": "cluster jackknife on the logit scale, Student's t",
    "bca": "BCa cluster bootstrap, {draws} draws",
    "percentile": "percentile cluster bootstrap, {draws} draws",
}


class _Context:
    """What every metric of one set of intervals shares."""

    def __init__(
        self,
        cases: Cases,
        metrics: Mapping[str, Metric],
        unit: str,
        *,
        draws: int,
        level: float,
        kind: IntervalKind,
    ) -> None:
        ranking = any(metric.ranking for metric in metrics.values())
        totals = compute_totals(cases, np.ones((1, cases.units)), ranking=ranking)
        self.points: dict[str, MetricValue] = explain_metrics(totals, metrics)
        self.bounds = UnitBounds(cases, totals, unit, level)
        self.metrics, self.unit, self.units, self.level, self.kind = metrics, unit, cases.units, level, kind
        self.method = _METHODS[kind].format(draws=draws)

    def estimate(self, name: str, drawn: Floats | None, left_out: Floats | None) -> Estimate:
        """The estimate of one metric; `drawn` is None where there is a single unit."""
        metric, point = self.metrics[name], self.points[name]
        if point.value is None:
            return self._make(None, reason=point.reason)
        if drawn is None:
            return self._make(point.value, reason=f"one {self.unit} only: an interval needs at least two")
        defined = drawn[~np.isnan(drawn)]
        missing = drawn.size - defined.size
        note = f"undefined in {missing} of {drawn.size} draws"
        if missing > UNDEFINED_LIMIT * drawn.size:
            return self._make(point.value, reason=f"{note} ({metric.undefined})")
        method = (
            self.method.replace("logit scale", "logarithmic scale") if metric.high is None else self.method
        )
        if self.units < FEW_UNITS and not (metric.higher_is_better or metric.proportion):
            method += f"; {self.units} units of a skew loss: may cover less than its level"
        if missing and self.kind != "logit":
            method = f"{method} ({note})"
        agree = bool(np.ptp(defined) <= _SAME)
        reached = _share_at_ends(metric, defined)
        ends = None if agree else self._find_ends(metric, point.value, defined, left_out)
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

    def _find_ends(self, metric: Metric, value: float, drawn: Floats, left_out: Floats | None) -> Ends | None:
        """Ends of the chosen kind; None at an end of the range, or where no unit moves the value."""
        carriers = self.bounds.count_carriers(metric) if metric.proportion else self.units
        if carriers < 2:
            return None
        tail = expand_tail(carriers, self.level)
        if left_out is None:
            return find_percentile_ends(drawn, tail)
        left_out = left_out[~np.isnan(left_out)]
        if self.kind == "bca":
            return find_bca_ends(value, drawn, left_out, tail)
        if value <= metric.low + _SAME or (metric.high is not None and value >= metric.high - _SAME):
            return None
        t = float(stats.t.ppf((1 + self.level) / 2, carriers - 1))
        error = compute_jackknife_error(left_out, carriers)
        if error <= _SAME:
            return None
        return find_link_ends(value, error, t, metric.low, metric.high)

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


def _share_at_ends(metric: Metric, defined: Floats) -> float:
    """Share of draws at the lowest or highest possible value of a metric."""
    at_end = defined <= metric.low + _SAME
    if metric.high is not None:
        at_end |= defined >= metric.high - _SAME
    return float(at_end.mean())
