"""How far a slice lies from what a network was trained on, measured in the features that its head is given.

Features of the training slices are described by their mean and covariance, in the directions in which they vary most,
shrunk after Ledoit and Wolf (2004). The distance of a slice is Mahalanobis' over the root of the number of directions:
training slices lie at about 1 (Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution
Samples"). A study's distance is the median over its slices: a few odd ones do not make a study strange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cspine.core.errors import InputError

Floats = npt.NDArray[np.float64]

DIRECTIONS = 48
LEAST_SLICES = 50
MARGIN = 1.25
"""A study may lie so much farther than the farthest validation study before no call is made."""


@dataclass(frozen=True)
class OodDetector:
    """Mean and whitening of features.

    Attributes:
        mean: (features,) float32.
        whitening: (directions, features) float32: whitened, features of the training slices have unit variance.
    """

    mean: npt.NDArray[np.float32]
    whitening: npt.NDArray[np.float32]

    def measure(self, features: npt.NDArray[np.float32]) -> Floats:
        """(n,) distances of (n, features) slices; about 1 for slices like those of the training."""
        whitened = (features.astype(np.float64) - self.mean) @ self.whitening.T.astype(np.float64)
        return np.asarray(np.sqrt((whitened**2).mean(axis=1)))


def fit_ood(features: npt.NDArray[np.float32]) -> OodDetector:
    """Describe the features of training slices.

    Args:
        features: (n, features), n at least `LEAST_SLICES`.

    Raises:
        InputError: there are too few slices, or they all are the same to the network.
    """
    if len(features) < LEAST_SLICES:
        raise InputError(
            f"{len(features)} training slices are too few to say what is unlike them",
            fix=f"give at least {LEAST_SLICES}",
        )
    # Here, for whoever only measures need not wait for scikit-learn to load.
    from sklearn.covariance import ledoit_wolf

    values = features.astype(np.float64)
    mean = values.mean(axis=0)
    _, spreads, axes = np.linalg.svd(values - mean, full_matrices=False)
    count = min(DIRECTIONS, int((spreads > 1e-6 * max(spreads[0], 1e-12)).sum()), len(values) // 5)
    if spreads[0] <= 1e-9 or not count:
        raise InputError("the network gives the same features for all training slices", fix="train it longer")
    axes = axes[:count]
    covariance, _ = ledoit_wolf((values - mean) @ axes.T)
    levels, vectors = np.linalg.eigh(covariance)
    whitening = (vectors / np.sqrt(levels)).T @ axes
    return OodDetector(mean.astype(np.float32), whitening.astype(np.float32))


def choose_limit(distances: Sequence[Floats]) -> float:
    """From where on a study is strange: `MARGIN` times the farthest of the validation studies.

    Args:
        distances: Of the slices of each validation study, none of which was trained on.
    """
    return MARGIN * max(measure_study(one) for one in distances)


def measure_study(distances: Floats) -> float:
    """A study's distance from those of its slices."""
    return float(np.median(distances))
