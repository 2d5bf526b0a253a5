"""How far probabilities may be taken at their word: reliability diagram, ECE, and the parts of the Brier score.

Slices are put into bins by their probability. With n_b slices in bin b, mean probability p_b, share of fractures y_b,
and share y of fractures in all:

- ECE (expected calibration error) = sum of n_b / n * |p_b - y_b|. It is biased upwards, the more so the more bins and
  the fewer units: a perfectly calibrated model has a positive one. The bootstrap shows the bias about once more, so
  the draws are shifted down by twice what it shows. As they never reach 0, the lower end is set to 0 where chance
  alone gives as much: where ECE with the sign of each unit's residuals drawn at random (wild cluster bootstrap;
  Cameron, Gelbach and Miller 2008, Rev Econ Stat 90:414) is often as large;
- Brier = reliability - resolution + uncertainty + within (Murphy 1973, J Appl Meteorol 12:595; the last after
  Stephenson, Coelho and Jolliffe 2008, Weather Forecast 23:752): reliability = sum n_b / n * (p_b - y_b)^2,
  resolution = sum n_b / n * (y_b - y)^2, uncertainty = y (1 - y), within = what probabilities that differ win and lose
  within a bin. The sum is exact.

Bins are fixed, also where their edges were taken from the data (equal mass), and intervals are given those bins.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from cspine.errors import InputError
from cspine.evaluation.ends import expand_tail, find_percentile_ends
from cspine.evaluation.estimate import Estimate, FrozenModel
from cspine.evaluation.evaluate import index_units, name_splits, sort_labelled
from cspine.evaluation.intervals import check_options
from cspine.evaluation.metrics import Floats, Integers
from cspine.evaluation.proportions import estimate_clustered_proportion
from cspine.evaluation.resampling import draw_weights

BinKind = Literal["equal_mass", "equal_width"]

_CHUNK_DRAWS = 200
_SAME = 1e-12


class ReliabilityBin(FrozenModel):
    """Slices with low <= prob < high (the last bin: <= high). `observed` is the share of fractures among them."""

    low: float
    high: float
    slices: int
    mean_prob: float
    observed: Estimate


class BrierParts(FrozenModel):
    """brier = reliability - resolution + uncertainty + within; see the head of this module.

    Reliability and resolution are biased upwards like ECE, and their intervals are shifted likewise.
    """

    brier: Estimate
    reliability: Estimate
    resolution: Estimate
    uncertainty: Estimate
    within: Estimate


class Reliability(FrozenModel):
    """Calibration of one model on one split. `bins` leaves empty bins out.

    `ece_bias` is the bootstrap's estimate of how much too high `ece` is, `ece_by_chance` the mean ECE that chance alone
    gives a perfectly calibrated model on these cases; None where there is one unit only.
    """

    model: str
    split: str
    kind: BinKind
    bins: tuple[ReliabilityBin, ...]
    ece: Estimate
    ece_bias: float | None
    ece_by_chance: float | None
    brier: BrierParts


class _Sums(NamedTuple):
    """(..., bins) of slices, fractures, probabilities, their squares and their products with the label."""

    n: Floats
    y: Floats
    p: Floats
    pp: Floats
    py: Floats


def compute_reliability(
    table: pl.DataFrame,
    *,
    bins: int = 10,
    kind: BinKind = "equal_mass",
    by: str = "auto",
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Reliability:
    """Reliability diagram, ECE and Brier parts of one model's `prob`.

    Args:
        table: Predictions, all labelled.
        bins: How many; equal probabilities stay in one bin, so that there may be fewer.
        kind: "equal_mass" (about as many slices a bin) or "equal_width" (of 0..1).
        by: See `choose_unit`.
        draws, seed, level: See `bootstrap`.

    Raises:
        PredictionsError, InputError: see `evaluate`; or fewer than two bins, or an unknown kind.
    """
    check_options(draws, seed, level)
    if bins < 2 or kind not in ("equal_mass", "equal_width"):
        raise InputError(f"no such bins: {bins}, {kind}", fix="give two or more, equal_mass or equal_width")
    table = sort_labelled(table)
    units, unit = index_units(table, by)
    y, prob = table["y_true"].to_numpy().astype(np.float64), table["prob"].to_numpy()
    edges = _find_edges(prob, bins, kind)
    place = np.searchsorted(edges[1:-1], prob, side="right")
    sums = _sum_by_unit(y, prob, units, place, len(edges) - 1)
    values = _take(_Sums(*(part.sum(axis=0, keepdims=True) for part in sums)))
    drawn = _draw(sums, draws, seed) if len(sums.n) > 1 else None
    chance = _draw_chance(sums, draws, seed)
    by_chance = bool(values["ece"][0] <= np.quantile(chance, (1 + level) / 2))
    context = _Context(unit, len(sums.n), level, by_chance)
    found = {
        name: _estimate(name, float(value[0]), None if drawn is None else drawn[name], context)
        for name, value in values.items()
    }
    bias = None if drawn is None else float(drawn["ece"].mean() - values["ece"][0])
    return Reliability(
        model=str(table["model"][0]),
        split=name_splits(table),
        kind=kind,
        bins=_describe_bins(sums, edges, unit, level),
        ece=found.pop("ece"),
        ece_bias=bias,
        ece_by_chance=None if drawn is None else float(chance.mean()),
        brier=BrierParts(**found),
    )


def _find_edges(prob: Floats, bins: int, kind: BinKind) -> Floats:
    """Edges from 0 to 1, rising strictly."""
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    if kind == "equal_mass":
        inner = np.quantile(prob, inner, method="higher")
    inner = np.unique(inner)
    return np.concatenate(([0.0], inner[(inner > 0) & (inner < 1)], [1.0]))


def _sum_by_unit(y: Floats, prob: Floats, units: Integers, place: Integers, bins: int) -> _Sums:
    """Each field (units, bins)."""
    count = int(units.max()) + 1

    def add(weights: Floats) -> Floats:
        flat = np.bincount(units * bins + place, weights=weights, minlength=count * bins)
        return np.asarray(flat, dtype=np.float64).reshape(count, bins)

    return _Sums(add(np.ones_like(y)), add(y), add(prob), add(prob**2), add(prob * y))


def _take(sums: _Sums) -> dict[str, Floats]:
    """(draws, bins) sums -> (draws,) values."""
    n = np.maximum(sums.n, np.finfo(np.float64).tiny)  # an empty bin adds nothing, whatever it is divided by
    total = sums.n.sum(axis=1)
    share = sums.y.sum(axis=1) / total
    mean_p, mean_y = sums.p / n, sums.y / n
    within = (sums.pp - sums.p * mean_p) - 2 * (sums.py - sums.p * mean_y)
    return {
        "ece": np.abs(sums.p - sums.y).sum(axis=1) / total,
        "brier": (sums.pp - 2 * sums.py + sums.y).sum(axis=1) / total,
        "reliability": (sums.n * (mean_p - mean_y) ** 2).sum(axis=1) / total,
        "resolution": (sums.n * (mean_y - share[:, np.newaxis]) ** 2).sum(axis=1) / total,
        "uncertainty": share * (1 - share),
        "within": within.sum(axis=1) / total,
    }


def _draw(sums: _Sums, draws: int, seed: int) -> dict[str, Floats]:
    """(draws,) values with the units drawn again; the same draws as of `bootstrap`."""
    parts = []
    for start in range(0, draws, _CHUNK_DRAWS):
        weights = draw_weights(len(sums.n), seed, range(start, min(start + _CHUNK_DRAWS, draws)))
        parts.append(_take(_Sums(*(weights @ part for part in sums))))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _draw_chance(sums: _Sums, draws: int, seed: int) -> Floats:
    """(draws,) ECE with the sign of each unit's residuals drawn at random."""
    residuals = sums.p - sums.y
    signs = np.random.default_rng(seed).integers(0, 2, (draws, len(residuals))) * 2.0 - 1.0
    return np.asarray(np.abs(signs @ residuals).sum(axis=1) / sums.n.sum())


