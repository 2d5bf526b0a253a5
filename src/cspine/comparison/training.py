"""Stages 2 and 3: train the models of an experiment and predict with them, or read what an earlier run left."""

from __future__ import annotations

import base64
import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import polars as pl
import torch

from cspine.comparison.describe import describe_header
from cspine.comparison.prepare import PreparedData, prepare_data
from cspine.core.errors import ExperimentError, InputError, PredictionsError
from cspine.core.estimates import EvaluationResult
from cspine.core.files import compute_hash
from cspine.core.predictions import read_predictions, write_predictions
from cspine.core.progress import Watcher, count_steps
from cspine.data.cache import SliceCache, open_cache
from cspine.data.manifest import Manifest, write_manifest
from cspine.experiment import Experiment
from cspine.inference.predictor import Predictor, label_logits
from cspine.models.classifier import build_classifier, count_flops
from cspine.models.header import CheckpointHeader, HeadKind
from cspine.models.weights import apply_weights, load_weights
from cspine.preprocess import Recipe
from cspine.report.results import Epoch, ModelResult, Sample
from cspine.training.batches import make_cases
from cspine.training.execution import Execution
from cspine.training.loop import TrainingPlan, train
from cspine.training.state import Outcome, Progress, check_fingerprint, is_started

PACKAGES = (
    "cspine",
    "torch",
    "timm",
    "lightning-fabric",
    "numpy",
    "polars",
    "opencv-python-headless",
    "scikit-learn",
)

_HEAD_NAMES = {
    HeadKind.SOFTMAX: "global average pooling, linear, softmax",
    HeadKind.DENSE_SIGMOID: "global average pooling, Dense(256) + ReLU, sigmoid",
}


@dataclass(frozen=True)
class TrainedModel:
    """A finished training: its name, its checkpoint and how it went."""

    name: str
    checkpoint: Path
    outcome: Outcome
    cache: SliceCache


def find_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _plan_training(experiment: Experiment, name: str, prepared: PreparedData) -> TrainingPlan:
    settings, spec = experiment.find_training(name), experiment.find_spec(name)
    loaded = load_weights(experiment.models[name].weights, spec, channels=experiment.preprocess.channels)
    recipe = experiment.make_recipe(loaded.scale)
    model = build_classifier(spec, recipe.scale, seed=experiment.seed)
    apply_weights(model.backbone, loaded, spec)
    if settings.backbone == "frozen" and loaded.state is None:
        raise ExperimentError(
            "a frozen backbone of random weights has nothing to show",
            where=f"models.{name}",
            fix='name pretrained weights, or set training.backbone to "trained"',
        )
    header = CheckpointHeader(
        spec=spec,
        recipe=recipe,
        threshold=experiment.evaluation.threshold,
        manifest_hash=prepared.manifest.hash,
        weights=loaded.origin,
        versions=find_versions(),
    )
    fingerprint = compute_hash(
        {
            "spec": spec.model_dump(mode="json"),
            "recipe": recipe.hash,
            "weights": loaded.origin,
            "manifest": prepared.manifest.hash,
            "splits": [prepared.train, prepared.selection],
            "training": settings.model_dump(mode="json"),
            "augment": experiment.augment.model_dump(mode="json"),
            "seed": experiment.seed,
        }
    )
    return TrainingPlan(model, header, settings, experiment.augment, experiment.seed, fingerprint)


def _check_run(plan: TrainingPlan, folder: Path, resume: bool) -> None:
    if is_started(folder) and not resume:
        raise InputError(
            "the folder holds a training already",
            where=str(folder),
            fix="add --resume to continue it, or name a new folder",
        )
    check_fingerprint(folder, plan.fingerprint)


def check_run_folder(folder: Path, mark: str, *, resume: bool) -> None:
    """Refuse a folder that holds anything but a run to resume, known by `mark`, the file that a run writes first.

    Raises:
        InputError: it is a file; it is not empty, and `resume` is false or `mark` is not in it.
    """
    if folder.is_file():
        raise InputError("the output folder is a file", where=str(folder), fix="name a folder")
    # Hidden files are what a kill in the middle of a write leaves.
    if not folder.is_dir() or all(entry.name.startswith(".") for entry in folder.iterdir()):
        return
    if not resume:
        raise InputError(
            "the output folder is not empty",
            where=str(folder),
            fix="add --resume to continue the run in it, or name a new folder",
        )
    if not (folder / mark).is_file():
        raise InputError(
            f"the output folder holds no run to continue: it has no {mark}",
            where=str(folder),
            fix="name the folder of the run, or a new one",
        )


