"""The metrics of the paper (eq. 6 to 10) and those that a reader needs beside them, weighted and batched.

The positive class is `fracture` (1). The decision rule is everywhere: probability >= threshold -> fracture.

Every metric is a ratio of two functions of a few weighted sums over the slices (`Totals`). Those sums are
cheap to take again under other weights, so one batched form serves the point estimate and all draws of a
bootstrap. A ratio whose denominator is zero is undefined: NaN within the arrays here, None with a reason outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cspine.core.estimates import Curve

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

LOG_LOSS_CLIP = 1e-15
"""Log loss without logits clips probabilities this far from 0 and 1: a sure mistake costs much, not all."""

CURVE_POINTS = 1000


@dataclass(frozen=True, slots=True)
class Totals:
    """Weighted sums over the slices; each field is (draws,) or, before summation, (units,).

    Attributes:
        tp, fp, fn, tn: The confusion matrix.
        squared_error: Sum of (prob - y)^2.
        log_error: Sum of the negative log-likelihoods.
        concordance: Over all pairs of a fracture and a normal slice: 1 where the fracture scores higher, 1/2
            at a tie.
        precision_sum: Over the fracture slices: the precision when their own score is the threshold.
    """

    tp: Floats
    fp: Floats
    fn: Floats
    tn: Floats
    squared_error: Floats
    log_error: Floats
    concordance: Floats
    precision_sum: Floats

    @property
    def positives(self) -> Floats:
        """Weight of the fracture slices."""
        return self.tp + self.fn

    @property
    def negatives(self) -> Floats:
        """Weight of the normal slices."""
        return self.fp + self.tn

    @property
    def all(self) -> Floats:
        """Weight of all slices."""
        return self.positives + self.negatives


Ratio = Callable[[Totals], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Metric:
    """One entry of the registry.

    Attributes:
        label: As tables and axes show it.
        equation: Number in the paper, or None where it has none.
        low, high: Range of possible values; None where it is unbounded.
        higher_is_better: Which way is good.
        undefined: Why there is no value when the denominator is zero.
        ratio: Totals -> numerator and denominator.
        ranking: Whether it needs the two sums that cost a pass over the sorted scores.
        proportion: Whether it is a share of slices, for which exact binomial bounds exist.
        parts, combine: Proportions that it rises with, each by itself, and its value at given values of them.
    """

    label: str
    equation: int | None
    low: float
    high: float | None
    higher_is_better: bool
    undefined: str
    ratio: Ratio
    ranking: bool = False
    proportion: bool = False
    parts: tuple[str, ...] = ()
    combine: Callable[..., float] | None = None

    def compute(self, totals: Totals) -> Floats:
        """The metric for each entry of `totals`; NaN where it is undefined."""
        above, below = self.ratio(totals)
        values = np.full(np.shape(below), np.nan)
        np.divide(above, below, out=values, where=below > 0)
        return values


class MetricValue(NamedTuple):
    """A value, or None and why there is none."""

    value: float | None
    reason: str | None


def _mcc(t: Totals) -> tuple[Floats, Floats]:
    # Square roots first: the product of four counts of a large set exceeds what a float holds exactly.
    below = np.sqrt((t.tp + t.fp) * t.positives) * np.sqrt(t.negatives * (t.tn + t.fn))
    return t.tp * t.tn - t.fp * t.fn, below


def _combine_f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _combine_mcc(*parts: float) -> float:
    # Chicco and Jurman 2020, BMC Genomics 21:6: MCC in terms of the four rates and their complements.
    return float(np.sqrt(np.prod(parts)) - np.sqrt(np.prod([1 - part for part in parts])))


_NO_FRACTURE = "no slice is a fracture"
_NO_NORMAL = "no slice is normal"
_ONE_CLASS = "the slices are of one class only"
_EMPTY = "there are no slices"

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric(
            "Accuracy", 6, 0.0, 1.0, True, _EMPTY, lambda t: (t.tp + t.tn, t.all), proportion=True
        ),
        "precision": Metric(
            "Precision (PPV)", 7, 0.0, 1.0, True, "no slice was called fracture",
            lambda t: (t.tp, t.tp + t.fp), proportion=True,
        ),
        "recall": Metric(
            "Recall (sensitivity)", 8, 0.0, 1.0, True, _NO_FRACTURE,
            lambda t: (t.tp, t.positives), proportion=True,
        ),
        "specificity": Metric(
            "Specificity", None, 0.0, 1.0, True, _NO_NORMAL,
            lambda t: (t.tn, t.negatives), proportion=True,
        ),
        # Eq. 9 written in counts: the harmonic mean of precision and recall, and 0 where nothing true was
        # called.
        "f1": Metric(
            "F1 score", 9, 0.0, 1.0, True, "no slice is a fracture and none was called one",
            lambda t: (2 * t.tp, 2 * t.tp + t.fp + t.fn),
            parts=("precision", "recall"), combine=_combine_f1,
        ),
        "fpr": Metric(
            "False positive rate", 10, 0.0, 1.0, False, _NO_NORMAL,
            lambda t: (t.fp, t.negatives), proportion=True,
        ),
        "npv": Metric(
            "NPV", None, 0.0, 1.0, True, "no slice was called normal",
            lambda t: (t.tn, t.tn + t.fn), proportion=True,
        ),
        "mcc": Metric(
            "MCC", None, -1.0, 1.0, True, "all slices are of one class, or were called one", _mcc,
            parts=("precision", "recall", "specificity", "npv"), combine=_combine_mcc,
        ),
        "balanced_accuracy": Metric(
            "Balanced accuracy", None, 0.0, 1.0, True, _ONE_CLASS,
            lambda t: (t.tp * t.negatives + t.tn * t.positives, 2 * t.positives * t.negatives),
            parts=("recall", "specificity"), combine=lambda recall, specificity: (recall + specificity) / 2,
        ),
        "auroc": Metric(
            "AUROC", None, 0.0, 1.0, True, _ONE_CLASS,
            lambda t: (t.concordance, t.positives * t.negatives), ranking=True,
        ),
        # Average precision: the step integral of the precision-recall curve, without interpolation. With no
        # normal slice it would be 1 whatever the scores, which says nothing; so it is undefined there.
        "auprc": Metric(
            "AUPRC", None, 0.0, 1.0, True, _ONE_CLASS,
            lambda t: (t.precision_sum, np.where(t.negatives > 0, t.positives, 0.0)), ranking=True,
        ),
        "brier": Metric("Brier score", None, 0.0, 1.0, False, _EMPTY, lambda t: (t.squared_error, t.all)),
        "log_loss": Metric("Log loss", None, 0.0, None, False, _EMPTY, lambda t: (t.log_error, t.all)),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cases:
    """Scored slices, arranged so that metrics under new weights of the units cost little.

    Attributes:
        sums: (units, 6): tp, fp, fn, tn, squared error and log error of each unit.
        positive_unit, negative_unit: Unit of each fracture and each normal slice, by falling score.
        above: For each fracture slice, how many normal slices score strictly higher.
        reached: ... how many score at least as high.
        group_end: ... how many fracture slices score at least as high, itself included.
        tied: Whether any two slices share a score.
        unit: Name of one unit, such as "patient".
    """

    sums: Floats
    positive_unit: Integers
    negative_unit: Integers
    above: Integers
    reached: Integers
    group_end: Integers
    tied: bool
    unit: str = "slice"

    @property
    def units(self) -> int:
        """How many units there are to draw."""
        return int(self.sums.shape[0])

    @property
    def slices(self) -> int:
        """How many slices there are."""
        return int(self.positive_unit.size + self.negative_unit.size)

    @property
    def per_unit(self) -> Totals:
        """The sums of each unit by itself; the ranking sums, which no unit has by itself, are zero."""
        zero = np.zeros(self.units)
        tp, fp, fn, tn, squared_error, log_error = self.sums.T
        return Totals(tp, fp, fn, tn, squared_error, log_error, zero, zero)


def arrange_cases(
    y_true: npt.ArrayLike,
    prob: npt.ArrayLike,
    threshold: float,
    *,
    units: npt.ArrayLike | None = None,
    logit: npt.ArrayLike | None = None,
    unit: str = "slice",
) -> Cases:
    """Sort and sum scored slices once, for any number of `compute_totals`.

    Args:
        y_true: (n,) 0 or 1.
        prob: (n,) probabilities of fracture; they decide, rank and are scored.
        threshold: prob >= threshold is called fracture.
        units: (n,) unit of each slice, 0..k-1 without gaps; each slice its own where None.
        logit: (n,) log-odds that `prob` is the sigmoid of. Where given, log loss is exact (softplus); else
            `prob` is clipped by `LOG_LOSS_CLIP`. Leave it out when a calibration has moved `prob`.
        unit: Name of one unit.

    Raises:
        ValueError: shapes differ, labels are not 0 and 1, or a probability is outside 0..1.
    """
    y = np.asarray(y_true)
    p = np.asarray(prob, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape:
        raise ValueError(f"y_true and prob must be (n,), not {y.shape} and {p.shape}")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("y_true must hold 0 and 1 only")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("prob must lie in 0..1")
    unit_of = np.arange(len(y)) if units is None else np.asarray(units, dtype=np.int64)
    if unit_of.shape != y.shape:
        raise ValueError(f"units must be {y.shape}, not {unit_of.shape}")
    positive = y == 1
    sums = _sum_by_unit(positive, p, threshold, unit_of, logit)
    return Cases(sums, *_rank(positive, p, unit_of), unit=unit)


def _sum_by_unit(
    positive: npt.NDArray[np.bool_], p: Floats, threshold: float, unit: Integers, logit: npt.ArrayLike | None
) -> Floats:
    """(units, 6): tp, fp, fn, tn, squared error, log error."""
    called = p >= threshold
    if logit is None:
        likelihood = np.where(positive, p, 1.0 - p)
        log_error = -np.log(np.clip(likelihood, LOG_LOSS_CLIP, 1.0 - LOG_LOSS_CLIP))
    else:
        z = np.asarray(logit, dtype=np.float64)
        log_error = np.logaddexp(0.0, np.where(positive, -z, z))
    columns = (
        called & positive,
        called & ~positive,
        ~called & positive,
        ~called & ~positive,
        (p - positive) ** 2,
        log_error,
    )
    count = int(unit.max()) + 1 if unit.size else 0
    return np.stack([np.bincount(unit, weights=column, minlength=count) for column in columns], axis=1)


def _rank(
    positive: npt.NDArray[np.bool_], p: Floats, unit: Integers
) -> tuple[Integers, Integers, Integers, Integers, Integers, bool]:
    """The fields of `Cases` from `positive_unit` on: a sort, then each score's place among the others."""
    fractures, normals = np.flatnonzero(positive), np.flatnonzero(~positive)
    fractures = fractures[np.argsort(-p[fractures], kind="stable")]
    normals = normals[np.argsort(-p[normals], kind="stable")]
    falling_fractures, falling_normals = -p[fractures], -p[normals]
    above = np.searchsorted(falling_normals, falling_fractures, side="left")
    reached = np.searchsorted(falling_normals, falling_fractures, side="right")
    group_end = np.searchsorted(falling_fractures, falling_fractures, side="right")
    tied = bool((above != reached).any() or (group_end != np.arange(1, len(fractures) + 1)).any())
    return unit[fractures], unit[normals], above, reached, group_end, tied


