"""Anomalies: slices and properties of a set that a person should look at before any training.

Works on a table of slices: a manifest's columns, `cspine.audit.measurements` and `family`, which copies share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.neighbors import NearestNeighbors

from cspine.audit.findings import Finding, Severity

SATURATED_FRACTION = 0.3
BORDER_FRACTION = 0.05
RARE_FRACTION = 0.05
IMBALANCE = 4.0
OUTLIER_SPREADS = 8.0

BLANK = (pl.col("std") < 2) | (pl.col("levels") <= 3)
"""Slices with next to no content; null where a slice could not be read."""

_REFERENCE_SLICES = 2000
_NEIGHBOURS = 5
_MIN_FOR_OUTLIERS = 30


@dataclass(frozen=True)
class _Rule:
    """Slices for which `broken` holds are one finding; `text` follows their number."""

    code: str
    severity: Severity
    broken: pl.Expr
    text: str


_RULES = (
    _Rule("unreadable", "warning", pl.col("unreadable").is_not_null(), "cannot be read"),
    _Rule("blank", "warning", BLANK, "have next to no content"),
    _Rule(
        "saturated",
        "warning",
        (pl.col("white_fraction") > SATURATED_FRACTION) & (pl.col("levels") > 3),
        f"have more than {SATURATED_FRACTION:.0%} of their pixels at the largest value: what lay above it is lost",
    ),
    _Rule(
        "inverted",
        "warning",
        (pl.col("ring_median") > 200) & (pl.col("centre_mean") < pl.col("ring_median") - 40),
        "look inverted: their edges are bright and their middle is darker",
    ),
    _Rule("burnt-in-text", "warning", pl.col("glyphs") > 0, "have shapes like burnt-in text near an edge"),
    _Rule(
        "border",
        "warning",
        (pl.col("border_fraction") > BORDER_FRACTION) & (pl.col("border_fraction") < 1),
        "have a frame of one grey value around the picture",
    ),
    _Rule(
        "colour",
        "warning",
        pl.col("channels_differ"),
        "have colour: their channels differ, and only luma is used",
    ),
    _Rule(
        "odd-shape",
        "warning",
        ~(pl.col("width_px") / pl.col("height_px")).is_between(0.5, 2.0),
        "are more than twice as long as they are wide",
    ),
)


def find_anomalies(table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8]) -> list[Finding]:
    """All anomalies of single slices and of the set.

    Args:
        table: The manifest's columns, the measures, `family`.
        thumbnails: (n, 32, 32) uint8, in the order of the rows.
    """
    found = []
    for rule in _RULES:
        rows = table.filter(rule.broken.fill_null(False))
        if rows.height:
            found.append(_make_finding(rule.code, rule.severity, rule.text, rows, table))
    return [
        *found,
        *_find_rare_kinds(table),
        *_find_outliers(table, thumbnails),
        *find_label_conflicts(table),
        *_find_imbalance(table),
    ]


def _make_finding(
    code: str, severity: Severity, text: str, rows: pl.DataFrame, table: pl.DataFrame
) -> Finding:
    counts = {name: int((rows["label"] == value).sum()) for name, value in (("fracture", 1), ("normal", 0))}
    return Finding(
        code=code,
        severity=severity,
        text=f"{rows.height:,} of {table.height:,} slices {text}.",
        evidence={"slices": rows.height, "distinct_slices": rows["family"].n_unique(), **counts},
        files=tuple(rows["path"]),
    )


def _find_rare_kinds(table: pl.DataFrame) -> list[Finding]:
    """Sizes and depths that only a small part of the set has."""
    found = []
    kinds = (
        ("odd-size", pl.format("{}×{} pixels", "width_px", "height_px"), "sizes"),
        ("odd-depth", pl.format("{} of {} bits", "mode", "bits_stored"), "pixel formats"),
    )
    for code, kind, noun in kinds:
        named = table.with_columns(kind=kind)
        counts = named["kind"].value_counts(sort=True)
        if counts.height < 2:
            continue
        rare = counts.filter(pl.col("count") < RARE_FRACTION * table.height)["kind"].implode()
        rows = named.filter(pl.col("kind").is_in(rare))
        shown = "; ".join(f"{name}: {count:,}" for name, count in counts.head(5).iter_rows())
        found.append(
            Finding(
                code=code,
                severity="info",
                text=f"The set has {counts.height} {noun} ({shown}{'; ...' if counts.height > 5 else ''}).",
                evidence={"kinds": {name: count for name, count in counts.head(50).iter_rows()}},
                files=tuple(rows["path"]),
            )
        )
    return found


def _find_outliers(table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8]) -> list[Finding]:
    """Slices unlike all others: another modality, another part of the body, a damaged picture.

    Each slice is a histogram and a radial profile, which know neither turns nor flips, and its distance is that to
    the fifth nearest of up to 2,000 other distinct slices. Copies do not vouch for each other: one a family counts.
    """
    readable = table["unreadable"].is_null().to_numpy()
    families = table["family"].to_numpy()
    known = np.flatnonzero(readable)
    firsts = known[np.unique(families[known], return_index=True)[1]]
    if len(firsts) < _MIN_FOR_OUTLIERS:
        return []
    features = _describe_thumbnails(thumbnails)
    reference = np.random.default_rng(0).permutation(firsts)[:_REFERENCE_SLICES]
    index = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1).fit(features[reference])
    distances, places = index.kneighbors(features[known])
    own = families[reference[places]] == families[known][:, None]
    # Without its own family, the fifth of the others: the last but one, or the last where its own is among them.
    fifth = np.where(own.any(axis=1), distances[:, -1], distances[:, -2])
    logs = np.log(np.maximum(fifth, 1e-6))
    spread = 1.4826 * np.median(np.abs(logs - np.median(logs)))
    far = known[logs > np.median(logs) + OUTLIER_SPREADS * max(float(spread), 0.05)]
    if not len(far):
        return []
    text = "look unlike all others: another modality, another part of the body, or a damaged picture"
    return [_make_finding("unlike-the-set", "warning", text, table[far.tolist()], table)]


def _describe_thumbnails(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, 33): cumulative histogram of 16 bins, radial profile of 16 rings, and roughness, each of the order of 1."""
    count, size, _ = thumbnails.shape
    flat = thumbnails.reshape(count, -1)
    bins = (flat >> 4).astype(np.int64) + 16 * np.arange(count)[:, None]
    histogram = np.bincount(bins.ravel(), minlength=16 * count).reshape(count, 16) / flat.shape[1]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    ring = np.minimum((np.hypot(x, y) / (size / 2) * 16).astype(int), 15).ravel()
    members = (ring[:, None] == np.arange(16)) / np.bincount(ring, minlength=16)
    signed = thumbnails.astype(np.float32)
    steps = np.abs(np.diff(signed, axis=1)).mean(axis=(1, 2)) + np.abs(np.diff(signed, axis=2)).mean(
        axis=(1, 2)
    )
    roughness = steps / np.maximum(flat.std(axis=1), 1)
    return np.hstack([histogram.cumsum(axis=1), flat @ members / 255, roughness[:, None]]).astype(np.float32)


def find_label_conflicts(table: pl.DataFrame) -> list[Finding]:
    """Copies of one slice with different labels: at least one of them is wrong."""
    labelled = table.filter(pl.col("label").is_not_null())
    both = (
        labelled.group_by("family")
        .agg(pl.col("label").n_unique().alias("labels"))
        .filter(pl.col("labels") > 1)
    )
    if both.is_empty():
        return []
    rows = labelled.filter(pl.col("family").is_in(both["family"].implode()))
    return [
        Finding(
            code="label-conflict",
            severity="invalidates",
            text=f"{both.height:,} slices stand in the set as copies with different labels ({rows.height:,} files): at "
            f"least one label of each is wrong.",
            evidence={"families": both.height, "slices": rows.height},
            files=tuple(rows.sort("family")["path"]),
        )
    ]


def _find_imbalance(table: pl.DataFrame) -> list[Finding]:
    found = []
    splits: Sequence[str | None] = table["split"].unique(maintain_order=True).to_list()
    for split in splits:
        part = table.filter(pl.col("split").eq_missing(split))
        positives, negatives = int((part["label"] == 1).sum()), int((part["label"] == 0).sum())
        if not positives and not negatives:
            continue
        larger, smaller = max(positives, negatives), min(positives, negatives)
        if larger > IMBALANCE * smaller:
            found.append(
                Finding(
                    code="class-imbalance",
                    severity="warning" if smaller == 0 else "info",
                    text=f"{'All slices' if split is None else f'Split {split}'}: {positives:,} fracture and "
                    f"{negatives:,} normal. Saying always the more frequent one is right in "
                    f"{larger / (larger + smaller):.1%}.",
                    evidence={"split": split, "fracture": positives, "normal": negatives},
                )
            )
    return found
