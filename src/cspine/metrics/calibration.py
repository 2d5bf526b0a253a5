"""Thresholds chosen on one split, applied to another: never chosen on what is reported, unless told and marked."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from scipy import optimize

from cspine.core.errors import InputError, PredictionsError
from cspine.core.estimates import Estimate, EvaluationResult, FrozenModel
from cspine.core.predictions import check_predictions, compute_sigmoid, hash_rows
from cspine.metrics.evaluation import (
    check_both_classes,
    estimate_metrics,
    evaluate_table,
    index_units,
    name_splits,
    sort_labelled,
)
from cspine.metrics.intervals import (
    DEFAULT_OPTIONS,
    IntervalOptions,
    draw_weights,
    estimate_clustered_proportion,
    expand_tail,
    find_percentile_ends,
)
from cspine.metrics.scores import Floats, Integers, count_down

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
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> OperatingPoint:
    """Choose a threshold on validation predictions.

    Among thresholds that serve the rule equally well the lowest is taken: a missed fracture costs more.

    Args:
        table: Predictions of the split to choose on, with both classes.
        rule, target: See `OperatingPoint`; the target lies in 0..1.
        options: Of the two estimates.

    Raises:
        PredictionsError: see `evaluate_table`; or one class only.
        InputError: an unknown rule, a target missing, to spare or outside its range, or an FPR that no threshold
            reaches, as normal slices have a probability of 1.
    """
    check_rule(rule, target)
    table = sort_labelled(table)
    check_both_classes(table, "choosing a threshold")
    y, prob = table["y_true"].to_numpy(), table["prob"].to_numpy()
    threshold = _find_threshold(*count_down(y, prob), rule, target)
    at = estimate_metrics(table, ("recall", "specificity"), threshold, options)
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
    options: IntervalOptions = DEFAULT_OPTIONS,
    *,
    allow_leak: bool = False,
) -> OperatingResult:
    """Evaluate predictions at an operating point that was chosen elsewhere.

    Args:
        point: From `choose_operating_point`.
        table: Predictions of the split to report, by the same checkpoint.
        allow_leak: Go on, and mark the result, where the point was chosen on the reported split.
        options: How intervals are made.

    Raises:
        PredictionsError: see `evaluate_table`; another checkpoint; or a split that the point was chosen on.
        InputError: see `evaluate_table`.
    """
    check_checkpoint(table, point.model, point.checkpoint_hash, "the operating point")
    leak = is_chosen_on(table, point.split, point.rows_hash)
    if leak and not allow_leak:
        raise PredictionsError(
            f"the threshold was chosen on {point.split}, which is what would be reported",
            where=f"model {point.model}, rule {point.rule}",
            fix="choose it on another split",
        )
    found = evaluate_table(table, point.threshold, options)
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


# Temperature and Platt scaling: logit -> slope * logit + intercept, fitted on validation predictions.
#
# Predictions keep the logit as the network gave it; a calibration moves `prob` alone. It rises with the logit, so no
# ranking changes: AUROC stays as it is, calls at a threshold of 0.5 do not.


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
        PredictionsError: see `evaluate_table`; one class only; or logits that are all the same.
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


# How far probabilities may be taken at their word: reliability diagram, ECE, and the parts of the Brier score.
#
# Slices are put into bins by their probability. With n_b slices in bin b, mean probability p_b, share of fractures
# y_b,
# and share y of fractures in all:
#
# - ECE (expected calibration error) = sum of n_b / n * |p_b - y_b|. It is biased upwards, the more so the more bins
# and
#   the fewer units: a perfectly calibrated model has a positive one. The bootstrap shows the bias about once more, so
#   the draws are shifted down by twice what it shows. As they never reach 0, the lower end is set to 0 where chance
#   alone gives as much: where ECE with the sign of each unit's residuals drawn at random (wild cluster bootstrap;
#   Cameron, Gelbach and Miller 2008, Rev Econ Stat 90:414) is often as large;
# - Brier = reliability - resolution + uncertainty + within (Murphy 1973, J Appl Meteorol 12:595; the last after
#   Stephenson, Coelho and Jolliffe 2008, Weather Forecast 23:752): reliability = sum n_b / n * (p_b - y_b)^2,
#   resolution = sum n_b / n * (y_b - y)^2, uncertainty = y (1 - y), within = what probabilities that differ win and
# lose
#   within a bin. The sum is exact.
#
# Bins are fixed, also where their edges were taken from the data (equal mass), and intervals are given those bins.


BinKind = Literal["equal_mass", "equal_width"]

_CHUNK_DRAWS = 200
_SAME = 1e-12


class ReliabilityBin(FrozenModel):
    """Slices with low <= prob < high (the last bin: <= high). `observed` is the share of fractures among them."""

    low: float
    high: float
    slices: int
    mean_prob: float
    observed: Estimate


class BrierParts(FrozenModel):
    """brier = reliability - resolution + uncertainty + within; see the head of this module.

    Reliability and resolution are biased upwards like ECE, and their intervals are shifted likewise.
    """

    brier: Estimate
    reliability: Estimate
    resolution: Estimate
    uncertainty: Estimate
    within: Estimate


class Reliability(FrozenModel):
    """Calibration of one model on one split. `bins` leaves empty bins out.

    `ece_bias` is the bootstrap's estimate of how much too high `ece` is, `ece_by_chance` the mean ECE that chance alone
    gives a perfectly calibrated model on these cases; None where there is one unit only.
    """

    model: str
    split: str
    kind: BinKind
    bins: tuple[ReliabilityBin, ...]
    ece: Estimate
    ece_bias: float | None
    ece_by_chance: float | None
    brier: BrierParts


class _Sums(NamedTuple):
    """(..., bins) of slices, fractures, probabilities, their squares and their products with the label."""

    n: Floats
    y: Floats
    p: Floats
    pp: Floats
    py: Floats


def compute_reliability(
    table: pl.DataFrame,
    options: IntervalOptions = DEFAULT_OPTIONS,
    *,
    bins: int = 10,
    kind: BinKind = "equal_mass",
) -> Reliability:
    """Reliability diagram, ECE and Brier parts of one model's `prob`.

    Args:
        table: Predictions, all labelled.
        bins: How many; equal probabilities stay in one bin, so that there may be fewer.
        kind: "equal_mass" (about as many slices a bin) or "equal_width" (of 0..1).
        options: How intervals are made.

    Raises:
        PredictionsError, InputError: see `evaluate_table`; or fewer than two bins, or an unknown kind.
    """
    if bins < 2 or kind not in ("equal_mass", "equal_width"):
        raise InputError(f"no such bins: {bins}, {kind}", fix="give two or more, equal_mass or equal_width")
    table = sort_labelled(table)
    units, unit = index_units(table, options.unit)
    y, prob = table["y_true"].to_numpy().astype(np.float64), table["prob"].to_numpy()
    edges = _find_edges(prob, bins, kind)
    place = np.searchsorted(edges[1:-1], prob, side="right")
    sums = _sum_by_unit(y, prob, units, place, len(edges) - 1)
    values = _take(_Sums(*(part.sum(axis=0, keepdims=True) for part in sums)))
    drawn = _draw(sums, options) if len(sums.n) > 1 else None
    chance = _draw_chance(sums, options)
    by_chance = bool(values["ece"][0] <= np.quantile(chance, (1 + options.level) / 2))
    context = _Context(unit, len(sums.n), options.level, by_chance)
    found = {
        name: _estimate(name, float(value[0]), None if drawn is None else drawn[name], context)
        for name, value in values.items()
    }
    bias = None if drawn is None else float(drawn["ece"].mean() - values["ece"][0])
    return Reliability(
        model=str(table["model"][0]),
        split=name_splits(table),
        kind=kind,
        bins=_describe_bins(sums, edges, unit, options.level),
        ece=found.pop("ece"),
        ece_bias=bias,
        ece_by_chance=None if drawn is None else float(chance.mean()),
        brier=BrierParts(**found),
    )


def _find_edges(prob: Floats, bins: int, kind: BinKind) -> Floats:
    """Edges from 0 to 1, rising strictly."""
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    if kind == "equal_mass":
        inner = np.quantile(prob, inner, method="higher")
    inner = np.unique(inner)
    return np.concatenate(([0.0], inner[(inner > 0) & (inner < 1)], [1.0]))


def _sum_by_unit(y: Floats, prob: Floats, units: Integers, place: Integers, bins: int) -> _Sums:
    """Each field (units, bins)."""
    count = int(units.max()) + 1

    def add(weights: Floats) -> Floats:
        flat = np.bincount(units * bins + place, weights=weights, minlength=count * bins)
        return np.asarray(flat, dtype=np.float64).reshape(count, bins)

    return _Sums(add(np.ones_like(y)), add(y), add(prob), add(prob**2), add(prob * y))


def _take(sums: _Sums) -> dict[str, Floats]:
    """(draws, bins) sums -> (draws,) values."""
    n = np.maximum(sums.n, np.finfo(np.float64).tiny)  # an empty bin adds nothing, whatever it is divided by
    total = sums.n.sum(axis=1)
    share = sums.y.sum(axis=1) / total
    mean_p, mean_y = sums.p / n, sums.y / n
    within = (sums.pp - sums.p * mean_p) - 2 * (sums.py - sums.p * mean_y)
    return {
        "ece": np.abs(sums.p - sums.y).sum(axis=1) / total,
        "brier": (sums.pp - 2 * sums.py + sums.y).sum(axis=1) / total,
        "reliability": (sums.n * (mean_p - mean_y) ** 2).sum(axis=1) / total,
        "resolution": (sums.n * (mean_y - share[:, np.newaxis]) ** 2).sum(axis=1) / total,
        "uncertainty": share * (1 - share),
        "within": within.sum(axis=1) / total,
    }


def _draw(sums: _Sums, options: IntervalOptions) -> dict[str, Floats]:
    """(draws,) values with the units drawn again; the same draws as of `estimate_intervals`."""
    parts = []
    for start in range(0, options.draws, _CHUNK_DRAWS):
        chunk = range(start, min(start + _CHUNK_DRAWS, options.draws))
        weights = draw_weights(len(sums.n), options.seed, chunk)
        parts.append(_take(_Sums(*(weights @ part for part in sums))))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draw_chance(sums: _Sums, options: IntervalOptions) -> Floats:
    """(draws,) ECE with the sign of each unit's residuals drawn at random."""
    residuals = sums.p - sums.y
    signs = np.random.default_rng(options.seed).integers(0, 2, (options.draws, len(residuals))) * 2.0 - 1.0
    return np.asarray(np.abs(signs @ residuals).sum(axis=1) / sums.n.sum())


