"""The interval of a difference of two estimates on the same units, from the interval of each."""

from __future__ import annotations

import numpy as np

from cspine.evaluation.estimate import Estimate
from cspine.evaluation.metrics import Floats

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
