"""Thresholds chosen on one split, applied to another: never chosen on what is reported, unless told and marked."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from cspine.errors import InputError, PredictionsError
from cspine.evaluation.estimate import Estimate, FrozenModel
from cspine.evaluation.evaluate import (
    check_both_classes,
    estimate_metrics,
    evaluate,
    name_splits,
    sort_labelled,
)
from cspine.evaluation.metrics import Floats, count_down
from cspine.evaluation.results import EvaluationResult
from cspine.predictions import hash_rows

Rule = Literal["youden", "sensitivity", "fpr"]

_SLACK = 1e-12


class OperatingPoint(FrozenModel):
    """A threshold and where it comes from.

    Attributes:
        rule: "youden" (largest sensitivity - FPR; Youden 1950), "sensitivity" (the highest threshold that reaches
            `target`) or "fpr" (the lowest threshold whose false positive rate is at most `target`).
        target: None for Youden's.
        threshold: prob >= threshold is called fracture. Half-way to the next lower probability that was seen.
        model, checkpoint_hash: Whose probabilities it is for.
        split, rows_hash, slices: What it was chosen on; the hash is of ids, labels and scores.
        sensitivity, specificity: On what it was chosen on, and so too good.
    """

    rule: Rule
    target: float | None
    threshold: float
    model: str
    checkpoint_hash: str
    split: str
    rows_hash: str
    slices: int
    sensitivity: Estimate
    specificity: Estimate


class OperatingResult(FrozenModel):
    """A model on a split at an operating point. `selection_leak`: the point was chosen on what is reported."""

    point: OperatingPoint
    selection_leak: bool
    words: str
    evaluation: EvaluationResult


def choose_operating_point(
    table: pl.DataFrame,
    rule: Rule = "youden",
    target: float | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    by: str = "auto",
) -> OperatingPoint:
    """Choose a threshold on validation predictions.

    Among thresholds that serve the rule equally well the lowest is taken: a missed fracture costs more.

    Args:
        table: Predictions of the split to choose on, with both classes.
        rule, target: See `OperatingPoint`; the target lies in 0..1.
        draws, seed, level, by: See `evaluate`, for the two estimates.

    Raises:
        PredictionsError: see `evaluate`; or one class only.
        InputError: an unknown rule, a target missing, to spare or outside its range, or an FPR that no threshold
            reaches, as normal slices have a probability of 1.
    """
    check_rule(rule, target)
    table = sort_labelled(table)
    check_both_classes(table, "choosing a threshold")
    y, prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
    threshold = _find_threshold(*count_down(y, prob), rule, target)
    at = estimate_metrics(
        table, ("recall", "specificity"), threshold=threshold, draws=draws, seed=seed, level=level, by=by
    )
    return OperatingPoint(
        rule=rule,
        target=target,
        threshold=threshold,
        model=str(table["model"][0]),
        checkpoint_hash=str(table["checkpoint_hash"][0]),
        split=name_splits(table),
        rows_hash=hash_rows(table),
        slices=table.height,
        sensitivity=at["recall"],
        specificity=at["specificity"],
    )


def apply_operating_point(
    point: OperatingPoint,
    table: pl.DataFrame,
    *,
    allow_leak: bool = False,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    by: str = "auto",
) -> OperatingResult:
    """Evaluate predictions at an operating point that was chosen elsewhere.

    Args:
        point: From `choose_operating_point`.
        table: Predictions of the split to report, by the same checkpoint.
        allow_leak: Go on, and mark the result, where the point was chosen on the reported split.
        draws, seed, level, by: See `evaluate`.

    Raises:
        PredictionsError: see `evaluate`; predictions of another checkpoint; or a split that the point was chosen on.
        InputError: see `evaluate`.
    """
    check_checkpoint(table, point.model, point.checkpoint_hash, "the operating point")
    leak = is_chosen_on(table, point.split, point.rows_hash)
    if leak and not allow_leak:
        raise PredictionsError(
            f"the threshold was chosen on {point.split}, which is what would be reported",
            where=f"model {point.model}, rule {point.rule}",
            fix="choose it on another split",
        )
    found = evaluate(table, threshold=point.threshold, draws=draws, seed=seed, level=level, by=by)
    words = (
        f"threshold {point.threshold:.4g} by {name_rule(point.rule, point.target)}, chosen on {point.split}"
    )
    if leak:
        words += ": a selection leak, as that is what is reported; the figures are too good"
    return OperatingResult(point=point, selection_leak=leak, words=words, evaluation=found)


def check_checkpoint(table: pl.DataFrame, model: str, checkpoint_hash: str, what: str) -> None:
    """Raise `PredictionsError` where `what` was made for the scores of another checkpoint."""
    if (table["model"][0], table["checkpoint_hash"][0]) != (model, checkpoint_hash):
        raise PredictionsError(
            f"{what} is for another checkpoint than these predictions come from",
            where=f"model {table['model'][0]}",
            fix="predict both splits with the same checkpoint, and choose and fit again",
        )


def is_chosen_on(table: pl.DataFrame, split: str, rows_hash: str) -> bool:
    """Whether predictions share a split, or are the very rows, with what something was chosen or fitted on."""
    shared = set(name_splits(table).split("+")) & set(split.split("+"))
    return bool(shared) or hash_rows(table) == rows_hash


def check_rule(rule: Rule, target: float | None) -> None:
    """Raise `InputError` for an unknown rule, or a target that is missing, to spare or outside 0..1."""
    if rule not in ("youden", "sensitivity", "fpr"):
        raise InputError(f"no such rule: {rule}", fix="choose youden, sensitivity or fpr")
    if (target is None) != (rule == "youden"):
        raise InputError(
            "Youden's rule has no target, the others need one",
            fix="give a target for sensitivity or fpr only",
        )
    if target is not None and not 0 <= target <= 1:
        raise InputError(f"a target is a rate, not {target}", fix="give a number from 0 to 1")


def _find_threshold(tp: Floats, fp: Floats, seen: Floats, rule: Rule, target: float | None) -> float:
    """The threshold from counts at each distinct probability, the highest first."""
    if seen[0] < 1:  # with a probability of 1 no threshold calls nothing
        tp, fp, seen = np.append(0.0, tp), np.append(0.0, fp), np.append((1 + seen[0]) / 2, seen)
    sensitivity, fpr = tp / tp[-1], fp / fp[-1]
    if rule == "sensitivity":
        reached = np.flatnonzero(sensitivity >= (target or 0.0) - _SLACK)
        place = int(reached[0])
    elif rule == "fpr":
        reached = np.flatnonzero(fpr <= (target or 0.0) + _SLACK)
        if not reached.size:
            raise InputError(
                f"no threshold has a false positive rate of {target} or less: normal slices have a probability of 1",
                fix="allow a higher rate",
            )
        place = int(reached[-1])
    else:
        gain = sensitivity - fpr
        place = int(np.flatnonzero(gain >= gain.max() - _SLACK)[-1])
    upper, lower = float(seen[place]), float(seen[place + 1]) if place + 1 < seen.size else 0.0
    middle = (upper + lower) / 2
    return middle if lower < middle else upper


def name_rule(rule: Rule, target: float | None) -> str:
    """A rule with its target, in words."""
    if rule == "youden":
        return "Youden's index"
    name = "sensitivity of at least" if rule == "sensitivity" else "false positive rate of at most"
    return f"a {name} {target}"