def compute_totals(cases: Cases, weights: Floats, *, ranking: bool = True) -> Totals:
    """Sum the cases under each row of unit weights.

    Args:
        cases: k units.
        weights: (draws, k), not negative: how often each unit counts.
        ranking: Whether to take the two sums that cost a pass over the sorted scores; zero where not taken.

    Returns:
        Totals of (draws,).
    """
    tp, fp, fn, tn, squared_error, log_error = (weights @ cases.sums).T
    zero = np.zeros(len(weights))
    concordance, precision_sum = _sum_ranking(cases, weights) if ranking else (zero, zero)
    return Totals(tp, fp, fn, tn, squared_error, log_error, concordance, precision_sum)


def _sum_ranking(cases: Cases, weights: Floats) -> tuple[Floats, Floats]:
    """Concordance and precision sums, each (draws,), by weighted cumulative sums down the ranking.

    A fracture slice with weight w is concordant with the normal weight below it and half of that tied with
    it; the precision at its score is the fracture weight at or above it over all weight at or above it (its
    own tie included, as in scikit-learn's `average_precision_score`).
    """
    fracture = weights.take(cases.positive_unit, axis=1)
    normals_down_to = _accumulate(weights.take(cases.negative_unit, axis=1))
    fractures_down_to = _accumulate(fracture)
    reached = normals_down_to.take(cases.reached, axis=1)
    if cases.tied:
        outranked = (normals_down_to.take(cases.above, axis=1) + reached) / 2
        hits = fractures_down_to.take(cases.group_end, axis=1)
    else:
        outranked, hits = reached, fractures_down_to[:, 1:]
    pairs = fractures_down_to[:, -1] * normals_down_to[:, -1]
    concordance = pairs - np.einsum("ij,ij->i", fracture, outranked)
    # No hits means that the weights so far are zero and the term counts nothing; any divisor but zero will
    # do.
    precision = hits / np.maximum(hits + reached, np.finfo(np.float64).tiny)
    return concordance, np.einsum("ij,ij->i", fracture, precision)


