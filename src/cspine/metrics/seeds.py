"""Several seeds of one model: how much of the spread is the seed, and how much the cases.

All seeds are evaluated on the same cases, so what the cases happen to be moves all of them together, and the spread
between seeds says nothing of it. Two parts of variance are kept apart for a metric of k seeds:

- between seeds: S^2, the variance of the k values. A part of it is that the cases favour one seed or another; that
  part is taken from the cluster jackknife of each seed's deviation from the mean, and what is left is `seed_sd`;
- sampling: V, the variance of the mean of these k seeds over other cases, from the cluster jackknife.

The combined interval is for the mean over all seeds and all cases: its variance is S^2 / k + V, its degrees of freedom
follow Welch and Satterthwaite (Satterthwaite 1946, Biometrics Bulletin 2:110) from k - 1 and units - 1. S^2 is not
freed of its part of sampling there, which V holds too: with few seeds that difference is mostly noise, and the interval
is the wider for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy import stats

from cspine.core.errors import PredictionsError
from cspine.core.estimates import Estimate, FrozenModel
from cspine.metrics.evaluation import arrange_table, index_units, name_splits, sort_labelled
from cspine.metrics.intervals import (
    DEFAULT_OPTIONS,
    IntervalOptions,
    compute_jackknife_error,
    find_link_ends,
    leave_out_units,
)
from cspine.metrics.paired import check_same_cases
from cspine.metrics.scores import METRICS, Floats, Metric, compute_totals

_SAME = 1e-12  # errors below this are rounding
UNKNOWN = "one seed only: the spread between seeds is unknown"


class SeedSpread(FrozenModel):
    """One metric of several seeds.

    Attributes:
        metric: Key of `METRICS`.
        values: One a seed, in the order given; None where undefined.
        mean: Over the seeds; its interval is over other cases with these very seeds.
        between_sd: Standard deviation of the values, with its interval (chi-square: as if they were normal).
        seed_sd: The same, freed of what is due to the cases; 0 where that explains all of it. None if unknown.
        sampling_se: Standard error of the mean over cases. None if unknown.
        combined: The mean; its interval is over other seeds and other cases.
    """

    metric: str
    values: tuple[float | None, ...]
    mean: Estimate
    between_sd: Estimate
    seed_sd: float | None
    sampling_se: float | None
    combined: Estimate


class SeedSummary(FrozenModel):
    """Several seeds of one model on the same cases."""

    model: str
    split: str
    seeds: int
    unit: str
    units: int
    metrics: tuple[SeedSpread, ...]


def summarise_seeds(
    tables: Sequence[pl.DataFrame],
    names: Sequence[str] = ("auroc", "accuracy"),
    threshold: float = 0.5,
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> SeedSummary:
    """Take the spread between seeds and the sampling error of one model apart.

    Args:
        tables: Predictions of the same slices, one table a seed.
        names: Keys of `METRICS`.
        threshold: See `evaluate_table`.
        options: Of these `unit` and `level`: nothing is drawn.

    Raises:
        PredictionsError: no table, several models, other slices, or a checkpoint given twice: no other seed.
        InputError: see `evaluate_table`.
    """
    found = _check_seeds(tables)
    units, unit = index_units(found[0], options.unit)
    chosen = {name: METRICS[name] for name in names}
    values: dict[str, list[float]] = {name: [] for name in names}
    left_out: dict[str, list[Floats]] = {name: [] for name in names}
    for table in found:
        cases = arrange_table(table, threshold, options.unit)
        totals = compute_totals(cases, np.ones((1, cases.units)))
        without = leave_out_units(cases, chosen)
        for name, metric in chosen.items():
            values[name].append(float(metric.compute(totals)[0]))
            left_out[name].append(without[name])
    context = _Context(unit, int(units.max()) + 1, options.level)
    return SeedSummary(
        model=str(found[0]["model"][0]),
        split=name_splits(found[0]),
        seeds=len(found),
        unit=unit,
        units=context.units,
        metrics=tuple(
            context.spread(name, np.array(values[name]), np.stack(left_out[name])) for name in names
        ),
    )


def _check_seeds(tables: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    if not tables:
        raise PredictionsError("no seeds were given", fix="give one table of predictions a seed")
    found = [sort_labelled(table) for table in tables]
    for number, table in enumerate(found[1:], start=2):
        check_same_cases(found[0], table, f"seed 1 and seed {number}")
        if table["model"][0] != found[0]["model"][0]:
            raise PredictionsError(
                "seeds are of one model", where=f"seed {number}", fix="compare models in pairs"
            )
    hashes = [table["checkpoint_hash"][0] for table in found]
    if len(set(hashes)) < len(hashes):
        raise PredictionsError(
            "a checkpoint was given twice as two seeds", fix="give each seed's own predictions"
        )
    return found


class _Context:
    """What all metrics of one summary share."""

    def __init__(self, unit: str, units: int, level: float) -> None:
        self.unit, self.units, self.level = unit, units, level

    def spread(self, name: str, values: Floats, left_out: Floats) -> SeedSpread:
        """One metric: (seeds,) values and (seeds, units) values without each unit."""
        metric, k = METRICS[name], values.size
        shown = tuple(None if np.isnan(value) else float(value) for value in values)
        if np.isnan(values).any() or np.isnan(left_out).any() or self.units < 2:
            reason = (
                metric.undefined if np.isnan(values).any() else "undefined, or one unit only, without a unit"
            )
            value = None if np.isnan(values).any() else float(values.mean())
            nothing = self._estimate(value, None, "none", reason)
            between = self._between(values, reason)
            return SeedSpread(
                metric=name, values=shown, mean=nothing, between_sd=between, seed_sd=None, sampling_se=None,
                combined=nothing,
            )  # fmt: skip
        mean = float(values.mean())
        error = compute_jackknife_error(left_out.mean(axis=0))
        variance = float(values.var(ddof=1)) if k > 1 else 0.0
        total = variance / k + error**2
        freedom = self.units - 1.0
        if k > 1 and total > 0:
            freedom = total**2 / ((variance / k) ** 2 / (k - 1) + error**4 / (self.units - 1))
        words = "cluster jackknife of the mean over seeds, logit scale, Student's t"
        combined = "seeds and cases (Satterthwaite), logit scale, Student's t"
        return SeedSpread(
            metric=name,
            values=shown,
            mean=self._estimate(mean, self._ends(metric, mean, error, self.units - 1), words, _NO_SPREAD),
            between_sd=self._between(values),
            seed_sd=_free_of_cases(values, left_out) if k > 1 else None,
            sampling_se=error,
            combined=self._estimate(
                mean,
                self._ends(metric, mean, float(np.sqrt(total)), freedom) if k > 1 else None,
                combined,
                UNKNOWN if k < 2 else _NO_SPREAD,
            ),
        )

    def _ends(self, metric: Metric, mean: float, error: float, freedom: float) -> tuple[float, float] | None:
        """None where the mean is at an end of the range, or nothing varies."""
        inside = mean > metric.low and (metric.high is None or mean < metric.high)
        if not inside or error <= _SAME:
            return None
        quantile = float(stats.t.ppf((1 + self.level) / 2, freedom))
        return find_link_ends(mean, error, quantile, metric.low, metric.high)

    def _estimate(
        self, value: float | None, ends: tuple[float, float] | None, method: str, reason: str
    ) -> Estimate:
        low, high = ends or (None, None)
        return Estimate(
            value=value, low=low, high=high, method=method, unit=self.unit, n=self.units, level=self.level,
            reason=reason if value is None or ends is None else None,
        )  # fmt: skip

    def _between(self, values: Floats, reason: str | None = None) -> Estimate:
        k = values.size
        method = "chi-square, values as if normal"
        if reason is None and k < 2:
            reason = UNKNOWN
        if reason is not None or np.ptp(values) == 0:
            reason = reason or "all seeds gave the same value"
            value = float(values.std(ddof=1)) if k > 1 and not np.isnan(values).any() else None
            return Estimate(
                value=value,
                low=None,
                high=None,
                method=method,
                unit="seed",
                n=k,
                level=self.level,
                reason=reason,
            )
        sd, tail = float(values.std(ddof=1)), (1 - self.level) / 2
        low, high = (sd * float(np.sqrt((k - 1) / stats.chi2.ppf(q, k - 1))) for q in (1 - tail, tail))
        return Estimate(value=sd, low=low, high=high, method=method, unit="seed", n=k, level=self.level)


_NO_SPREAD = "the mean is at the end of its range, or nothing varies: no interval is known"


def _free_of_cases(values: Floats, left_out: Floats) -> float:
    """Standard deviation between seeds, less what the cases explain; see the head of this module."""
    k = values.size
    deviations = left_out - left_out.mean(axis=0)
    explained = sum(compute_jackknife_error(row) ** 2 for row in deviations) / (k - 1)
    return float(np.sqrt(max(float(values.var(ddof=1)) - explained, 0.0)))
