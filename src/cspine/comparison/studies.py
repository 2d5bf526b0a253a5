"""Fitting what a checkpoint needs to answer about studies: the rule, and how far from its training a study may lie."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.comparison.prepare import PreparedData
from cspine.comparison.training import TrainedModel
from cspine.core.errors import ExperimentError, InputError
from cspine.core.files import atomic_file
from cspine.core.progress import Watcher, count_steps
from cspine.ct.importing import read_series_labels
from cspine.data.manifest import Manifest
from cspine.experiment import Experiment
from cspine.inference.predictor import Predictor, label_logits
from cspine.metrics.clinical import ProbabilityUse, assess_use, move_threshold
from cspine.metrics.intervals import IntervalOptions, choose_unit
from cspine.metrics.study_level import (
    StudyFit,
    StudyResult,
    assess_studies,
    fit_aggregation,
    gather_studies,
)
from cspine.models.checkpoint import add_study_parts, rewrite_header
from cspine.models.header import Calibration
from cspine.models.ood import choose_limit, fit_ood, measure_study

MOST_TRAINING_SLICES = 2000
"""More change the covariance of features by less than it differs between two samples."""


@dataclass(frozen=True)
class FittedStudies:
    """What a fit wrote and found.

    Attributes:
        fit: The rules and the chosen one.
        distance_limit: From where on a study is too far from the training.
        distances: Series UID to its distance, for each of the selection split.
        training_slices: How many the network's features were described by.
        checkpoint: Where it was written; its hash.
    """

    fit: StudyFit
    distance_limit: float
    distances: dict[str, float]
    training_slices: int
    checkpoint: Path
    checkpoint_hash: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            **self.fit.model_dump(mode="json"),
            "distance_limit": self.distance_limit,
            "distances": self.distances,
            "training_slices": self.training_slices,
            "checkpoint": str(self.checkpoint),
            "checkpoint_hash": self.checkpoint_hash,
        }


def compare_studies(
    prepared: PreparedData,
    reported: Mapping[str, pl.DataFrame],
    selected: Mapping[str, pl.DataFrame],
    options: IntervalOptions,
) -> tuple[StudyResult, ...]:
    """What each model says of studies; nothing where rules would be fitted on what is reported, or there are none."""
    if prepared.selection == prepared.reported:
        return ()
    labels = read_series_labels(prepared.manifest.root)
    found = (assess_studies(selected[name], table, options, labels) for name, table in reported.items())
    return tuple(one for one in found if one is not None)


def fit_studies(
    checkpoint: Path,
    manifest: Manifest,
    output: Path,
    *,
    train: str,
    selection: str,
    seed: int,
    watcher: Watcher,
) -> FittedStudies:
    """Fit on studies that the network was not trained on, and write the checkpoint with what was found.

    Args:
        checkpoint: Whose network answers.
        manifest: With both splits; its studies are told apart by series UID.
        output: Where the checkpoint goes; may be the same file.
        train: The split that the network was trained on.
        selection: The split whose studies the rule and the limit are fitted on.
        seed: Of folds, intervals and the sample of training slices.

    Raises:
        InputError: the two splits are one, or no slice names its series.
        ManifestError, PredictionsError, RecipeError: a split is missing, too small, or of the wrong domain.
        CheckpointError, OutputError: the checkpoint cannot be read or written.
    """
    if train == selection:
        raise InputError(
            f"the rule would be fitted on {selection!r}, which the network was trained on",
            where="--selection",
            fix="name a split that it has not seen",
        )
    if manifest.table["series_uid"].null_count() == len(manifest):
        raise InputError(
            "no slice names the series that it belongs to: there are no studies to answer",
            fix="import CT studies, or give the table of labels a column series_uid",
        )
    held_out, trained = manifest.select(selection), manifest.select(train)
    predictor = Predictor.load(checkpoint)
    predictor.recipe.check_domain(manifest.domain, str(manifest.root))
    logits, features = _run(predictor, held_out, held_out.slice_ids, f"Predicting {selection}", watcher)
    table = label_logits(held_out.table, held_out.slice_ids, logits, predictor, manifest)
    studies = gather_studies(table, read_series_labels(manifest.root))
    fit = fit_aggregation(
        studies, f"split {selection}, manifest {manifest.hash}", IntervalOptions(draws=1000, seed=seed)
    )
    sample = trained.table.sample(min(len(trained), MOST_TRAINING_SLICES), seed=seed).sort("slice_id")
    _, known = _run(predictor, trained, sample["slice_id"].to_list(), f"Looking at {train}", watcher)
    ood = fit_ood(known)
    distances = _by_series(held_out.table, held_out.slice_ids, ood.measure(features))
    limit = choose_limit(list(distances.values()))
    digest = add_study_parts(checkpoint, output, aggregation=fit.aggregation, ood=ood, distance_limit=limit)
    return FittedStudies(
        fit=fit,
        distance_limit=limit,
        distances={series: measure_study(values) for series, values in distances.items()},
        training_slices=len(sample),
        checkpoint=output,
        checkpoint_hash=digest,
    )


def _run(
    predictor: Predictor, manifest: Manifest, slice_ids: list[str], stage: str, watcher: Watcher
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Logits and features of slices, in order."""
    offsets_mm, count = predictor.recipe.offsets_mm, len(slice_ids)
    watcher.start(stage, count)
    found = predictor.predict_read(
        count, lambda index: manifest.read_slice(slice_ids[index], offsets_mm), count_steps(watcher, count)
    )
    watcher.finish(f"{count:,} slices")
    return found


def _by_series(
    table: pl.DataFrame, slice_ids: list[str], distances: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.float64]]:
    joined = table.select("slice_id", "series_uid").join(
        pl.DataFrame({"slice_id": slice_ids, "distance": distances}), on="slice_id"
    )
    return {
        str(series): part["distance"].to_numpy()
        for (series,), part in joined.filter(pl.col("series_uid").is_not_null()).group_by(
            "series_uid", maintain_order=True
        )
    }


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
    options: IntervalOptions,
) -> tuple[ProbabilityUse, ...]:
    """Assess every model; where models were selected on what is reported, nothing is fitted."""
    settings, apart = experiment.evaluation, prepared.selection != prepared.reported
    found = []
    for item in trained:
        use = assess_use(
            reported[item.name],
            selected[item.name] if apart else None,
            settings.threshold,
            options,
            rules=[(point.rule, point.target) for point in settings.operating_points],
            calibration=settings.calibration,
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
