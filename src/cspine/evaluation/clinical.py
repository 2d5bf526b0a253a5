"""What a model would mean in a clinic: predictive values at its prevalence, and net benefit.

A test set has as many fractures as its makers chose. PPV and NPV at another prevalence follow from sensitivity and
specificity by Bayes' theorem, if these are the same there (no other spectrum of patients). Net benefit (Vickers and
Elkin 2006, Med Decis Making 26:565) weighs a false call by the odds of the threshold probability t:
NB = prevalence * sensitivity - (1 - prevalence) * (1 - specificity) * t / (1 - t). A model is worth using at t where it
is above both "treat all" (prevalence - (1 - prevalence) * t / (1 - t)) and "treat none" (0).

Each is a metric like others (`Metric`), so that its interval is made as theirs are: by units, and with a bound where
nothing was missed or nothing called wrongly. The prevalence is taken as known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from cspine.errors import InputError
from cspine.evaluation.estimate import Estimate, FrozenModel
from cspine.evaluation.evaluate import arrange_table, check_both_classes, name_splits, sort_labelled
from cspine.evaluation.intervals import bootstrap
from cspine.evaluation.metrics import METRICS, Floats, Metric, Totals

PREVALENCES = tuple(percent / 100 for percent in range(1, 51))
LITERATURE_PREVALENCE = (0.04, 0.09)
"""Shares of fractures that the literature reports; drawn as a band."""

CURVE_THRESHOLDS = tuple(percent / 100 for percent in range(1, 100))
SHOWN_THRESHOLDS = (0.05, 0.1, 0.2, 0.5)
"""Threshold probabilities at which net benefit gets an interval."""


class PrevalencePoint(FrozenModel):
    """Predictive values at one prevalence. `in_literature`: whether it lies in `LITERATURE_PREVALENCE`."""

    prevalence: float
    in_literature: bool
    ppv: Estimate
    npv: Estimate


class PredictiveValues(FrozenModel):
    """PPV and NPV of one model at one threshold over prevalences; `band` is the literature's."""

    model: str
    split: str
    threshold: float
    band: tuple[float, float]
    points: tuple[PrevalencePoint, ...]


class DecisionPoint(FrozenModel):
    """Net benefit at one threshold probability, with its interval; `treat_all` has none, `treat_none` is 0."""

    threshold: float
    net_benefit: Estimate
    treat_all: float


class DecisionCurve(FrozenModel):
    """Net benefit of one model over threshold probabilities; `prevalence` is that of the set unless given."""

    model: str
    split: str
    prevalence: float
    thresholds: tuple[float, ...]
    net_benefit: tuple[float, ...]
    treat_all: tuple[float, ...]
    shown: tuple[DecisionPoint, ...]


