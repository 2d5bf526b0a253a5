"""How much the data know: files, slices, series, patients, and intervals with and without minding them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from cspine.core.estimates import Estimate, FrozenModel
from cspine.metrics.evaluation import arrange_table, name_splits, sort_labelled
from cspine.metrics.intervals import (
    DEFAULT_OPTIONS,
    IntervalOptions,
    compute_jackknife_error,
    estimate_intervals,
    estimate_wilson,
    leave_out_units,
)
from cspine.metrics.paired import estimate_auroc
from cspine.metrics.scores import METRICS, Cases, compute_totals

HEADLINE = ("accuracy", "recall", "specificity", "precision", "f1", "auroc", "auprc")


class TwoIntervals(FrozenModel):
    """One metric with two intervals.

    Attributes:
        metric: Key of `METRICS`.
        naive: As if each file were its own patient: Wilson for proportions, DeLong on the logit scale for AUROC,
            else as `clustered` with the slice as unit.
        clustered: Over the unit.
        design_effect: Variance over the unit divided by that over slices, both by jackknife: how many files know
            as much as one independent slice. None where a variance is zero or unknown.
        effective_n: Files divided by it. None where that is.
    """

    metric: str
    naive: Estimate
    clustered: Estimate
    design_effect: float | None
    effective_n: float | None


class EffectiveSize(FrozenModel):
    """Counts of one split; None where some files lack the id. `distinct_slices` counts copies of a slice once."""

    model: str
    split: str
    files: int
    distinct_slices: int | None
    series: int | None
    patients: int | None
    unit: str
    units: int
    metrics: tuple[TwoIntervals, ...]


def compute_effective_size(
    table: pl.DataFrame,
    names: Sequence[str] = HEADLINE,
    threshold: float = 0.5,
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> EffectiveSize:
    """Naive and clustered intervals side by side, with what lies between them.

    Args:
        table: Predictions, all labelled.
        names: Keys of `METRICS`.
        threshold, options: See `evaluate_table`.

    Raises:
        PredictionsError, InputError: see `evaluate_table`.
    """
    table = sort_labelled(table)
    cases, slices = (arrange_table(table, threshold, unit) for unit in (options.unit, "slice_id"))
    clustered = estimate_intervals(cases, options, names)
    rest = [name for name in names if not METRICS[name].proportion and name != "auroc"]
    naive = estimate_intervals(slices, options, rest)
    naive |= {name: _estimate_naive(name, table, slices, options.level) for name in names if name not in rest}
    effects = _compare_variances(cases, slices, names)
    return EffectiveSize(
        model=str(table["model"][0]),
        split=name_splits(table),
        files=table.height,
        distinct_slices=_count(table, "source_id"),
        series=_count(table, "series_uid"),
        patients=_count(table, "patient_id"),
        unit=cases.unit,
        units=cases.units,
        metrics=tuple(
            TwoIntervals(
                metric=name,
                naive=naive[name],
                clustered=clustered[name],
                design_effect=effects[name],
                effective_n=None if (effect := effects[name]) is None else table.height / effect,
            )
            for name in names
        ),
    )


def _count(table: pl.DataFrame, column: str) -> int | None:
    return None if table[column].null_count() else table[column].n_unique()


def _estimate_naive(name: str, table: pl.DataFrame, slices: Cases, level: float) -> Estimate:
    if name == "auroc":
        return estimate_auroc(table, IntervalOptions(level=level, unit="slice_id"))
    hits, trials = METRICS[name].ratio(compute_totals(slices, np.ones((1, slices.units)), ranking=False))
    found = estimate_wilson(round(float(hits[0])), round(float(trials[0])), level=level)
    if found.value is None:
        return found.model_copy(update={"reason": METRICS[name].undefined})
    return found


def _compare_variances(cases: Cases, slices: Cases, names: Sequence[str]) -> dict[str, float | None]:
    chosen = {name: METRICS[name] for name in names}
    found: dict[str, float | None] = dict.fromkeys(names)
    if cases.units < 2:
        return found
    over_units, over_slices = leave_out_units(cases, chosen), leave_out_units(slices, chosen)
    for name in names:
        variances = [compute_jackknife_error(left_out[name]) ** 2 for left_out in (over_units, over_slices)]
        if np.isfinite(variances).all() and min(variances) > 0:
            found[name] = variances[0] / variances[1]
    return found
