"""Stage 4b: what each model's probabilities are good for, fitted on the selection split; and the fits, stored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cspine.comparison.prepare import PreparedData
from cspine.comparison.runs import TrainedModel
from cspine.errors import ExperimentError
from cspine.evaluation.in_use import ProbabilityUse, assess_use, move_threshold
from cspine.evaluation.intervals import choose_unit
from cspine.experiment import Experiment
from cspine.files import atomic_file
from cspine.models.checkpoint import rewrite_header
from cspine.models.header import Calibration

CALIBRATED_FILE = "calibrated.safetensors"
SIZED = ("accuracy", "auroc")
"""Metrics whose naive interval the report shows beside the clustered one: Wilson and DeLong are for these two."""


def check_use(experiment: Experiment, prepared: PreparedData) -> None:
    """Refuse before the training what `assess_models` would refuse after it.

    Raises:
        InputError: a fit is to be stored, and there is no split to fit on; a unit that selection slices lack.
    """
    if prepared.selection != prepared.reported:
        choose_unit(prepared.table(prepared.selection), experiment.evaluation.unit)
    elif experiment.evaluation.store_calibration:
        raise ExperimentError(
            f"there is no calibration to store: models are selected on {prepared.selection}, which is reported",
            where="evaluation.store_calibration",
            fix='set splits.selection to another split or to "carve", or store_calibration to false',
        )


def assess_models(
    experiment: Experiment,
    prepared: PreparedData,
    trained: Sequence[TrainedModel],
    reported: Mapping[str, pl.DataFrame],
    selected: Mapping[str, pl.DataFrame],
    options: dict[str, Any],
) -> tuple[ProbabilityUse, ...]:
    """Assess every model; where models were selected on what is reported, nothing is fitted.

    Args:
        experiment, prepared, trained: What was done.
        reported, selected: Model -> its predictions on the reported and on the selection split.
        options: Of `evaluate`.
    """
    settings, apart = experiment.evaluation, prepared.selection != prepared.reported
    found = []
    for item in trained:
        use = assess_use(
            reported[item.name],
            selected[item.name] if apart else None,
            rules=[(point.rule, point.target) for point in settings.operating_points],
            calibration=settings.calibration,
            **options,
        )
        if settings.store_calibration:
            _store(item.checkpoint, use, settings.threshold)
        found.append(use)
    return tuple(found)


def _store(checkpoint: Path, use: ProbabilityUse, threshold: float) -> None:
    """Write the checkpoint with the fit in its header beside it.

    A copy: the checkpoint's hash is that of its file, and predictions that were made with it name that hash. Changed in
    place, it would make them all again at the next `--resume`, and by a calibrated model, so that a second fit would be
    made on top of the first.
    """
    fit = use.find_state(use.used).fit
    if fit is None:
        return  # the notes say why
    if use.points:
        threshold = use.points[0].point.threshold
    with atomic_file(checkpoint.with_name(CALIBRATED_FILE)) as temporary:
        shutil.copyfile(checkpoint, temporary)
        calibration = Calibration(slope=fit.slope, intercept=fit.intercept)
        rewrite_header(temporary, calibration=calibration, threshold=move_threshold(threshold, fit))