def compute_predictive_values(
    table: pl.DataFrame,
    *,
    threshold: float = 0.5,
    prevalences: Sequence[float] = PREVALENCES,
    by: str = "auto",
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> PredictiveValues:
    """PPV and NPV over prevalences, with intervals.

    Args:
        table: Predictions, all labelled.
        threshold: prob >= threshold is called fracture.
        prevalences: Each between 0 and 1, ends excluded.
        by, draws, seed, level: See `evaluate`.

    Returns:
        Undefined with one class only; PPV is undefined where nothing was called fracture, NPV where all was.

    Raises:
        PredictionsError, InputError: see `evaluate`; or a prevalence outside its range.
    """
    for prevalence in prevalences:
        _check_between(prevalence, "prevalence")
    table = sort_labelled(table)
    cases, unit = arrange_table(table, threshold=threshold, by=by)
    metrics = {f"ppv {value}": _make_ppv(value) for value in prevalences}
    metrics |= {f"npv {value}": _make_npv(value) for value in prevalences}
    found = bootstrap(cases, unit=unit, draws=draws, seed=seed, level=level, metrics=metrics)
    low, high = LITERATURE_PREVALENCE
    return PredictiveValues(
        model=str(table["model"][0]),
        split=name_splits(table),
        threshold=threshold,
        band=LITERATURE_PREVALENCE,
        points=tuple(
            PrevalencePoint(
                prevalence=value,
                in_literature=low <= value <= high,
                ppv=found[f"ppv {value}"],
                npv=found[f"npv {value}"],
            )
            for value in prevalences
        ),
    )


def compute_decision_curve(
    table: pl.DataFrame,
    *,
    prevalence: float | None = None,
    thresholds: Sequence[float] = CURVE_THRESHOLDS,
    shown: Sequence[float] = SHOWN_THRESHOLDS,
    by: str = "auto",
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> DecisionCurve:
    """Net benefit over threshold probabilities, with intervals at a few.

    The threshold is a probability that one would act on, so it means what it says only where `prob` is calibrated,
    and at the prevalence that it is calibrated for.

    Args:
        table: Predictions, all labelled, of both classes.
        prevalence: Between 0 and 1; that of the set where None.
        thresholds: Of the curve, each between 0 and 1.
        shown: Where to give intervals.
        by, draws, seed, level: See `evaluate`.

    Raises:
        PredictionsError, InputError: see `evaluate`; one class only; a prevalence or threshold outside its range.
    """
    for value in (*thresholds, *shown):
        _check_between(value, "threshold")
    if prevalence is not None:
        _check_between(prevalence, "prevalence")
    table = sort_labelled(table)
    check_both_classes(table, "net benefit")
    y, prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
    share = float(y.mean()) if prevalence is None else prevalence
    cut = np.asarray(thresholds, dtype=np.float64)
    sensitivity = 1 - np.searchsorted(np.sort(prob[y == 1]), cut, side="left") / np.count_nonzero(y == 1)
    fpr = 1 - np.searchsorted(np.sort(prob[y == 0]), cut, side="left") / np.count_nonzero(y == 0)
    points = []
    for value in shown:
        cases, unit = arrange_table(table, threshold=value, by=by)
        metric = {"net benefit": _make_net_benefit(share, value)}
        found = bootstrap(cases, unit=unit, draws=draws, seed=seed, level=level, metrics=metric)
        treat_all = share - (1 - share) * _odds(value)
        points.append(DecisionPoint(threshold=value, net_benefit=found["net benefit"], treat_all=treat_all))
    return DecisionCurve(
        model=str(table["model"][0]),
        split=name_splits(table),
        prevalence=share,
        thresholds=tuple(map(float, cut)),
        net_benefit=tuple(float(v) for v in share * sensitivity - (1 - share) * fpr * cut / (1 - cut)),
        treat_all=tuple(float(v) for v in share - (1 - share) * cut / (1 - cut)),
        shown=tuple(points),
    )


def _check_between(value: float, what: str) -> None:
    if not 0 < value < 1:
        raise InputError(
            f"a {what} lies between 0 and 1, not at {value}", fix="give a fraction, such as 0.05"
        )


def _odds(probability: float) -> float:
    return probability / (1 - probability)


def _make_ppv(prevalence: float) -> Metric:
    """Bayes: prevalence * sensitivity over all that is called, both times positives * negatives."""

    def ratio(t: Totals) -> tuple[Floats, Floats]:
        right = prevalence * t.tp * t.negatives
        return right, right + (1 - prevalence) * t.fp * t.positives

    def combine(recall: float, specificity: float) -> float:
        called = prevalence * recall + (1 - prevalence) * (1 - specificity)
        return prevalence * recall / called if called > 0 else 1.0

    undefined = "no slice was called fracture, or the slices are of one class only"
    return Metric("PPV", None, 0.0, 1.0, True, undefined, ratio, parts=_PARTS, combine=combine)


def _make_npv(prevalence: float) -> Metric:
    def ratio(t: Totals) -> tuple[Floats, Floats]:
        right = (1 - prevalence) * t.tn * t.positives
        return right, right + prevalence * t.fn * t.negatives

    def combine(recall: float, specificity: float) -> float:
        passed = (1 - prevalence) * specificity + prevalence * (1 - recall)
        return (1 - prevalence) * specificity / passed if passed > 0 else 1.0

    undefined = "no slice was called normal, or the slices are of one class only"
    return Metric("NPV", None, 0.0, 1.0, True, undefined, ratio, parts=_PARTS, combine=combine)


def _make_net_benefit(prevalence: float, threshold: float) -> Metric:
    """Between -(1 - prevalence) * odds (all called wrongly) and the prevalence (all called rightly)."""
    cost = (1 - prevalence) * _odds(threshold)

    def ratio(t: Totals) -> tuple[Floats, Floats]:
        gain = prevalence * t.tp * t.negatives - cost * t.fp * t.positives
        return gain, t.positives * t.negatives

    def combine(recall: float, specificity: float) -> float:
        return prevalence * recall - cost * (1 - specificity)

    undefined = METRICS["auroc"].undefined
    return Metric(
        "Net benefit", None, -cost, prevalence, True, undefined, ratio, parts=_PARTS, combine=combine
    )


_PARTS = ("recall", "specificity")
