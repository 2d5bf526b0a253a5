"""Baselines that see no anatomy worth the name. A model that does not clearly beat them has shown nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cspine.audit.measurements import shrink_pixels
from cspine.data.cache import SliceCache
from cspine.data.types import Label

NEAREST_NEIGHBOUR = "nearest neighbour"

Features = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

MAX_TRAINING = 20_000
"""Slices that a baseline learns from at most, drawn with a fixed seed."""

_TINY_DISTANCE = 1e-6
_LOGIT_LIMIT = 20.0


def fit_nearest_neighbour(known: Features, labels: npt.NDArray[np.integer], asked: Features) -> Scores:
    """ln(distance to the nearest normal / distance to the nearest fracture) of each row of `asked`.

    Above 0 exactly where the nearest neighbour is a fracture.

    Args:
        known: (n, features) rows whose classes are known, both among them.
        labels: (n,) 0 or 1.
        asked: (m, features).
    """
    distances = {}
    for label in Label:
        index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(known[labels == label])
        distances[label] = np.maximum(index.kneighbors(asked)[0][:, 0], _TINY_DISTANCE)
    return np.asarray(np.log(distances[Label.NORMAL] / distances[Label.FRACTURE]))


def fit_logistic_regression(known: Features, labels: npt.NDArray[np.integer], asked: Features) -> Scores:
    """Logits of a ridge-regularised logistic regression on standardised features; arguments as above."""
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.01 if known.shape[1] > 50 else 1.0, max_iter=500)
    )
    # A product of short float32 rows has been seen to raise the processor's "invalid" flag with every input finite
    # (docs/log.md). The features are checked to be finite by the model, and predictions that are not are refused.
    with np.errstate(invalid="ignore"):
        logits: Scores = model.fit(known, labels).decision_function(asked)
    return np.clip(logits, -_LOGIT_LIMIT, _LOGIT_LIMIT)


Fit = Callable[[Features, npt.NDArray[np.integer], Features], Scores]


def list_baselines(
    table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8]
) -> Mapping[str, tuple[str, Features, Fit]]:
    """Name -> (description, (n, features) float32, how it learns), for those whose features are there.

    Args:
        table: A manifest's columns and the measure `mean`.
        thumbnails: (n, 32, 32) uint8, in the order of the rows.
    """
    pixels = thumbnails.reshape(len(thumbnails), -1).astype(np.float32) / np.float32(255)
    size = f"{thumbnails.shape[1]}x{thumbnails.shape[2]}"
    found: dict[str, tuple[str, Features, Fit]] = {
        NEAREST_NEIGHBOUR: (
            f"the class of the nearest known slice on {size} pixels",
            pixels,
            fit_nearest_neighbour,
        ),
        "logistic regression": (f"a linear model of {size} pixels", pixels, fit_logistic_regression),
        "mean intensity": (
            "a linear model of one number: the mean grey value",
            _column(table, pl.col("mean")),
            fit_logistic_regression,
        ),
        "file metadata": (
            "a linear model of the file's size, dimensions and pixel format; no pixel is seen",
            _describe_files(table),
            fit_logistic_regression,
        ),
    }
    if table["position"].null_count() == 0 and table["position"].n_unique() > 1:
        found["slice position"] = (
            "a linear model of one number: the slice's place in its series",
            _column(table, pl.col("position")),
            fit_logistic_regression,
        )
    return found


def _column(table: pl.DataFrame, expression: pl.Expr) -> Features:
    return np.asarray(table.select(expression.cast(pl.Float32)).to_numpy(), np.float32)


def _describe_files(table: pl.DataFrame) -> Features:
    numbers = table.select(
        pl.col("file_bytes").log(), pl.col("width_px", "height_px", "bits_stored").cast(pl.Float64)
    ).to_numpy()
    kinds = OneHotEncoder(sparse_output=False).fit_transform(table.select("mode").to_numpy())
    return np.hstack([numbers, kinds]).astype(np.float32)


def fit_rows(
    features: Features,
    fit: Fit,
    labels: npt.NDArray[np.integer],
    known: npt.NDArray[np.integer],
    asked: npt.NDArray[np.integer],
    seed: int = 0,
) -> Scores:
    """Learn from the rows `known` and score the rows `asked`.

    Args:
        features: (n, features).
        fit: How.
        labels: (n,) 0 or 1; those of the rows asked are not looked at.
        known, asked: Rows.
        seed: Of the draw where more than `MAX_TRAINING` are known.
    """
    if len(known) > MAX_TRAINING:
        known = np.sort(np.random.default_rng(seed).permutation(known)[:MAX_TRAINING])
    return fit(features[known], labels[known], features[asked])


def shrink_slices(cache: SliceCache, slice_ids: Sequence[str]) -> npt.NDArray[np.uint8]:
    """(n, 32, 32) uint8: the slices of a cache as the baselines see them."""
    return np.stack([shrink_pixels(np.asarray(cache.pixels[row])) for row in cache.rows(slice_ids)])
