"""The mean of a value that every slice has, with its interval over units: by the same ways as every other metric."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cspine.evaluation.estimate import Estimate
from cspine.evaluation.intervals import bootstrap
from cspine.evaluation.metrics import Integers, Metric, arrange_cases

# With every label 0, the squared error of a probability sqrt(v) is v: the mean is a ratio of sums like the others. A
# mean of values of 0..1 is bounded as a proportion is, which has the largest variance of all (`evaluation.bounds`).
_MEAN = Metric(
    "Mean", None, 0.0, 1.0, True, "there are no slices",
    lambda totals: (totals.squared_error, totals.all), proportion=True,
)  # fmt: skip


def estimate_mean(
    values: npt.ArrayLike,
    units: Integers,
    *,
    unit: str,
    low: float = 0.0,
    high: float = 1.0,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """The mean over slices with its interval.

    Args:
        values: (n,) between `low` and `high`, one a slice.
        units: (n,) unit of each, 0.. without gaps.
        unit: Name of one unit.
        low, high: Range of possible values.
        draws, seed, level: See `bootstrap`.

    Raises:
        ValueError: a value outside its range.
        InputError: see `bootstrap`.
    """
    found = np.asarray(values, np.float64)
    if not found.size:
        return Estimate(
            value=None,
            low=None,
            high=None,
            method="mean",
            unit=unit,
            n=0,
            level=level,
            reason="there are no slices",
        )
    if not ((found >= low) & (found <= high)).all():
        raise ValueError(f"values must lie in {low:g}..{high:g}")
    share = (found - low) / (high - low)
    cases = arrange_cases(np.zeros(len(share), np.int64), np.sqrt(share), 0.5, units=units)
    got = bootstrap(cases, unit=unit, draws=draws, seed=seed, level=level, metrics={"mean": _MEAN})["mean"]

    def back(end: float | None) -> float | None:
        return None if end is None else low + (high - low) * end

    return got.model_copy(update={"value": float(found.mean()), "low": back(got.low), "high": back(got.high)})
