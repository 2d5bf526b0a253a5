"""Temperature and Platt scaling: logit -> slope * logit + intercept, fitted on validation predictions.

Predictions keep the logit as the network gave it; a calibration moves `prob` alone. It rises with the logit, so no
ranking changes: AUROC stays as it is, calls at a threshold of 0.5 do not.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from scipy import optimize

from cspine.errors import PredictionsError
from cspine.evaluation.estimate import FrozenModel
from cspine.evaluation.evaluate import check_both_classes, name_splits, sort_labelled
from cspine.evaluation.metrics import Floats
from cspine.evaluation.operating_points import check_checkpoint, is_chosen_on
from cspine.predictions import check_predictions, compute_sigmoid, hash_rows

CalibrationKind = Literal["temperature", "platt"]

SLOPE_LIMITS = (0.01, 100.0)
"""A slope stays between these. The upper is met where logits separate the classes: log loss falls without end then."""


class CalibrationFit(FrozenModel):
    """A fitted calibration and where it comes from.

    Attributes:
        kind: "temperature" (slope = 1 / T, intercept 0; Guo et al. 2017) or "platt" (Platt 1999).
        slope, intercept: prob = sigmoid(slope * logit + intercept); a checkpoint's header has the same two.
        model, checkpoint_hash: Whose logits it is for.
        split, rows_hash, slices, positives: What it was fitted on.
        log_loss_before, log_loss_after: On that, and so too good.
        separable: Whether some threshold separates the classes there without an error.
        notes: What to know before trusting it, in words; empty where nothing stands out.
    """

    kind: CalibrationKind
    slope: float
    intercept: float
    model: str
    checkpoint_hash: str
    split: str
    rows_hash: str
    slices: int
    positives: int
    log_loss_before: float
    log_loss_after: float
    separable: bool
    notes: tuple[str, ...]


def fit_calibration(table: pl.DataFrame, kind: CalibrationKind = "temperature") -> CalibrationFit:
    """Fit a calibration by log loss.

    Platt's fit takes targets (n1 + 1) / (n1 + 2) and 1 / (n0 + 2) in place of 1 and 0, as his paper does, and so is
    finite where the logits separate the classes; temperature has no such prior and stops at `SLOPE_LIMITS`.

    Args:
        table: Validation predictions, all labelled, with both classes.
        kind: Which.

    Raises:
        PredictionsError: see `evaluate`; one class only; or logits that are all the same.
    """
    table = sort_labelled(table)
    check_both_classes(table, "a calibration")
    z, y = table["logit"].to_numpy(), table["y_true"].to_numpy().astype(np.float64)
    if np.ptp(z) == 0:
        raise PredictionsError(
            "all logits are the same: there is nothing to calibrate", where=f"split {name_splits(table)}"
        )
    slope, intercept = _fit_temperature(z, y) if kind == "temperature" else _fit_platt(z, y)
    separable = bool(z[y == 1].min() > z[y == 0].max())
    return CalibrationFit(
        kind=kind,
        slope=slope,
        intercept=intercept,
        model=str(table["model"][0]),
        checkpoint_hash=str(table["checkpoint_hash"][0]),
        split=name_splits(table),
        rows_hash=hash_rows(table),
        slices=table.height,
        positives=int(y.sum()),
        log_loss_before=_take_log_loss(z, y),
        log_loss_after=_take_log_loss(slope * z + intercept, y),
        separable=separable,
        notes=_note(kind, slope, separable),
    )


def apply_calibration(table: pl.DataFrame, fit: CalibrationFit, *, allow_leak: bool = False) -> pl.DataFrame:
    """Predictions with `prob` by a calibration; logits stay.

    Args:
        table: Predictions by the checkpoint that the calibration was fitted for, labelled or not.
        fit: From `fit_calibration`.
        allow_leak: Go on where the calibration was fitted on a split of these predictions, as when the fit itself is
            shown. A figure from such a table is too good.

    Raises:
        PredictionsError: not a table of predictions, another checkpoint, or a split that it was fitted on.
    """
    check_predictions(table)
    check_checkpoint(table, fit.model, fit.checkpoint_hash, "the calibration")
    if not allow_leak and is_chosen_on(table, fit.split, fit.rows_hash):
        raise PredictionsError(
            f"the calibration was fitted on {fit.split}, which is what would be reported",
            where=f"model {fit.model}",
            fix="fit it on another split",
        )
    return table.with_columns(prob=compute_sigmoid(fit.slope * table["logit"].to_numpy() + fit.intercept))


def _fit_temperature(z: Floats, y: Floats) -> tuple[float, float]:
    """The root of the derivative, which rises with the slope as log loss is convex in it; or the limit beyond."""

    def slope_of_loss(slope: float) -> float:
        return float(np.mean((compute_sigmoid(slope * z) - y) * z))

    least, most = SLOPE_LIMITS
    if slope_of_loss(least) >= 0:
        return least, 0.0
    if slope_of_loss(most) <= 0:
        return most, 0.0
    return float(optimize.brentq(slope_of_loss, least, most, xtol=1e-12)), 0.0


def _fit_platt(z: Floats, y: Floats) -> tuple[float, float]:
    """Newton's method on standardised logits; log loss with soft targets is strictly convex."""
    positives, n = float(y.sum()), y.size
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (n - positives + 2))
    centre, scale = float(z.mean()), float(z.std())
    design = np.stack([(z - centre) / scale, np.ones(n)])

    def loss(beta: Floats) -> float:
        linear = beta @ design
        return float(np.mean(np.logaddexp(0.0, linear) - target * linear))

    def gradient(beta: Floats) -> Floats:
        return np.asarray(design @ (compute_sigmoid(beta @ design) - target) / n)

    def hessian(beta: Floats) -> Floats:
        p = compute_sigmoid(beta @ design)
        return np.asarray((design * (p * (1 - p))) @ design.T / n)

    found = optimize.minimize(
        loss, np.zeros(2), jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-11}
    )
    slope = float(found.x[0]) / scale
    limited = float(np.clip(slope, *SLOPE_LIMITS))
    if limited == slope:
        return slope, float(found.x[1]) - slope * centre
    # At a limit the intercept is fitted anew: its derivative alone has to vanish.
    reach = limited * float(np.abs(z).max()) + np.log(n + 2.0)

    def shift_of_loss(intercept: float) -> float:
        return float(np.mean(compute_sigmoid(limited * z + intercept) - target))

    return limited, float(optimize.brentq(shift_of_loss, -reach, reach, xtol=1e-12))


def _take_log_loss(z: Floats, y: Floats) -> float:
    return float(np.mean(np.logaddexp(0.0, np.where(y == 1, -z, z))))


def _note(kind: CalibrationKind, slope: float, separable: bool) -> tuple[str, ...]:
    least, most = SLOPE_LIMITS
    if slope <= least:
        return ("the slope is at its lower limit: the logits do not rise with the chance of a fracture",)
    if slope >= most:
        return ("the slope is at its upper limit: the data set none",)
    if separable and kind == "platt":
        return (
            "the logits separate the classes: the slope is that of the prior on the labels, not of the data",
        )
    return ()
