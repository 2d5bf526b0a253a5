"""How accuracy falls as images get worse: curves over severity, from predictions of corrupted slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from cspine.core.errors import InputError, PredictionsError
from cspine.core.estimates import CorruptionError, CorruptionErrors, Estimate, RobustnessPoint
from cspine.metrics.evaluation import estimate_metrics, index_units, sort_labelled
from cspine.metrics.intervals import (
    DEFAULT_OPTIONS,
    UNDEFINED_LIMIT,
    IntervalOptions,
    draw_weights,
    expand_tail,
    find_percentile_ends,
)
from cspine.metrics.scores import Floats
from cspine.robustness.corruptions import CORRUPTIONS, SEVERITIES

CLEAN = "clean"


def summarise_robustness(
    tables: Iterable[tuple[str, int, pl.DataFrame]],
    threshold: float = 0.5,
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> tuple[RobustnessPoint, ...]:
    """Accuracy and AUROC, with intervals, of each (corruption, severity, predictions).

    Args:
        tables: Predictions of any number of models; the model's name is read from the table. Clean slices are
            severity 0 and begin every curve: give them once a model, under the name `CLEAN` ("clean"), and
            they are repeated for each corruption of that model.
        threshold, options: See `evaluate_table`. All points share the draws, so curves move together.

    Returns:
        Points of every model with at least one corruption, sorted by model (as given), corruption (order of
        `CORRUPTIONS`) and severity.

    Raises:
        PredictionsError: see `evaluate_table`; or the points of a model are not of the same slices, a point is
            there twice.
        InputError: an unknown corruption or severity.
    """
    points: dict[tuple[str, str, int], RobustnessPoint] = {}
    clean: dict[str, RobustnessPoint] = {}
    slices: dict[str, pl.Series] = {}
    for corruption, severity, table in tables:
        _check_point(corruption, severity)
        found = estimate_metrics(table, ("accuracy", "auroc"), threshold, options)
        model = str(table["model"][0])
        _check_same_slices(slices.setdefault(model, table["slice_id"].sort()), table, model)
        point = RobustnessPoint(model=model, corruption=corruption, severity=severity, **found)
        if (model, corruption, severity) in points or (severity == 0 and model in clean):
            raise PredictionsError(
                f"{corruption} at severity {severity} was given twice", where=f"model {model}"
            )
        if severity == 0:
            clean[model] = point
        else:
            points[model, corruption, severity] = point
    for model, corruption in {(model, corruption) for model, corruption, _ in points}:
        if model in clean:
            points[model, corruption, 0] = clean[model].model_copy(update={"corruption": corruption})
    models, kinds = list(slices), list(CORRUPTIONS)
    ordered = sorted(points, key=lambda key: (models.index(key[0]), kinds.index(key[1]), key[2]))
    return tuple(points[key] for key in ordered)


def check_points(corruptions: Sequence[str], severities: Sequence[int]) -> None:
    """Raise `InputError` for an unknown corruption or severity, or one that is named twice."""
    for corruption in corruptions:
        for severity in severities:
            _check_point(corruption, severity)
            if corruption == CLEAN:
                raise InputError(
                    "the clean slices are part of every robustness curve",
                    where="robustness.corruptions",
                    fix=f"leave {CLEAN} out of the list",
                )
    for name, values in (("corruptions", corruptions), ("severities", severities)):
        if len(set(values)) < len(values):
            raise InputError("a value is named twice", where=f"robustness.{name}", fix="name each once")


def _check_point(corruption: str, severity: int) -> None:
    lawful = severity == 0 if corruption == CLEAN else corruption in CORRUPTIONS and severity in SEVERITIES
    if not lawful:
        raise InputError(
            f"no such point of a robustness curve: {corruption} at severity {severity}",
            fix=f"give {CLEAN} at 0, or one of {', '.join(CORRUPTIONS)} at 1 to 5",
        )


def _check_same_slices(wanted: pl.Series, table: pl.DataFrame, model: str) -> None:
    if not wanted.equals(table["slice_id"].sort()):
        raise PredictionsError(
            "the points of a robustness curve are of different slices",
            where=f"model {model}",
            fix="predict the same slices at every severity",
        )


# Mean corruption error: how often a model errs on corrupted slices, in terms of a first model.
#
# Hendrycks and Dietterich 2019 (ICLR, "Benchmarking Neural Network Robustness to Common Corruptions and
# Perturbations",
# section 4.2), with E the error rate (1 - accuracy) at severity s of corruption c, the first model in AlexNet's
# place:
#
#     CE_c = sum_s E_s,c / sum_s E1_s,c                mCE = mean over c of CE_c
#     relative CE_c = sum_s (E_s,c - E_clean) / sum_s (E1_s,c - E1_clean)
#
# Clean slices are not in CE; they are what relative CE is relative to. The first model has 1 by definition. A
# corruption
# under which the first model never errs (or, for the relative one, errs no more than on clean slices) has nothing to
# divide by: its CE is undefined, and it is left out of the mean of every model alike, which is said.


MEAN = "mean"
_SAME = 1e-12
_NO_ERRORS = "{reference} makes no error under it at any severity"
_NO_LOSS = "{reference} errs no more under it than on clean slices"


@dataclass(frozen=True)
class _Errors:
    """Error rates under each row of weights: model -> (corruption, severity) -> (rows,)."""

    rates: Mapping[str, Mapping[tuple[str, int], Floats]]
    unit: str
    units: int


def compare_corruption_errors(
    tables: Iterable[tuple[str, int, pl.DataFrame]],
    threshold: float = 0.5,
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> CorruptionErrors | None:
    """CE and relative CE of every model and corruption, and their means, with intervals.

    Intervals are percentiles of the paired cluster bootstrap: whole units are drawn, with all their slices at all
    severities and for all models alike.

    Args:
        tables: As `summarise_robustness` takes them; the first model is that of the first table.
        threshold, options: See `evaluate_table`.

    Returns:
        None without a corrupted point.

    Raises:
        PredictionsError: models were given other points or other slices, or no clean slices.
    """
    tables = list(tables)
    corruptions = [kind for kind in CORRUPTIONS if any(kind == found for found, _, _ in tables)]
    if not corruptions:
        return None
    errors = _collect(tables, threshold, options)
    reference = next(iter(errors.rates))
    rows: list[CorruptionError] = []
    undefined: dict[bool, dict[str, str]] = {False: {}, True: {}}
    kept: dict[bool, list[str]] = {}
    for relative in (False, True):
        words = (_NO_LOSS if relative else _NO_ERRORS).format(reference=reference)
        for kind in corruptions:
            if not _sum(errors.rates[reference], kind, relative)[0] > _SAME:
                undefined[relative][kind] = words
        kept[relative] = [kind for kind in corruptions if kind not in undefined[relative]]
    for model in errors.rates:
        for name in (MEAN, *corruptions):
            pair = []
            for relative in (False, True):
                kinds = kept[relative] if name == MEAN else [name] if name in kept[relative] else []
                values = _divide(errors, model, reference, kinds, relative)
                reason = undefined[relative].get(name, "no corruption is left to take the mean of")
                pair.append(_estimate(values, errors, options.level, reason, fixed=model == reference))
            rows.append(CorruptionError(model=model, corruption=name, error=pair[0], relative=pair[1]))
    return CorruptionErrors(
        reference=reference, rows=tuple(rows), left_out=undefined[False], relative_left_out=undefined[True]
    )


def _collect(
    tables: list[tuple[str, int, pl.DataFrame]], threshold: float, options: IntervalOptions
) -> _Errors:
    """Error rates of the slices as they are (row 0) and of every draw."""
    first = sort_labelled(tables[0][2])
    index, unit = index_units(first, options.unit)
    units = int(index.max()) + 1
    weights = np.vstack([np.ones((1, units)), draw_weights(units, options.seed, range(options.draws))])
    slices = weights @ np.bincount(index, minlength=units)
    rates: dict[str, dict[tuple[str, int], Floats]] = {}
    for kind, severity, part in tables:
        table = sort_labelled(part)
        model = str(table["model"][0])
        if not table["slice_id"].equals(first["slice_id"]):
            raise PredictionsError(
                "corruption errors are of the same slices for all models", where=f"model {model}"
            )
        wrong = (table["prob"] >= threshold).cast(pl.Int8).to_numpy() != table["y_true"].to_numpy()
        rates.setdefault(model, {})[kind, severity] = (
            weights @ np.bincount(index, weights=wrong, minlength=units)
        ) / slices
    wanted = set(next(iter(rates.values())))
    for model, found in rates.items():
        if set(found) != wanted or (CLEAN, 0) not in found:
            raise PredictionsError(
                "corruption errors need the clean slices and the same points of all models",
                where=f"model {model}",
            )
    return _Errors(rates, unit, units)


def _sum(rates: Mapping[tuple[str, int], Floats], kind: str, relative: bool) -> Floats:
    """Sum over severities of the error rates, or of what they are above the clean one."""
    clean = rates[CLEAN, 0] if relative else 0.0
    parts = [rate - clean for (name, _), rate in rates.items() if name == kind]
    return np.asarray(np.sum(parts, axis=0))


def _divide(errors: _Errors, model: str, reference: str, kinds: list[str], relative: bool) -> Floats | None:
    """(1 + draws,) mean over `kinds` of the ratio to the first model; NaN where there is nothing to divide by."""
    if not kinds:
        return None
    ratios = []
    for kind in kinds:
        above = _sum(errors.rates[model], kind, relative)
        below = _sum(errors.rates[reference], kind, relative)
        ratios.append(np.divide(above, below, out=np.full_like(above, np.nan), where=below > _SAME))
    return np.asarray(np.mean(ratios, axis=0))


def _estimate(values: Floats | None, errors: _Errors, level: float, reason: str, *, fixed: bool) -> Estimate:
    draws = 0 if values is None else values.size - 1
    shared: dict[str, Any] = {"unit": errors.unit, "n": errors.units, "level": level}
    method = f"percentile paired cluster bootstrap, {draws} draws"
    if values is None:
        return Estimate(value=None, low=None, high=None, method=method, reason=reason, **shared)
    if fixed:
        return Estimate(value=1.0, low=1.0, high=1.0, method="1 by definition", **shared)
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    missing = draws - drawn.size
    if errors.units < 2:
        why = f"one {errors.unit} only: an interval needs at least two"
    elif missing > UNDEFINED_LIMIT * draws:
        why = f"in {missing} of {draws} draws there is nothing to divide by"
    else:
        if missing:
            method += f" ({missing} of them undefined)"
        low, high = find_percentile_ends(drawn, expand_tail(errors.units, level))
        return Estimate(value=value, low=low, high=high, method=method, **shared)
    return Estimate(value=value, low=None, high=None, method=method, reason=why, **shared)
