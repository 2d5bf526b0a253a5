"""Does a map depend on what the network learned? Maps of the trained network against those of randomised ones.

Adebayo et al. 2018 (NeurIPS, "Sanity Checks for Saliency Maps"): a map that stays as it is when the weights become
random shows the picture, not the network. Likeness is the rank correlation (Spearman) of the maps' pixels, with
what speaks against a fracture below 0, and SSIM (Wang et al. 2004) of what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy import stats

from cspine.evaluation.estimate import Estimate, FrozenModel
from cspine.evaluation.means import estimate_mean
from cspine.evaluation.metrics import Integers

LIMIT = 0.5
"""The check is passed where the whole interval of the mean rank correlation, all weights random, lies below this."""
RULE = f"passes where the whole interval of the mean rank correlation with all weights random lies below {LIMIT:g}"
_WINDOW_PX = 7
_C1, _C2 = 0.01**2, 0.03**2

Maps = npt.NDArray[np.float32]


class SanityStep(FrozenModel):
    """Likeness after a part of the weights was replaced.

    Attributes:
        part: What is random, in words.
        rank_correlation, ssim: Means over slices.
        undefined: Pairs of maps of which one has a single value everywhere, and so no rank correlation.
    """

    part: str
    rank_correlation: Estimate
    ssim: Estimate
    undefined: int


class SanityResult(FrozenModel):
    """The sanity check of one model's maps.

    Attributes:
        slices: How many were compared.
        networks: How many random networks the last step is averaged over.
        steps: From the head alone to all weights.
        passes: By `rule`; None where it cannot be said.
        rule: In words.
    """

    slices: int
    networks: int
    steps: tuple[SanityStep, ...]
    passes: bool | None
    rule: str = RULE

    @property
    def words(self) -> str:
        """The outcome, in words."""
        if self.passes is None:
            return "cannot be said"
        return "passes" if self.passes else "does not pass"


@dataclass(frozen=True)
class Likeness:
    """(n,) of each slice; NaN where there is no rank correlation."""

    rank_correlation: npt.NDArray[np.float64]
    ssim: npt.NDArray[np.float64]


def compare_maps(one: Maps, other: Maps) -> Likeness:
    """Likeness of (n, H, W) signed maps, slice by slice."""
    pairs = list(zip(one, other, strict=True))
    return Likeness(
        np.array([compute_rank_correlation(a, b) for a, b in pairs]),
        np.array([compute_ssim(_as_shown(a), _as_shown(b)) for a, b in pairs]),
    )


def compute_rank_correlation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Spearman's, over pixels; NaN where one of the maps has a single value."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    ranks = [stats.rankdata(values.ravel()) for values in (one, other)]
    return float(np.clip(np.corrcoef(*ranks)[0, 1], -1, 1))


def compute_ssim(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13:600, eq. 13) of pictures of 0..1, in windows of 7 pixels."""
    a, b = (np.asarray(values, np.float64) for values in (one, other))

    def blur(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(cv2.blur(values, (_WINDOW_PX, _WINDOW_PX), borderType=cv2.BORDER_REFLECT))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = (np.maximum(blur(v * v) - m * m, 0) for v, m in ((a, mean_a), (b, mean_b)))
    shared = blur(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + _C1) * (2 * shared + _C2)
    below = (mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2)
    return float(np.clip((above / below).mean(), -1, 1))


def _as_shown(signed: Maps) -> npt.NDArray[np.float64]:
    """Positive evidence, brightest at 1."""
    shown = np.maximum(signed, 0).astype(np.float64)
    peak = shown.max()
    return np.asarray(shown / peak if peak > 0 else shown, np.float64)


def judge_sanity(
    steps: Sequence[tuple[str, Sequence[Likeness]]],
    units: Integers,
    unit: str,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> SanityResult:
    """Bring likenesses together.

    Args:
        steps: Of each what is random, in words, and the likeness for each random network; the last has all weights
            random.
        units: (n,) unit of each slice, 0.. without gaps.
        unit: Name of one unit.
        draws, seed, level: See `bootstrap`.
    """
    made = []
    for part, networks in steps:
        correlations = np.stack([one.rank_correlation for one in networks])
        undefined = int(np.isnan(correlations).sum())
        known = ~np.isnan(correlations).all(axis=0)
        means = np.array([column[~np.isnan(column)].mean() for column in correlations.T[known]])
        options = {"unit": unit, "low": -1.0, "draws": draws, "seed": seed, "level": level}
        _, dense = np.unique(units[known], return_inverse=True)
        made.append(
            SanityStep(
                part=part,
                rank_correlation=estimate_mean(means, dense, **options),  # type: ignore[arg-type]
                ssim=estimate_mean(np.mean([one.ssim for one in networks], axis=0), units, **options),  # type: ignore[arg-type]
                undefined=undefined,
            )
        )
    high = made[-1].rank_correlation.high
    return SanityResult(
        slices=len(units),
        networks=len(steps[-1][1]),
        steps=tuple(made),
        passes=None if high is None else high < LIMIT,
    )
