"""Wilson's interval for a proportion, of independent trials and of trials in clusters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from cspine.data.types import plural
from cspine.errors import InputError
from cspine.evaluation.ends import Ends
from cspine.evaluation.estimate import Estimate


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
