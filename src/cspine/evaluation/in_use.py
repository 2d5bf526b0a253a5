"""What a model's probabilities are good for in use: thresholds, calibration, predictive values and net benefit.

Whatever is chosen or fitted is chosen or fitted on a selection split and shown on another, the reported one. Without a
selection split (where models were selected on what is reported) there are no operating points and no calibration:
probabilities are shown as the network gives them, and calls at a threshold that was fixed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from cspine.errors import CspineError
from cspine.evaluation.calibration import (
    CalibrationFit,
    CalibrationKind,
    apply_calibration,
    fit_calibration,
)
from cspine.evaluation.clinical import (
    DecisionCurve,
    PredictiveValues,
    compute_decision_curve,
    compute_predictive_values,
)
from cspine.evaluation.estimate import Estimate, FrozenModel
from cspine.evaluation.evaluate import check_both_classes, estimate_metrics, name_splits, sort_labelled
from cspine.evaluation.intervals import check_options, choose_unit
from cspine.evaluation.operating_points import (
    OperatingPoint,
    Rule,
    apply_operating_point,
    check_rule,
    choose_operating_point,
    name_rule,
)
from cspine.evaluation.reliability import Reliability, compute_reliability
from cspine.evaluation.results import Confusion
from cspine.predictions import compute_sigmoid

DEFAULT_RULES: tuple[tuple[Rule, float | None], ...] = (
    ("youden", None),
    ("sensitivity", 0.95),
    ("fpr", 0.05),
)
"""Operating points that are shown unless told: rule and target of `choose_operating_point`."""

DEFAULT_CALIBRATION: CalibrationKind = "platt"
"""What stands for "calibrated" unless told. It has a finite fit also where logits separate the classes."""

POINT_METRICS = ("recall", "specificity", "precision", "npv")
"""What is shown of an operating point: keys of `METRICS`."""

CURVE_THRESHOLDS = tuple(percent / 100 for percent in range(1, 51))
"""Threshold probabilities of a decision curve. Above one half a false call would weigh more than a missed fracture."""

BAND_THRESHOLDS = (0.01, *(percent / 100 for percent in range(5, 51, 5)))
"""Those at which it gets an interval."""


class PointInUse(FrozenModel):
    """An operating point on the reported split.

    Attributes:
        point: Threshold, rule, and what it was chosen on.
        words: The same in words.
        calibrated_threshold: Where the calibration in use moves the threshold to: calls stay as they are. None where
            there is none.
        confusion, metrics: On the reported split; `metrics` has the keys of `POINT_METRICS`.
    """

    point: OperatingPoint
    words: str
    calibrated_threshold: float | None
    confusion: Confusion
    metrics: dict[str, Estimate]


class CalibrationState(FrozenModel):
    """Calibration on the reported split: as the network gives it (`fit` is None), or after a fit."""

    fit: CalibrationFit | None
    reliability: Reliability
    log_loss: Estimate


class ProbabilityUse(FrozenModel):
    """One model's probabilities in use.

    Attributes:
        split: The reported split.
        fitted_on: The selection split; None where nothing may be chosen or fitted.
        notes: What is missing and why, in words.
        states: Uncalibrated first, then each calibration that could be fitted.
        used: The kind of calibration that `decision` and `calibrated_threshold` are of; None: uncalibrated.
        points: In the order of the rules.
        predictive: At the threshold of the first operating point, or at the fixed threshold where there is none.
        decision: At the prevalence of the reported split.
    """

    model: str
    split: str
    fitted_on: str | None
    notes: tuple[str, ...]
    states: tuple[CalibrationState, ...]
    used: CalibrationKind | None
    points: tuple[PointInUse, ...]
    predictive: PredictiveValues
    decision: DecisionCurve

    def find_state(self, kind: CalibrationKind | None) -> CalibrationState:
        """The state after a calibration; as the network gives it for None."""
        return next(state for state in self.states if (state.fit.kind if state.fit else None) == kind)


def assess_use(
    reported: pl.DataFrame,
    selection: pl.DataFrame | None = None,
    *,
    rules: Sequence[tuple[Rule, float | None]] = DEFAULT_RULES,
    calibration: CalibrationKind = DEFAULT_CALIBRATION,
    threshold: float = 0.5,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    by: str = "auto",
) -> ProbabilityUse:
    """Choose and fit on `selection`, show on `reported`.

    Args:
        reported: Predictions, all labelled, of both classes.
        selection: Predictions by the same checkpoint, of other slices, likewise; None: nothing is chosen or fitted.
        rules: Operating points, each a rule and its target (see `choose_operating_point`).
        calibration: Which of both fits `used` is.
        threshold: Of the predictive values where there is no operating point; fixed before anything was seen.
        draws, seed, level, by: See `evaluate`.

    Returns:
        A point that no threshold reaches and a fit that cannot be had are left out, with a note.

    Raises:
        PredictionsError: see `evaluate`; one class only; another checkpoint, or slices that are reported.
        InputError: see `evaluate`; a rule that is none.
    """
    options: dict[str, Any] = {"draws": draws, "seed": seed, "level": level, "by": by}
    _check(reported, selection, rules, options)
    points: list[OperatingPoint] = []
    fits: list[CalibrationFit] = []
    notes: list[str] = []
    if selection is not None:
        points = _choose_points(selection, rules, notes, options)
        fits = _fit_all(selection, notes)
    used = next((fit for fit in fits if fit.kind == calibration), None)
    calibrated = apply_calibration(reported, used) if used else reported
    return ProbabilityUse(
        model=str(reported["model"][0]),
        split=name_splits(reported),
        fitted_on=None if selection is None else name_splits(selection),
        notes=tuple(notes),
        states=tuple(_describe_state(reported, fit, options) for fit in (None, *fits)),
        used=used.kind if used else None,
        points=tuple(_apply_point(point, reported, used, options) for point in points),
        predictive=compute_predictive_values(
            reported, threshold=points[0].threshold if points else threshold, **options
        ),
        decision=compute_decision_curve(
            calibrated, thresholds=CURVE_THRESHOLDS, shown=BAND_THRESHOLDS, **options
        ),
    )


def _check(
    reported: pl.DataFrame,
    selection: pl.DataFrame | None,
    rules: Sequence[tuple[Rule, float | None]],
    options: dict[str, Any],
) -> None:
    """Refuse what cannot be used at all, so that what fails afterwards is about one point or one fit."""
    check_options(options["draws"], options["seed"], options["level"])
    for rule, target in rules:
        check_rule(rule, target)
    for table in (reported, *([] if selection is None else [selection])):
        table = sort_labelled(table)
        check_both_classes(table, "using probabilities")
        choose_unit(table, options["by"])


def move_threshold(threshold: float, fit: CalibrationFit) -> float:
    """Where a calibration moves a threshold of the uncalibrated probability to, so that calls stay as they are."""
    with np.errstate(divide="ignore"):  # thresholds of 0 and 1 stay where they are
        logit = np.log(threshold) - np.log1p(-threshold)
    return float(compute_sigmoid(fit.slope * logit + fit.intercept))


def _choose_points(
    selection: pl.DataFrame,
    rules: Sequence[tuple[Rule, float | None]],
    notes: list[str],
    options: dict[str, Any],
) -> list[OperatingPoint]:
    points = []
    for rule, target in rules:
        try:
            points.append(choose_operating_point(selection, rule, target, **options))
        except CspineError as error:
            # Table, rule and options were checked: a point that no threshold reaches is a finding, no failure.
            notes.append(f"No operating point by {name_rule(rule, target)}: {error.what}.")
    return points


def _fit_all(selection: pl.DataFrame, notes: list[str]) -> list[CalibrationFit]:
    fits = []
    kinds: tuple[CalibrationKind, ...] = ("temperature", "platt")
    for kind in kinds:
        try:
            fits.append(fit_calibration(selection, kind))
        except CspineError as error:
            notes.append(f"No calibration: {error.what}.")
            break
        notes += [f"{kind.capitalize()}: {text}." for text in fits[-1].notes]
    return fits


def _describe_state(
    reported: pl.DataFrame, fit: CalibrationFit | None, options: dict[str, Any]
) -> CalibrationState:
    table = apply_calibration(reported, fit) if fit else reported
    return CalibrationState(
        fit=fit,
        reliability=compute_reliability(table, **options),
        log_loss=estimate_metrics(table, ("log_loss",), **options)["log_loss"],
    )


def _apply_point(
    point: OperatingPoint, reported: pl.DataFrame, used: CalibrationFit | None, options: dict[str, Any]
) -> PointInUse:
    found = apply_operating_point(point, reported, **options)
    return PointInUse(
        point=point,
        words=found.words,
        calibrated_threshold=move_threshold(point.threshold, used) if used else None,
        confusion=found.evaluation.confusion,
        metrics={name: found.evaluation.metrics[name] for name in POINT_METRICS},
    )