class _Context(NamedTuple):
    """What the estimates of one diagram share; `by_chance`: whether chance alone gives as large an ECE."""

    unit: str
    units: int
    level: float
    by_chance: bool


_BIASED = ("ece", "reliability", "resolution")


def _estimate(name: str, value: float, drawn: Floats | None, context: _Context) -> Estimate:
    method, low, high, reason = "percentile cluster bootstrap", None, None, None
    if drawn is None:
        reason = f"one {context.unit} only: an interval needs at least two"
    elif np.ptp(drawn) <= _SAME:
        reason = "every draw gave the same: a bootstrap cannot bound it"
    else:
        method += f", {drawn.size} draws"
        low, high = find_percentile_ends(drawn, expand_tail(context.units, context.level))
        if name in _BIASED:
            bias = float(drawn.mean()) - value
            low, high = max(low - 2 * bias, 0.0), max(high - 2 * bias, 0.0)
            method += f", shifted by twice its bias; the value is too high by about {bias:.2g}"
            if context.by_chance and name != "resolution":
                low, method = 0.0, f"{method}; chance alone gives as much"
        # A value too high itself, or the largest there is (uncertainty of two equal classes), may lie beyond the draws;
        # an interval that leaves its own value out would only confuse.
        low, high = min(low, value), max(high, value)
    return Estimate(
        value=value,
        low=low,
        high=high,
        method=method,
        unit=context.unit,
        n=context.units,
        level=context.level,
        reason=reason,
    )


def _describe_bins(sums: _Sums, edges: Floats, unit: str, level: float) -> tuple[ReliabilityBin, ...]:
    found = []
    for place in range(len(edges) - 1):
        slices = float(sums.n[:, place].sum())
        if slices == 0:
            continue
        observed = estimate_clustered_proportion(sums.y[:, place], sums.n[:, place], unit=unit, level=level)
        found.append(
            ReliabilityBin(
                low=float(edges[place]),
                high=float(edges[place + 1]),
                slices=int(slices),
                mean_prob=float(sums.p[:, place].sum() / slices),
                observed=observed,
            )
        )
    return tuple(found)
