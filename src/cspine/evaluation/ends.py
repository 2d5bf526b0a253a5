"""Ends of an interval from draws of a bootstrap or from the values without each unit in turn. Plain arrays in."""

from __future__ import annotations

import numpy as np
from scipy import stats

from cspine.evaluation.metrics import Floats

Ends = tuple[float, float]

_SMALLEST_TAIL = 1e-300
_FEWEST_FOR_SKEW = 3  # two values lie evenly about their mean, whatever they are
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


def find_bca_ends(value: float, drawn: Floats, left_out: Floats, tail: float) -> Ends:
    """Bias-corrected and accelerated percentiles (Efron 1987, JASA 82:171, eq. 2.3 and 6.6).

    Args:
        value: The point estimate.
        drawn: (draws,) bootstrap values, at least one and no NaN; of ties with `value`, half count as below it.
        left_out: (units,) values without each unit, no NaN, for the acceleration: the jackknife is over the units, as
            the draws are. Fewer than three say nothing of it, and it is taken as 0.
        tail: From `expand_tail`, or (1 - level) / 2.
    """
    below = np.count_nonzero(drawn < value) + 0.5 * np.count_nonzero(drawn == value)
    share = float(np.clip(below / drawn.size, 0.5 / drawn.size, 1 - 0.5 / drawn.size))
    bias = float(stats.norm.ppf(share))
    acceleration = _find_acceleration(left_out)
    # Few units have a tail so small that 1 - tail is 1, whose quantile is infinite: so the lower one is mirrored.
    quantile = float(stats.norm.ppf(max(tail, _SMALLEST_TAIL)))
    low, high = np.quantile(drawn, [_correct(bias + z, bias, acceleration) for z in (quantile, -quantile)])
    return float(low), float(high)


def _find_acceleration(left_out: Floats) -> float:
    """Efron's acceleration; 0 where the value hangs on no unit, or where too little is known to say."""
    if left_out.size < _FEWEST_FOR_SKEW:
        return 0.0
    influence = left_out.mean() - left_out
    largest = float(np.abs(influence).max())
    if not largest > 0:
        return 0.0
    scaled = influence / largest  # cubes of tiny influences would vanish
    return float(np.sum(scaled**3) / (6 * np.sum(scaled**2) ** 1.5))


def _correct(z: float, bias: float, acceleration: float) -> float:
    """The share of draws that is cut at the corrected quantile; beyond the pole of the formula, the last draw."""
    slope = 1 - acceleration * z
    if slope <= 0:
        return float(z > 0)
    return float(stats.norm.cdf(bias + z / slope))


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
