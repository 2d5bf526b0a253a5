"""How well a map points at a fracture whose place is known, and whether it depends on what the network learned.

Arrays and tables in; no images. Of every slice with a mask or boxes (`region`), and of a map that is nowhere below 0:

    hit         the pointing game (Zhang et al. 2016, ECCV): the share of the largest values that lies inside
    hit_near    ... inside, or no farther from it than a tolerance in mm
    energy      the share of the map's sum that lies inside (Wang et al. 2020, CVPR workshops)
    iou_area    intersection over union with as many of the largest values as the region has pixels
    iou_half    ... with all values of at least half the largest

A map without any evidence scores 0 in all. Two baselines know nothing of the slice: `chance` is the expectation of a
point, or values, spread evenly over the body; `centre` is a bell about the middle of that body, near which fractures of
the spine lie. Means are over slices, intervals over patients (or what is known of them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from cspine.core.errors import InputError
from cspine.core.estimates import Estimate, FrozenModel
from cspine.metrics.evaluation import index_units
from cspine.metrics.intervals import DEFAULT_OPTIONS, IntervalOptions, estimate_intervals
from cspine.metrics.scores import Integers, Metric, arrange_cases

# With every label 0, the squared error of a probability sqrt(v) is v: the mean is a ratio of sums like the others. A
# mean of values of 0..1 is bounded as a proportion is, which has the largest variance of all (`evaluation.bounds`).
_MEAN_UNDEFINED = "there are no slices"
_MEAN = Metric(
    "Mean", None, 0.0, 1.0, True, _MEAN_UNDEFINED,
    lambda totals: (totals.squared_error, totals.all), proportion=True,
)  # fmt: skip


def estimate_mean(
    values: npt.ArrayLike,
    units: Integers,
    *,
    unit: str,
    low: float = 0.0,
    high: float = 1.0,
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> Estimate:
    """The mean over slices with its interval.

    Args:
        values: (n,) between `low` and `high`, one a slice.
        units: (n,) unit of each, 0.. without gaps.
        unit: Name of one unit.
        low, high: Range of possible values; `ValueError` where one lies outside.
        options: How intervals are made.
    """
    found = np.asarray(values, np.float64)
    if not found.size:
        return Estimate(
            value=None, low=None, high=None, method="mean", unit=unit, n=0, level=options.level,
            reason=_MEAN_UNDEFINED,
        )  # fmt: skip
    if not ((found >= low) & (found <= high)).all():
        raise ValueError(f"values must lie in {low:g}..{high:g}")
    share = (found - low) / (high - low)
    cases = arrange_cases(np.zeros(len(share), np.int64), np.sqrt(share), 0.5, units=units, unit=unit)
    got = estimate_intervals(cases, options, metrics={"mean": _MEAN})["mean"]

    def back(end: float | None) -> float | None:
        return None if end is None else low + (high - low) * end

    return got.model_copy(update={"value": float(found.mean()), "low": back(got.low), "high": back(got.high)})


Heat = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

TOLERANCE_MM = 5.0
FRACTION = 0.5
_BELL = 0.25  # of the body's height and width: one standard deviation
MEASURES: Mapping[str, str] = {
    "hit": "Pointing game: the peak is inside",
    "hit_near": "Pointing game, to {tolerance_mm:g} mm outside",
    "energy": "Share of the map inside",
    "iou_area": "IoU, as many pixels as the region",
    "iou_half": "IoU, from {fraction:.0%} of the peak on",
}


@dataclass(frozen=True)
class SlicePointing:
    """Scores of one slice, keys of `MEASURES`; `hit_near` only where a spacing is known.

    Attributes:
        found, chance, centre: Of the map, of chance, of the bell about the centre.
        empty: Whether the map has no evidence at all.
    """

    found: dict[str, float]
    chance: dict[str, float]
    centre: dict[str, float]
    empty: bool


class PointingMeasure(FrozenModel):
    """One measure over all slices.

    Attributes:
        name: Key of `MEASURES`.
        label: In words, with its settings.
        found, chance, centre: See `SlicePointing`.
        beyond_centre: Mean difference of map and centre, slice by slice, in -1..1.
    """

    name: str
    label: str
    found: Estimate
    chance: Estimate
    centre: Estimate
    beyond_centre: Estimate


class PointingResult(FrozenModel):
    """How well maps point.

    Attributes:
        slices, unit, units: What it rests on.
        masks, boxes: How many of the slices have the one or the other.
        empty: Maps without any evidence.
        tolerance_mm, fraction: Of `hit_near` and `iou_half`.
        measures: In the order of `MEASURES`.
    """

    slices: int
    unit: str
    units: int
    masks: int
    boxes: int
    empty: int
    tolerance_mm: float
    fraction: float
    measures: tuple[PointingMeasure, ...]


def score_slice(
    heat: Heat,
    region: Mask,
    body: Mask,
    spacing_mm: tuple[float, float] | None,
    *,
    tolerance_mm: float = TOLERANCE_MM,
) -> SlicePointing:
    """Score the map of one slice.

    Args:
        heat: (H, W) not below 0.
        region: (H, W) where the fracture is; not empty.
        body: (H, W) what chance spreads over: the body, as far as the network sees it. Not empty.
        spacing_mm: (row, column); None where unknown.
        tolerance_mm: Of `hit_near`.

    Raises:
        ValueError: shapes differ, or region or body is empty.
    """
    if not heat.shape == region.shape == body.shape:
        raise ValueError(
            f"map, region and body must be of one size: {heat.shape}, {region.shape}, {body.shape}"
        )
    if not region.any() or not body.any():
        raise ValueError("region and body must not be empty")
    near = None if spacing_mm is None else find_near(region, spacing_mm, tolerance_mm)
    return SlicePointing(
        found=_score_map(heat, region, near),
        chance=_expect_chance(region, near, body),
        centre=_score_map(_draw_bell(body), region, near),
        empty=not bool((heat > 0).any()),
    )


def find_near(region: Mask, spacing_mm: tuple[float, float], tolerance_mm: float) -> Mask:
    """Pixels in a region or no farther from one of its pixels, middle to middle, than a distance in mm."""
    reach = [int(tolerance_mm / step) for step in spacing_mm]
    rows, columns = (np.arange(-length, length + 1) for length in reach)
    far2 = (rows[:, None] * spacing_mm[0]) ** 2 + (columns[None, :] * spacing_mm[1]) ** 2
    kernel = (far2 <= tolerance_mm**2).astype(np.uint8)
    return np.asarray(cv2.dilate(region.astype(np.uint8), kernel) > 0)


def _score_map(heat: Heat, region: Mask, near: Mask | None) -> dict[str, float]:
    names = [name for name in MEASURES if name != "hit_near" or near is not None]
    peak = float(heat.max())
    if not peak > 0:
        return dict.fromkeys(names, 0.0)
    top = heat == peak
    scores = {"hit": float(region[top].mean())}
    if near is not None:
        scores["hit_near"] = float(near[top].mean())
    scores["energy"] = float(np.clip(heat[region].sum(dtype=np.float64) / heat.sum(dtype=np.float64), 0, 1))
    scores["iou_area"] = _overlap(_take_largest(heat, int(region.sum())), region)
    scores["iou_half"] = _overlap(heat >= FRACTION * peak, region)
    return scores


def _take_largest(heat: Heat, count: int) -> Mask:
    """The `count` largest values, none of those that are 0; of equal ones the first."""
    flat = heat.ravel()
    taken = np.zeros(flat.size, bool)
    taken[np.argsort(-flat, kind="stable")[:count]] = True
    return (taken & (flat > 0)).reshape(heat.shape)


def _overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def _expect_chance(region: Mask, near: Mask | None, body: Mask) -> dict[str, float]:
    """Expectation of a point, and of independent values of 0..1, spread evenly over the body."""
    pixels = float(body.sum())
    share = float((region & body).sum()) / pixels
    scores = {"hit": share}
    if near is not None:
        scores["hit_near"] = float((near & body).sum()) / pixels
    size = float(region.sum())
    scores["energy"] = share
    # k of n pixels at random have k * share of theirs inside; ratios of expectations, which many pixels make exact.
    for name, taken in (("iou_area", size), ("iou_half", (1 - FRACTION) * pixels)):
        inside = min(taken, pixels) * share
        scores[name] = inside / (min(taken, pixels) + size - inside)
    return scores


def _draw_bell(body: Mask) -> Heat:
    """A Gaussian about the middle of the box around the body, a quarter of the box wide; on all of the picture."""
    axes = []
    for axis in (0, 1):
        there = np.flatnonzero(body.any(axis=1 - axis))
        middle, side = (there[0] + there[-1]) / 2, max(1, there[-1] - there[0] + 1)
        axes.append(np.exp(-0.5 * ((np.arange(body.shape[axis]) - middle) / (_BELL * side)) ** 2))
    return np.asarray(axes[0][:, None] * axes[1][None, :], np.float32)


def evaluate_pointing(
    scores: Mapping[str, SlicePointing],
    table: pl.DataFrame,
    *,
    masks: int = 0,
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> PointingResult:
    """Means over slices, with intervals over units.

    Args:
        scores: Of each slice, by its id; at least one.
        table: Rows of those slices, with their ids (a manifest's or predictions); others are left out.
        masks: How many have a mask; the others have boxes.
        options: How intervals are made.

    Raises:
        InputError: a slice that was scored is not in the table, or see `choose_unit`.
    """
    rows = table.filter(pl.col("slice_id").is_in(list(scores))).sort("slice_id")
    if rows.height != len(scores):
        raise InputError(f"{len(scores) - rows.height} of {len(scores)} scored slices are not in the table")
    units, unit = index_units(rows, options.unit)
    ordered = [scores[slice_id] for slice_id in rows["slice_id"]]
    measures = []
    for name, label in MEASURES.items():
        # A measure in mm is of the slices whose spacing is known: of all of them, or it is left out.
        if not all(name in one.found for one in ordered):
            continue
        columns = [[getattr(one, kind)[name] for one in ordered] for kind in ("found", "chance", "centre")]
        found, chance, centre = (
            estimate_mean(column, units, unit=unit, options=options) for column in columns
        )
        differences = np.subtract(columns[0], columns[2])
        measures.append(
            PointingMeasure(
                name=name,
                label=label.format(tolerance_mm=TOLERANCE_MM, fraction=FRACTION),
                found=found,
                chance=chance,
                centre=centre,
                beyond_centre=estimate_mean(differences, units, unit=unit, low=-1.0, options=options),
            )
        )
    return PointingResult(
        slices=len(ordered),
        unit=unit,
        units=int(units.max()) + 1,
        masks=masks,
        boxes=len(ordered) - masks,
        empty=sum(one.empty for one in ordered),
        tolerance_mm=TOLERANCE_MM,
        fraction=FRACTION,
        measures=tuple(measures),
    )


# Maps of the trained network against those of randomised ones (Adebayo et al. 2018, NeurIPS, "Sanity Checks for
# Saliency Maps"): a map that stays as it is when the weights become random shows the picture, not the network.
# Likeness is the rank correlation (Spearman) of signed maps, and SSIM (Wang et al. 2004) of what is shown.

LIMIT = 0.5
"""The check is passed where the whole interval of the mean rank correlation, all weights random, lies below this."""
RULE = f"passes where the whole interval of the mean rank correlation with all weights random lies below {LIMIT:g}"
_WINDOW_PX = 7
_C1, _C2 = 0.01**2, 0.03**2


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


def compare_maps(one: Heat, other: Heat) -> Likeness:
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


def _as_shown(signed: Heat) -> npt.NDArray[np.float64]:
    """Positive evidence, brightest at 1."""
    shown = np.maximum(signed, 0).astype(np.float64)
    peak = shown.max()
    return np.asarray(shown / peak if peak > 0 else shown, np.float64)


def judge_sanity(
    steps: Sequence[tuple[str, Sequence[Likeness]]],
    units: Integers,
    unit: str,
    options: IntervalOptions = DEFAULT_OPTIONS,
) -> SanityResult:
    """Bring likenesses together.

    Args:
        steps: Of each what is random, in words, and the likeness for each random network; the last has all weights
            random.
        units: (n,) unit of each slice, 0.. without gaps.
        unit: Name of one unit.
        options: How intervals are made.
    """
    made = []
    for part, networks in steps:
        correlations = np.stack([one.rank_correlation for one in networks])
        undefined = int(np.isnan(correlations).sum())
        known = ~np.isnan(correlations).all(axis=0)
        means = np.array([column[~np.isnan(column)].mean() for column in correlations.T[known]])
        _, dense = np.unique(units[known], return_inverse=True)
        ssim = np.mean([one.ssim for one in networks], axis=0)
        made.append(
            SanityStep(
                part=part,
                rank_correlation=estimate_mean(means, dense, unit=unit, low=-1.0, options=options),
                ssim=estimate_mean(ssim, units, unit=unit, low=-1.0, options=options),
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
