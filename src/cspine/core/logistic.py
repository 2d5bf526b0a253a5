"""The logistic function and its inverse: scipy's to the bit, without the 0.3 s that importing scipy.special takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])

_MANY = 100_000
"""From here on importing scipy costs less than a loop in Python."""


def expit(logits: Numbers) -> Numbers:
    """Return the probability of a logit, or of each."""
    return _apply("expit", _expit, logits)


def logit(probs: Numbers) -> Numbers:
    """Return the logit of a probability, or of each: -inf at 0, inf at 1, NaN outside."""
    return _apply("logit", _logit, probs)


def _apply(name: str, function: Callable[[float], float], values: Numbers) -> Numbers:
    if isinstance(values, float):
        return function(values)
    values = np.asarray(values, np.float64)
    if values.size >= _MANY:
        from scipy import special

        found: npt.NDArray[np.float64] = getattr(special, name)(values)
        return found
    return np.array([function(value) for value in values.ravel().tolist()], np.float64).reshape(values.shape)


def _expit(value: float) -> float:
    # C's exp, as in scipy; numpy's own differs in the last bit on some processors.
    try:
        return 1 / (1 + math.exp(-value))
    except OverflowError:
        return 0.0


def _logit(prob: float) -> float:
    if not 0 < prob < 1:
        return -math.inf if prob == 0 else math.inf if prob == 1 else math.nan
    if prob < 0.3 or prob > 0.65:
        return math.log(prob / (1 - prob))
    centred = 2 * (prob - 0.5)  # near 0 the other way would cancel
    return math.log1p(centred) - math.log1p(-centred)
