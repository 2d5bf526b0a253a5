"""Stage 3: predictions of every model on the reported and the selection split, through the predictor that ships."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cspine.comparison.prepare import PreparedData
from cspine.comparison.runs import TrainedModel
from cspine.comparison.watch import Watcher, count_steps
from cspine.data.manifest import Manifest
from cspine.errors import PredictionsError
from cspine.inference.predictor import Predictor
from cspine.predictions import make_predictions, read_predictions, write_predictions


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