class _Context(NamedTuple):
    """What the estimates of one diagram share; `by_chance`: whether chance alone gives as large an ECE."""

    unit: str
    units: int
    level: float
    by_chance: bool


_BIASED = ("ece", "reliability", "resolution")


def _estimate(name: str, value: float, drawn: Floats | None, context: _Context) -> Estimate:
    method, low, high, reason = "percentile cluster bootstrap", None, None, None
    if drawn is None:
        reason = f"one {context.unit} only: an interval needs at least two"
    elif np.ptp(drawn) <= _SAME:
        reason = "every draw gave the same: a bootstrap cannot bound it"
    else:
        method += f", {drawn.size} draws"
        low, high = find_percentile_ends(drawn, expand_tail(context.units, context.level))
        if name in _BIASED:
            bias = float(drawn.mean()) - value
            low, high = max(low - 2 * bias, 0.0), max(high - 2 * bias, 0.0)
            method += f", shifted by twice its bias; the value is too high by about {bias:.2g}"
            if context.by_chance and name != "resolution":
                low, method = 0.0, f"{method}; chance alone gives as much"
        # A value too high itself, or the largest there is (uncertainty of two equal classes), may lie beyond the draws;
        # an interval that leaves its own value out would only confuse.
        low, high = min(low, value), max(high, value)
    return Estimate(
        value=value,
        low=low,
        high=high,
        method=method,
        unit=context.unit,
        n=context.units,
        level=context.level,
        reason=reason,
    )


def _describe_bins(sums: _Sums, edges: Floats, unit: str, level: float) -> tuple[ReliabilityBin, ...]:
    found = []
    for place in range(len(edges) - 1):
        slices = float(sums.n[:, place].sum())
        if slices == 0:
            continue
        observed = estimate_clustered_proportion(sums.y[:, place], sums.n[:, place], unit=unit, level=level)
        found.append(
            ReliabilityBin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                slices=int(slices),
                mean_prob=float(sums.p[:, place].sum() / slices),
                observed=observed,
            )
        )
    return tuple(found)
