"""Metadata that predicts the class: properties of the files and of the scan, none of which is a fracture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from cspine.audit.findings import Finding, MetadataScore, Severity
from cspine.audit.scoring import AUDIT_DRAWS, estimate_scores
from cspine.evaluation.estimate import Estimate

WARN_ABOVE = 0.6
INVALIDATES_ABOVE = 0.9
"""An AUROC whose whole interval lies above these is a finding of that severity."""

_NUMBERS: Mapping[str, tuple[str, pl.Expr]] = {
    "file_bytes": ("file size", pl.col("file_bytes")),
    "pixels": ("number of pixels", pl.col("width_px").cast(pl.Int64) * pl.col("height_px")),
    "aspect": ("width to height", pl.col("width_px") / pl.col("height_px")),
    "bits_stored": ("bits stored", pl.col("bits_stored")),
    "position": ("place in the series", pl.col("position")),
    "place": (
        "relative place in the series",
        (pl.col("position").rank("dense") - 1).over("series_uid")
        / (pl.col("position").n_unique() - 1).over("series_uid"),
    ),
    "mean": ("mean intensity", pl.col("mean")),
    "std": ("contrast (standard deviation)", pl.col("std")),
    "sharpness": ("sharpness", pl.col("sharpness")),
}
_CATEGORIES: Mapping[str, tuple[str, pl.Expr]] = {
    "mode": ("pixel format", pl.col("mode")),
    "file_type": (
        "file type",
        pl.col("path").str.extract(r"\.([^./]+)$").str.to_lowercase().fill_null("none"),
    ),
    "series_uid": ("series", pl.col("series_uid")),
}
_SHUFFLES, _HIGHEST_CHANCE = 20, 0.99
_KNOWN_FRACTION = 0.5
"""A number that is known for fewer slices than this is not scored; a category has to be known for all."""


def score_metadata(table: pl.DataFrame, unit: str, seed: int = 0) -> tuple[MetadataScore, ...]:
    """The AUROC of every property that varies, with its interval over units; the strongest first.

    Args:
        table: Labelled, readable slices: the manifest's columns and the measures.
        unit: The column of what is independent, with no nulls; see `scoring.choose_unit_column`.
        seed: Of the bootstrap and of the swaps.

    Returns:
        A score a property. A number is scored in the direction that does better on this very set, which flatters a
        little, so only a whole interval above 0.6 is a finding. A category is scored by the share of fractures among
        its slices. Many small series would tell any labels in that way, so what swapped labels give is taken for
        chance: that becomes 0.5, and 1 stays 1.
        A category whose values are as fine as the units themselves is left out: it is one with them.
    """
    found = []
    for name, (words, expression) in _NUMBERS.items():
        values = table.select(value=expression.cast(pl.Float64), label="label", unit=unit).drop_nulls()
        enough = values.height >= _KNOWN_FRACTION * table.height and values["label"].n_unique() == 2
        if enough and values["value"].n_unique() > 1:
            found.append(_score(name, words, values, seed))
    units = table[unit].n_unique()
    for name, (words, expression) in _CATEGORIES.items():
        kind = table.select(kind=expression)["kind"]
        if kind.null_count() or kind.n_unique() < 2 or kind.n_unique() > units / 2 or name == unit:
            continue
        values = table.select(label="label", unit=unit).with_columns(kind=kind)
        found.append(_score_kind(name, words, values, seed))
    return tuple(sorted(found, key=lambda score: -(score.auroc.value or 0)))


def _score_kind(name: str, words: str, values: pl.DataFrame, seed: int) -> MetadataScore:
    """Score a category: `values` has label, unit and kind."""
    rated = values.with_columns(value=pl.col("label").mean().over("kind"))
    auroc = estimate_scores(rated, ("auroc",), seed=seed, draws=AUDIT_DRAWS)["auroc"]
    chance = _find_chance(values, seed)

    def correct(value: float | None) -> float | None:
        return None if value is None else max(0.0, 0.5 + 0.5 * (value - chance) / (1 - chance))

    update = {end: correct(getattr(auroc, end)) for end in ("value", "low", "high")}
    direction = f"some values of {words} have more fractures"
    return MetadataScore(name=name, direction=direction, auroc=auroc.model_copy(update=update))


def _find_chance(values: pl.DataFrame, seed: int) -> float:
    """The mean AUROC of the kinds' shares of fractures when labels are swapped: what any labels would give.

    Whole units swap, and the labels within each: so what is alike within units stays alike.
    """
    rows = values.sort("unit", maintain_order=True)
    kinds, units = (rows[name].rank("dense").to_numpy().astype(np.int64) - 1 for name in ("kind", "unit"))
    known = rows["label"].to_numpy()
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(_SHUFFLES):
        places = generator.permutation(units[-1] + 1)[units]
        labels = known[np.lexsort((generator.random(len(units)), places))]
        positives = np.bincount(kinds, labels)
        negatives = np.bincount(kinds) - positives
        order = np.argsort(positives / (positives + negatives))
        below = np.cumsum(negatives[order]) - negatives[order] / 2
        found.append(float(positives[order] @ below / (positives.sum() * negatives.sum())))
    return min(float(np.mean(found)), _HIGHEST_CHANCE)


def _score(name: str, words: str, values: pl.DataFrame, seed: int) -> MetadataScore:
    auroc = estimate_scores(values, ("auroc",), seed=seed, draws=AUDIT_DRAWS)["auroc"]
    larger = auroc.value is None or auroc.value >= 0.5
    direction = f"{'larger' if larger else 'smaller'} {words} in fractures"
    return MetadataScore(name=name, direction=direction, auroc=auroc if larger else _flip(auroc))


def _flip(auroc: Estimate) -> Estimate:
    """The AUROC of the negated score."""

    def turn(value: float | None) -> float | None:
        return None if value is None else 1 - value

    update = {"value": turn(auroc.value), "low": turn(auroc.high), "high": turn(auroc.low)}
    return auroc.model_copy(update=update)


def find_telling_metadata(scores: tuple[MetadataScore, ...]) -> list[Finding]:
    """A finding for each property whose AUROC is clearly above chance."""
    found = []
    for score in scores:
        low = score.auroc.low
        if low is None or score.auroc.value is None or low <= WARN_ABOVE:
            continue
        severity: Severity = "invalidates" if low > INVALIDATES_ABOVE else "warning"
        found.append(
            Finding(
                code="metadata-predicts-class",
                severity=severity,
                text=f"The class goes with what is no fracture: {score.direction}, AUROC "
                f"{score.auroc.value:.3f} [{low:.3f}, {score.auroc.high or 1:.3f}].",
                evidence={
                    "property": score.name,
                    "auroc": score.auroc.value,
                    "low": low,
                    "high": score.auroc.high,
                },
            )
        )
    return found