def check_training(
    experiment: Experiment, name: str, prepared: PreparedData, folder: Path, *, resume: bool
) -> None:
    """Refuse what `train_model` would refuse before its first epoch; nothing is written.

    With several models, the last one's missing weights are so found before the first one is trained for hours.

    Raises:
        InputError, WeightsError: see `train_model`.
        RecipeError: the recipe is for another kind of slice.
    """
    plan = _plan_training(experiment, name, prepared)
    _check_run(plan, folder, resume)
    _try_one_slice(plan, name, prepared)


def _try_one_slice(plan: TrainingPlan, name: str, prepared: PreparedData) -> None:
    """Send one slice the whole way: a recipe may not fit the slices, and some networks take one size only."""
    recipe = plan.header.recipe
    pixels = recipe.apply(prepared.manifest.read_row(0, recipe.offsets_mm))
    try:
        with torch.inference_mode():
            plan.model.eval()(torch.from_numpy(pixels[None]))
    except Exception as error:  # timm's networks check their input each in its own way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        size = "x".join(str(side) for side in recipe.size_px)
        raise InputError(
            f"{plan.header.spec.backbone} cannot take slices of {size}: {reason}",
            where=f"models.{name}",
            fix="set preprocess.image_size_px to a size that it takes, or name another backbone",
        ) from error


def train_model(
    experiment: Experiment,
    name: str,
    prepared: PreparedData,
    folder: Path,
    cache_folder: Path,
    watcher: Watcher,
    *,
    resume: bool,
) -> TrainedModel:
    """Train one model into `folder`, or resume it, or return it where it is finished.

    Raises:
        InputError: the folder holds a run and `resume` is false, or a run of other settings.
        WeightsError: the starting weights cannot be had.
        TrainingError: the loss is not finite or diverged.
    """
    plan = _plan_training(experiment, name, prepared)
    _check_run(plan, folder, resume)
    cache = open_recipe_cache(prepared, plan.header.recipe, cache_folder, watcher)

    def tell(execution: Execution) -> None:
        precision, compiling = execution.precision, execution.compiling
        if plan.settings.precision == "auto":
            watcher.start(f"Precision of {name}", 0)
            watcher.finish(f"{precision.precision}: {precision.why}")
        if plan.settings.compile == "auto":
            watcher.start(f"Compiling of {name}", 0)
            watcher.finish(f"{'' if compiling.compiled else 'not '}compiled: {compiling.why}")
        watcher.start(f"Training {name}", 0)

    def show(progress: Progress) -> None:
        note = (
            f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.3f}  "
            f"accuracy {progress.accuracy:.3f}  {progress.slices_per_s:.0f} slices/s"
        )
        done = (progress.epoch - 1) * progress.steps + progress.step
        watcher.advance(done, progress.epochs * progress.steps, note)

    outcome = train(
        plan,
        cache,
        make_cases(prepared.table(prepared.train), cache),
        make_cases(prepared.table(prepared.selection), cache),
        folder,
        on_execution=tell,
        on_step=show,
    )
    best = outcome.history[outcome.best_epoch - 1]
    watcher.finish(
        f"best epoch {best.epoch} of {len(outcome.history)}: {prepared.selection} loss {best.val_loss:.4f}"
    )
    return TrainedModel(name, folder / "checkpoint.safetensors", outcome, cache)


def train_one(
    experiment: Experiment, name: str, folder: Path, watcher: Watcher, *, resume: bool = False
) -> TrainedModel:
    """Train one model of an experiment by itself; `folder` gets its checkpoint, history, manifest and cache.

    Raises:
        InputError: the experiment has no such model; else as of `train_model`.
    """
    if name not in experiment.models:
        raise InputError(
            f"the experiment has no model {name!r}",
            where=experiment.name,
            fix="one of " + ", ".join(experiment.models),
        )
    check_run_folder(folder, "manifest.parquet", resume=resume)
    prepared = prepare_data(experiment, watcher)
    check_training(experiment, name, prepared, folder, resume=resume)
    write_manifest(prepared.manifest, folder / "manifest.parquet")
    return train_model(experiment, name, prepared, folder, folder / "cache", watcher, resume=resume)


def open_recipe_cache(prepared: PreparedData, recipe: Recipe, folder: Path, watcher: Watcher) -> SliceCache:
    """The cache of the whole manifest for a recipe, built with a bar where it is not there."""
    watcher.start("Preprocessing", 0)
    cache = open_cache(prepared.manifest, recipe, folder, progress=watcher.advance)
    watcher.finish(f"{len(cache):,} slices of {recipe.size_px[0]}x{recipe.size_px[1]}")
    return cache


