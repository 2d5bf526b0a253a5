"""Stage 3: predictions of every model on the reported and the selection split, through the predictor that ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.comparison.prepare import PreparedData
from cspine.comparison.runs import TrainedModel
from cspine.comparison.watch import Watcher
from cspine.data.manifest import Manifest
from cspine.errors import PredictionsError
from cspine.evaluation.robustness import CLEAN, apply_corruption
from cspine.experiment import Experiment, RobustnessSettings
from cspine.inference.predictor import Predictor
from cspine.predictions import make_predictions, read_predictions, write_predictions

_CHUNK_SLICES = 64

NamedTable = tuple[str, int, pl.DataFrame]


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
    found = _read_same(path, table, predictor, prepared.manifest)
    if found is not None:
        return found
    slice_ids = table["slice_id"].to_list()
    watcher.start(f"Predicting {split} with {trained.name}", len(slice_ids))
    logits = predictor.predict_cached(trained.cache, slice_ids, _count(watcher, len(slice_ids)))
    predictions = label_logits(table, slice_ids, logits, predictor, prepared.manifest)
    write_predictions(predictions, path)
    watcher.finish(f"{len(slice_ids):,} slices")
    return predictions


def label_logits(
    table: pl.DataFrame,
    slice_ids: Sequence[str],
    logits: npt.NDArray[np.float64],
    predictor: Predictor,
    manifest: Manifest,
) -> pl.DataFrame:
    """Join logits to a manifest's rows by slice_id, with the hashes of where they come from."""
    return make_predictions(
        table,
        slice_ids,
        logits,
        model=predictor.header.spec.name,
        checkpoint_hash=predictor.checkpoint_hash,
        recipe_hash=predictor.recipe.hash,
        manifest_hash=manifest.hash,
        prob=predictor.find_probabilities(logits),
    )


def _read_same(
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


def _count(watcher: Watcher, total: int) -> Callable[[int], None]:
    done = 0

    def advance(slices: int) -> None:
        nonlocal done
        done += slices
        watcher.advance(done, total)

    return advance


def choose_robustness_slices(settings: RobustnessSettings, prepared: PreparedData, seed: int) -> pl.DataFrame:
    """The reported split, or a seeded part of it with both classes in their proportion."""
    table = prepared.table(prepared.reported).sort("slice_id")
    if not settings.max_slices or settings.max_slices >= len(table):
        return table
    fraction = settings.max_slices / len(table)
    rng = np.random.default_rng(seed)
    kept: list[str] = []
    for label in (0, 1):
        slice_ids = table.filter(pl.col("label") == label)["slice_id"].to_numpy()
        kept += rng.permutation(slice_ids)[: max(1, round(fraction * len(slice_ids)))].tolist()
    return table.filter(pl.col("slice_id").is_in(kept))


def predict_corrupted(
    experiment: Experiment,
    prepared: PreparedData,
    predictors: dict[str, Predictor],
    clean: dict[str, pl.DataFrame],
    folder: Path,
    watcher: Watcher,
) -> list[NamedTable]:
    """Predictions of every model at every corruption and severity, and the clean ones beside them.

    A slice is corrupted as it lies in the file and then goes through the recipe, once for all models whose recipes
    share their pixel steps. Each point is kept in `folder`, so an interrupted run goes on where it stopped.
    """
    settings = experiment.robustness
    if not settings.enabled:
        return []
    table = choose_robustness_slices(settings, prepared, experiment.seed)
    slice_ids = table["slice_id"].to_list()
    points = [(kind, severity) for kind in settings.corruptions for severity in settings.severities]
    watcher.start("Robustness", len(points))
    results: list[NamedTable] = [
        (CLEAN, 0, part.filter(pl.col("slice_id").is_in(slice_ids))) for part in clean.values()
    ]
    for done, (kind, severity) in enumerate(points):
        watcher.advance(done, len(points), f"{kind} {severity}")
        paths = {name: folder / name / f"{kind}-{severity}.parquet" for name in predictors}
        found = {
            name: _read_same(paths[name], table, predictors[name], prepared.manifest) for name in predictors
        }
        missing = {name: predictors[name] for name in predictors if found[name] is None}
        for name, logits in _score_corrupted(
            missing, prepared.manifest, slice_ids, kind, severity, experiment.seed
        ):
            made = label_logits(table, slice_ids, logits, predictors[name], prepared.manifest)
            write_predictions(made, paths[name])
            found[name] = made
        results += [(kind, severity, part) for part in found.values() if part is not None]
    watcher.finish(f"{len(points)} corruptions of {len(slice_ids):,} slices")
    return results


def _score_corrupted(
    predictors: dict[str, Predictor],
    manifest: Manifest,
    slice_ids: Sequence[str],
    kind: str,
    severity: int,
    seed: int,
) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """Logits of each predictor; slices are read in chunks, so memory does not grow with their number."""
    logits: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in predictors}
    recipes = {predictor.recipe.pixel_hash: predictor.recipe for predictor in predictors.values()}

    def corrupt(slice_id: str) -> dict[str, npt.NDArray[np.uint8]]:
        raw = manifest.read_slice(slice_id)
        pixels = apply_corruption(cast(npt.NDArray[np.uint8], raw.pixels), kind, severity, slice_id, seed)
        return {key: recipe.apply(replace(raw, pixels=pixels)) for key, recipe in recipes.items()}

    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(slice_ids) if predictors else 0, _CHUNK_SLICES):
            chunk = list(pool.map(corrupt, slice_ids[start : start + _CHUNK_SLICES]))
            for name, predictor in predictors.items():
                batch = np.stack([item[predictor.recipe.pixel_hash] for item in chunk])
                logits[name].append(predictor.predict_pixels(batch))
    for name, parts in logits.items():
        yield name, np.concatenate(parts)