def _accumulate(rows: Floats) -> Floats:
    """(d, n) -> (d, n + 1): sums of the first 0..n entries of each row."""
    out = np.zeros((rows.shape[0], rows.shape[1] + 1))
    np.cumsum(rows, axis=1, out=out[:, 1:])
    return out


def explain_metrics(totals: Totals, metrics: Mapping[str, Metric] = METRICS) -> dict[str, MetricValue]:
    """The first entry of `totals` as values, each None with its reason where it is undefined."""
    values = {}
    for name, metric in metrics.items():
        value = float(metric.compute(totals)[0])
        values[name] = MetricValue(None, metric.undefined) if np.isnan(value) else MetricValue(value, None)
    return values


def compute_metrics(
    y_true: npt.ArrayLike,
    prob: npt.ArrayLike,
    threshold: float,
    weights: npt.ArrayLike | None = None,
    *,
    logit: npt.ArrayLike | None = None,
) -> dict[str, MetricValue]:
    """Every metric of the registry.

    Args:
        y_true, prob, threshold, logit: See `arrange_cases`.
        weights: (n,) weight of each slice, not negative; all 1 where None.

    Raises:
        ValueError: see `arrange_cases`.
    """
    cases = arrange_cases(y_true, prob, threshold, logit=logit)
    row = np.ones(cases.units) if weights is None else np.asarray(weights, dtype=np.float64)
    return explain_metrics(compute_totals(cases, row[np.newaxis]))


def compute_roc(y_true: npt.ArrayLike, prob: npt.ArrayLike) -> Curve:
    """ROC curve: x = false positive rate (eq. 10), y = sensitivity (eq. 8), from (0, 0) to (1, 1).

    At most about `CURVE_POINTS` points; those on a straight line between others are left out. No points where
    the slices are of one class only.
    """
    tp, fp, thresholds = count_down(y_true, prob)
    if not tp.size or tp[-1] == 0 or fp[-1] == 0:
        return Curve(x=(), y=(), thresholds=())
    x, y = np.append(0.0, fp / fp[-1]), np.append(0.0, tp / tp[-1])
    return _thin_curve(x, y, np.append(np.nan, thresholds))


def compute_precision_recall(y_true: npt.ArrayLike, prob: npt.ArrayLike) -> Curve:
    """Precision-recall curve: x = recall (eq. 8), y = precision (eq. 7), from the highest score to recall 1.

    With nothing called fracture, precision is undefined; the point at recall 0 repeats that of the highest
    score, which is what average precision assumes too. No points where the slices are of one class only.
    """
    tp, fp, thresholds = count_down(y_true, prob)
    if not tp.size or tp[-1] == 0 or fp[-1] == 0:
        return Curve(x=(), y=(), thresholds=())
    # Scores below that of the last fracture only lower the precision at recall 1; the curve ends where it
    # gets there.
    end = int(np.searchsorted(tp, tp[-1])) + 1
    recall, precision = tp[:end] / tp[-1], tp[:end] / (tp[:end] + fp[:end])
    return _thin_curve(
        np.append(0.0, recall), np.append(precision[0], precision), np.append(np.nan, thresholds[:end])
    )


def count_down(y_true: npt.ArrayLike, prob: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """True and false positives at each distinct probability as the threshold, from the highest down."""
    y = np.asarray(y_true, dtype=np.float64)
    p = np.asarray(prob, dtype=np.float64)
    order = np.argsort(-p, kind="stable")
    y, p = y[order], p[order]
    last = np.flatnonzero(np.append(p[1:] != p[:-1], True)) if p.size else np.zeros(0, dtype=np.int64)
    return np.cumsum(y)[last], np.cumsum(1.0 - y)[last], p[last]


def _thin_curve(x: Floats, y: Floats, thresholds: Floats) -> Curve:
    """Drop points on straight lines, then keep about `CURVE_POINTS`, evenly spread along the curve."""
    keep = _find_corners(x, y)
    x, y, thresholds = x[keep], y[keep], thresholds[keep]
    if len(x) > CURVE_POINTS:
        length = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
        at = np.searchsorted(length, np.linspace(0.0, length[-1], CURVE_POINTS))
        at = np.unique(np.clip(np.append(at, (0, len(x) - 1)), 0, len(x) - 1))
        x, y, thresholds = x[at], y[at], thresholds[at]
    shown = tuple(None if np.isnan(value) else float(value) for value in thresholds)
    return Curve(x=tuple(map(float, x)), y=tuple(map(float, y)), thresholds=shown)


def _find_corners(x: Floats, y: Floats) -> npt.NDArray[np.bool_]:
    """Which points of a curve turn it; both ends always do."""
    dx, dy = np.diff(x), np.diff(y)
    turns = np.abs(dx[:-1] * dy[1:] - dx[1:] * dy[:-1]) > 1e-15
    return np.concatenate(([True], turns, [True]))