def predict_split(
    trained: TrainedModel,
    predictor: Predictor,
    prepared: PreparedData,
    watcher: Watcher,
    split: str | None = None,
) -> pl.DataFrame:
    """Predictions of one model on a split: read where they are those of this checkpoint, else made.

    `split` is the reported one unless named.
    """
    split = split or prepared.reported
    table = prepared.table(split)
    path = trained.checkpoint.parent / f"predictions-{split}.parquet"
    found = read_same(path, table, predictor, prepared.manifest)
    if found is not None:
        return found
    slice_ids = table["slice_id"].to_list()
    watcher.start(f"Predicting {split} with {trained.name}", len(slice_ids))
    logits = predictor.predict_cached(trained.cache, slice_ids, count_steps(watcher, len(slice_ids)))
    predictions = label_logits(table, slice_ids, logits, predictor, prepared.manifest)
    write_predictions(predictions, path)
    watcher.finish(f"{len(slice_ids):,} slices")
    return predictions


def read_same(
    path: Path, table: pl.DataFrame, predictor: Predictor, manifest: Manifest
) -> pl.DataFrame | None:
    """What an earlier run left, if it is of this checkpoint, recipe and manifest."""
    if not path.exists():
        return None
    try:
        found = read_predictions(path, expected=table)
    except PredictionsError:
        return None
    first = found.row(0, named=True)
    origin = (first["checkpoint_hash"], first["recipe_hash"], first["manifest_hash"])
    return found if origin == (predictor.checkpoint_hash, predictor.recipe.hash, manifest.hash) else None


def describe_model(trained: TrainedModel, predictor: Predictor, evaluation: EvaluationResult) -> ModelResult:
    """One trained model, as the report shows it."""
    header, history, chosen = predictor.header, trained.outcome.history, trained.outcome.precision
    return ModelResult(
        name=trained.name,
        backbone=header.spec.backbone,
        head=_HEAD_NAMES[header.spec.head],
        weights=header.weights,
        parameters=predictor.count_parameters(),
        flops=count_flops(predictor.model, predictor.recipe.size_px),
        recipe=str(predictor.recipe),
        checkpoint_hash=predictor.checkpoint_hash,
        precision=header.precision,
        precision_why=chosen.why if chosen else "",
        best_epoch=trained.outcome.best_epoch,
        stopped_early=trained.outcome.stopped_early,
        train_s=sum(record.seconds for record in history),
        history=tuple(
            Epoch(
                **{
                    **record.model_dump(),
                    "val_loss": record.val_loss if math.isfinite(record.val_loss) else None,
                }
            )
            for record in history
        ),
        evaluation=evaluation,
        checkpoint=describe_header(header),
    )


def choose_samples(table: pl.DataFrame, trained: TrainedModel, experiment: Experiment) -> list[Sample]:
    """The most wrong slices of each class and some right ones, half of each class, as the network saw them."""
    called = (pl.col("prob") >= experiment.evaluation.threshold).cast(pl.Int8)
    table = table.with_columns(called=called, miss=(pl.col("prob") - pl.col("y_true")).abs())
    wrong = table.filter(pl.col("called") != pl.col("y_true")).sort(
        "miss", "slice_id", descending=[True, False]
    )
    right = table.filter(pl.col("called") == pl.col("y_true")).sort("slice_id")
    half = (experiment.samples + 1) // 2
    parts = [wrong.filter(pl.col("y_true") == label).head(experiment.samples) for label in (1, 0)]
    for label in (1, 0):
        group = right.filter(pl.col("y_true") == label)
        parts.append(group.sample(min(half, len(group)), seed=experiment.seed))
    return [_make_sample(row, trained) for row in pl.concat(parts).iter_rows(named=True)]


def _make_sample(row: dict[str, Any], trained: TrainedModel) -> Sample:
    outcomes: dict[tuple[int, int], Literal["tp", "fp", "fn", "tn"]] = {
        (1, 1): "tp",
        (0, 1): "fp",
        (1, 0): "fn",
        (0, 0): "tn",
    }
    pixels = np.asarray(trained.cache.as_pictures().read([row["slice_id"]])[0])
    _, png = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return Sample(
        model=trained.name,
        slice_id=row["slice_id"],
        outcome=outcomes[row["y_true"], row["called"]],
        prob=row["prob"],
        pixels_png=base64.b64encode(png.tobytes()).decode(),
    )


def describe_machine() -> dict[str, str]:
    """What it ran on; no host name and no user."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine
