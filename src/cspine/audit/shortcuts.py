"""Baselines that see no anatomy worth the name. A model that does not clearly beat them has shown nothing."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from cspine.data.cache import SliceCache
from cspine.data.types import Label

NEAREST_NEIGHBOUR_PX = 32

_TINY_DISTANCE = 1e-6


def score_nearest_neighbour(
    cache: SliceCache, train_ids: Sequence[str], train_labels: Sequence[int], slice_ids: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Score slices by their nearest training slice of each class, on 32x32 pixels of a cache.

    The pixels are those that a model's recipe made, without its scaling: where the recipe equalises, so does this.

    Args:
        cache: Holds all the slices.
        train_ids, train_labels: The known ones, both classes among them; labels 0 or 1.
        slice_ids: The ones to score.

    Returns:
        One logit a slice, ln(distance to the nearest normal / distance to the nearest fracture): above 0 exactly where
        the nearest neighbour is a fracture.
    """
    labels = np.asarray(train_labels)
    known, asked = _shrink(cache, train_ids), _shrink(cache, slice_ids)
    distances = {}
    for label in Label:
        index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(known[labels == label])
        distances[label] = np.maximum(index.kneighbors(asked)[0][:, 0], _TINY_DISTANCE)
    return np.asarray(np.log(distances[Label.NORMAL] / distances[Label.FRACTURE]))


def _shrink(cache: SliceCache, slice_ids: Sequence[str]) -> npt.NDArray[np.float32]:
    size = (NEAREST_NEIGHBOUR_PX, NEAREST_NEIGHBOUR_PX)
    rows = cache.rows(slice_ids)
    small = [cv2.resize(np.asarray(cache.pixels[row]), size, interpolation=cv2.INTER_AREA) for row in rows]
    return np.stack(small).reshape(len(rows), -1).astype(np.float32) / np.float32(255)
