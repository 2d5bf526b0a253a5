"""How accuracy falls as images get worse: curves over severity, from predictions of corrupted slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from cspine.corruptions.registry import CORRUPTIONS, SEVERITIES
from cspine.errors import InputError, PredictionsError
from cspine.evaluation.evaluate import estimate_metrics
from cspine.evaluation.results import RobustnessPoint

CLEAN = "clean"


def summarise_robustness(
    tables: Iterable[tuple[str, int, pl.DataFrame]],
    *,
    threshold: float = 0.5,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    by: str = "auto",
) -> tuple[RobustnessPoint, ...]:
    """Accuracy and AUROC, with intervals, of each (corruption, severity, predictions).

    Args:
        tables: Predictions of any number of models; the model's name is read from the table. Clean slices are
            severity 0 and begin every curve: give them once a model, under the name `CLEAN` ("clean"), and
            they are repeated for each corruption of that model.
        threshold, draws, seed, level, by: See `evaluate`. All points share the draws, so curves move
            together.

    Returns:
        Points of every model with at least one corruption, sorted by model (as given), corruption (order of
        `CORRUPTIONS`) and severity.

    Raises:
        PredictionsError: see `evaluate`; or the points of a model are not of the same slices, a point is
            there twice.
        InputError: an unknown corruption or severity.
    """
    points: dict[tuple[str, str, int], RobustnessPoint] = {}
    clean: dict[str, RobustnessPoint] = {}
    slices: dict[str, pl.Series] = {}
    for corruption, severity, table in tables:
        _check_point(corruption, severity)
        found = estimate_metrics(
            table, ("accuracy", "auroc"), threshold=threshold, draws=draws, seed=seed, level=level, by=by
        )
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
