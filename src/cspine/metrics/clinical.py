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

from cspine.core.errors import CspineError, InputError, PredictionsError
from cspine.core.estimates import Confusion, Estimate, FrozenModel
from cspine.core.predictions import compute_sigmoid
from cspine.metrics.calibration import (
    CalibrationFit,
    CalibrationKind,
    OperatingPoint,
    Reliability,
    Rule,
    apply_calibration,
    apply_operating_point,
    check_rule,
    choose_operating_point,
    compute_reliability,
    fit_calibration,
    name_rule,
)
from cspine.metrics.evaluation import (
    arrange_table,
    check_both_classes,
    estimate_metrics,
    name_splits,
    sort_labelled,
)
from cspine.metrics.intervals import DEFAULT_OPTIONS, IntervalOptions, choose_unit, estimate_intervals
from cspine.metrics.scores import METRICS, Floats, Metric, Totals

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
    threshold: float = 0.5,
    options: IntervalOptions = DEFAULT_OPTIONS,
    *,
    prevalences: Sequence[float] = PREVALENCES,
) -> PredictiveValues:
    """PPV and NPV over prevalences, with intervals.

    Args:
        table: Predictions, all labelled.
        threshold: prob >= threshold is called fracture.
        prevalences: Each between 0 and 1, ends excluded.
        options: How intervals are made.

    Returns:
        Undefined with one class only; PPV is undefined where nothing was called fracture, NPV where all was.

    Raises:
        PredictionsError, InputError: see `evaluate_table`; or a prevalence outside its range.
    """
    for prevalence in prevalences:
        _check_between(prevalence, "prevalence")
    table = sort_labelled(table)
    cases = arrange_table(table, threshold, options.unit)
    metrics = {f"ppv {value}": _make_ppv(value) for value in prevalences}
    metrics |= {f"npv {value}": _make_npv(value) for value in prevalences}
    found = estimate_intervals(cases, options, metrics=metrics)
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
    options: IntervalOptions = DEFAULT_OPTIONS,
    *,
    prevalence: float | None = None,
    thresholds: Sequence[float] = CURVE_THRESHOLDS,
    shown: Sequence[float] = SHOWN_THRESHOLDS,
) -> DecisionCurve:
    """Net benefit over threshold probabilities, with intervals at a few.

    The threshold is a probability that one would act on, so it means what it says only where `prob` is calibrated,
    and at the prevalence that it is calibrated for.

    Args:
        table: Predictions, all labelled, of both classes.
        prevalence: Between 0 and 1; that of the set where None.
        thresholds: Of the curve, each between 0 and 1.
        shown: Where to give intervals.
        options: How intervals are made.

    Raises:
        PredictionsError, InputError: see `evaluate_table`; one class only; a prevalence or threshold outside its range.
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
        cases = arrange_table(table, value, options.unit)
        metric = {"net benefit": _make_net_benefit(share, value)}
        found = estimate_intervals(cases, options, metrics=metric)
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


# What a model's probabilities are good for in use: thresholds, calibration, predictive values and net benefit.
#
# Whatever is chosen or fitted is chosen or fitted on a selection split and shown on another, the reported one.
# Without a
# selection split (where models were selected on what is reported) there are no operating points and no calibration:
# probabilities are shown as the network gives them, and calls at a threshold that was fixed before.


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

DECISION_THRESHOLDS = tuple(percent / 100 for percent in range(1, 51))
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

    def to_frame(self) -> pl.DataFrame:
        """Return one row an operating point and metric: rule, target, threshold, metric, value, low, high."""
        rows = [
            {
                "rule": one.point.rule,
                "target": one.point.target,
                "threshold": one.point.threshold,
                "metric": name,
                **estimate.model_dump(include={"value", "low", "high"}),
            }
            for one in self.points
            for name, estimate in one.metrics.items()
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{'raw' if s.fit is None else s.fit.kind} {s.reliability.ece.value:.3f}" for s in self.states
        )
        return (
            f"{type(self).__name__}({self.model} on {self.split}: {len(self.points)} thresholds, ECE {shown})"
        )

    def _repr_html_(self) -> str:
        return self.to_frame()._repr_html_()

    def find_state(self, kind: CalibrationKind | None) -> CalibrationState:
        """The state after a calibration; as the network gives it for None."""
        return next(state for state in self.states if (state.fit.kind if state.fit else None) == kind)


def assess_use(
    reported: pl.DataFrame,
    selection: pl.DataFrame | None = None,
    threshold: float = 0.5,
    options: IntervalOptions = DEFAULT_OPTIONS,
    *,
    rules: Sequence[tuple[Rule, float | None]] = DEFAULT_RULES,
    calibration: CalibrationKind = DEFAULT_CALIBRATION,
) -> ProbabilityUse:
    """Choose and fit on `selection`, show on `reported`.

    Args:
        reported: Predictions, all labelled, of both classes.
        selection: Predictions by the same checkpoint, of other slices, likewise; None: nothing is chosen or fitted.
        rules: Operating points, each a rule and its target (see `choose_operating_point`).
        calibration: Which of both fits `used` is.
        threshold: Of the predictive values where there is no operating point; fixed before anything was seen.
        options: How intervals are made.

    Returns:
        A point that no threshold reaches and a fit that cannot be had are left out, with a note.

    Raises:
        PredictionsError: see `evaluate_table`; one class only; another checkpoint, or slices that are reported.
        InputError: see `evaluate_table`; a rule that is none.
    """
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
        predictive=compute_predictive_values(reported, points[0].threshold if points else threshold, options),
        decision=compute_decision_curve(
            calibrated, options, thresholds=DECISION_THRESHOLDS, shown=BAND_THRESHOLDS
        ),
    )


def _check(
    reported: pl.DataFrame,
    selection: pl.DataFrame | None,
    rules: Sequence[tuple[Rule, float | None]],
    options: IntervalOptions,
) -> None:
    """Refuse what cannot be used at all, so that what fails afterwards is about one point or one fit."""
    for rule, target in rules:
        check_rule(rule, target)
    for table in (reported, *([] if selection is None else [selection])):
        table = sort_labelled(table)
        check_both_classes(table, "using probabilities")
        choose_unit(table, options.unit)


def assess_tables(
    tables: Sequence[pl.DataFrame],
    selections: Sequence[pl.DataFrame],
    threshold: float,
    options: IntervalOptions,
) -> list[ProbabilityUse]:
    """Assess each table with the selection predictions of its own checkpoint.

    Args:
        tables: What is evaluated.
        selections: One for each checkpoint.
        threshold, options: See `assess_use`.

    Raises:
        PredictionsError: a table without, or a selection too many; else as `assess_use`.
    """
    by_origin = {_find_origin(selection): selection for selection in selections}
    if len(by_origin) < len(selections) or set(by_origin) - set(map(_find_origin, tables)):
        raise PredictionsError(
            "the predictions to calibrate on are not one table for each checkpoint that is evaluated",
            where="--calibrate-on",
            fix="name one for each, by the same checkpoint, and no others",
        )
    found = []
    for table in tables:
        selection = by_origin.get(_find_origin(table))
        if selection is None:
            raise PredictionsError(
                "none of the predictions to calibrate on is by this model's checkpoint",
                where=f"model {table['model'][0]}",
                fix="predict the validation split with the same checkpoint, and name it with --calibrate-on",
            )
        found.append(assess_use(table, selection, threshold, options))
    return found


def _find_origin(table: pl.DataFrame) -> tuple[str, str]:
    return str(table["model"][0]), str(table["checkpoint_hash"][0])


def move_threshold(threshold: float, fit: CalibrationFit) -> float:
    """Where a calibration moves a threshold of the uncalibrated probability to, so that calls stay as they are."""
    with np.errstate(divide="ignore"):  # thresholds of 0 and 1 stay where they are
        logit = np.log(threshold) - np.log1p(-threshold)
    return float(compute_sigmoid(fit.slope * logit + fit.intercept))


def _choose_points(
    selection: pl.DataFrame,
    rules: Sequence[tuple[Rule, float | None]],
    notes: list[str],
    options: IntervalOptions,
) -> list[OperatingPoint]:
    points = []
    for rule, target in rules:
        try:
            points.append(choose_operating_point(selection, rule, target, options))
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
    reported: pl.DataFrame, fit: CalibrationFit | None, options: IntervalOptions
) -> CalibrationState:
    table = apply_calibration(reported, fit) if fit else reported
    return CalibrationState(
        fit=fit,
        reliability=compute_reliability(table, options),
        log_loss=estimate_metrics(table, ("log_loss",), options=options)["log_loss"],
    )


def _apply_point(
    point: OperatingPoint, reported: pl.DataFrame, used: CalibrationFit | None, options: IntervalOptions
) -> PointInUse:
    found = apply_operating_point(point, reported, options)
    return PointInUse(
        point=point,
        words=found.words,
        calibrated_threshold=move_threshold(point.threshold, used) if used else None,
        confusion=found.evaluation.confusion,
        metrics={name: found.evaluation.metrics[name] for name in POINT_METRICS},
    )
