"""Metadata that predicts the class: properties of the files and of the scan, none of which is a fracture."""

from __future__ import annotations

from collections.abc import Mapping

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
_KNOWN_FRACTION = 0.5
"""A number that is known for fewer slices than this is not scored; a category has to be known for all."""


def score_metadata(table: pl.DataFrame, unit: str, seed: int = 0) -> tuple[MetadataScore, ...]:
    """The AUROC of every property that varies, with its interval over units; the strongest first.

    Args:
        table: Labelled, readable slices: the manifest's columns and the measures.
        unit: The column of what is independent, with no nulls; see `scoring.choose_unit_column`.
        seed: Of the bootstrap.

    Returns:
        A score a property. A number is scored in the direction that does better on this very set, and a category by
        the share of fractures among its slices; both flatter a little, so only a whole interval above 0.6 is a finding.
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
        rate = pl.col("label").mean().over("kind")
        values = table.with_columns(kind=kind).select(value=rate.cast(pl.Float64), label="label", unit=unit)
        found.append(_score(name, words, values, seed))
    return tuple(sorted(found, key=lambda score: -(score.auroc.value or 0)))


def _score(name: str, words: str, values: pl.DataFrame, seed: int) -> MetadataScore:
    auroc = estimate_scores(values, ("auroc",), seed=seed, draws=AUDIT_DRAWS)["auroc"]
    larger = auroc.value is None or auroc.value >= 0.5
    if name in _CATEGORIES:
        direction = f"some values of {words} have more fractures"
    else:
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
