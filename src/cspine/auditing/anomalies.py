"""One pass over the pixels of a set: a row of plain measures a slice, and a thumbnail of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from cspine.auditing.findings import Finding, Severity
from cspine.core.errors import ImageError
from cspine.core.machine import count_cpus
from cspine.core.types import GROUP_NAMES, plural
from cspine.data.manifest import Manifest

THUMBNAIL_PX = 32
SCHEMA = pl.Schema(
    {
        "slice_id": pl.String,
        "unreadable": pl.String,
        "mean": pl.Float64,
        "std": pl.Float64,
        "levels": pl.Int32,
        "entropy_bits": pl.Float64,
        "black_fraction": pl.Float64,
        "top_fraction": pl.Float64,
        "ring_median": pl.Float64,
        "centre_mean": pl.Float64,
        "sharpness": pl.Float64,
        "border_fraction": pl.Float64,
        "border_value": pl.Float64,
        "glyphs": pl.Int32,
    }
)
"""What is measured, all on uint8 values 0..255. Null where the file is `unreadable`, which then holds the reason.

levels: distinct grey levels. entropy_bits: of the histogram, 0..8. black_fraction: at 0; top_fraction: at the
largest level that is there; 0..1.
ring_median: of the outermost pixels. centre_mean: of the middle ninth. sharpness: standard deviation of the Laplacian.
border_fraction: area of a frame of one value around the picture, 0..1; border_value: that value. glyphs: shapes like
letters in a row near an edge (see `count_glyphs`).
"""

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Measurements:
    """table: `SCHEMA`, in the order of the manifest. thumbnails: (n, 32, 32) uint8, zeros where unreadable."""

    table: pl.DataFrame
    thumbnails: npt.NDArray[np.uint8]


def measure_slices(manifest: Manifest, progress: Progress | None = None) -> Measurements:
    """Measure every slice of a manifest; files that cannot be read any more are rows with a reason.

    Args:
        manifest: The set.
        progress: Told (done, total) as files are read.
    """
    count = len(manifest)
    thumbnails = np.zeros((count, THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
    rows: list[dict[str, float | int | str | None]] = []

    def measure(row: int) -> dict[str, float | int | str | None]:
        try:
            pixels = np.asarray(manifest.read_row(row).pixels, np.uint8)
        except ImageError as error:
            return {"unreadable": error.what}
        thumbnails[row] = shrink_pixels(pixels)
        return dict(measure_pixels(pixels))

    with ThreadPoolExecutor(count_cpus()) as pool:
        for start in range(0, count, _CHUNK):
            rows += pool.map(measure, range(start, min(start + _CHUNK, count)))
            if progress is not None:
                progress(len(rows), count)
    table = pl.DataFrame(rows, schema={name: kind for name, kind in SCHEMA.items() if name != "slice_id"})
    ids = pl.Series("slice_id", manifest.slice_ids, dtype=pl.String)
    return Measurements(table.insert_column(0, ids), thumbnails)


def shrink_pixels(pixels: Pixels) -> Pixels:
    """(H, W) uint8 -> (32, 32) uint8, as the baselines see a slice.

    A triangular filter as wide as the reduction: boxes that do not overlap (cv2.INTER_AREA) make thumbnails jump when a
    slice moves by a part of a box, and a nearest neighbour then hangs on that.
    """
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), np.uint8)


def measure_pixels(pixels: Pixels) -> dict[str, float | int]:
    """The measures of one (H, W) uint8 slice; see `SCHEMA`."""
    histogram = np.bincount(pixels.ravel(), minlength=256)
    share = histogram / pixels.size
    used = share[share > 0]
    mean = float(share @ np.arange(256))
    std = math.sqrt(max(float(share @ np.arange(256) ** 2) - mean**2, 0.0))
    height, width = pixels.shape
    ring = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    centre = pixels[height // 3 : 2 * height // 3 + 1, width // 3 : 2 * width // 3 + 1]
    border, value = _measure_border(pixels)
    return {
        "mean": mean,
        "std": std,
        "levels": int(np.count_nonzero(histogram)),
        "entropy_bits": float(-(used * np.log2(used)).sum()),
        "black_fraction": float(share[0]),
        "top_fraction": float(used[-1]),
        "ring_median": float(np.median(ring)),
        "centre_mean": float(centre.mean()),
        "sharpness": float(cv2.Laplacian(pixels, cv2.CV_32F).std()),
        "border_fraction": border,
        "border_value": value,
        "glyphs": count_glyphs(pixels),
    }


def _measure_border(pixels: Pixels) -> tuple[float, float]:
    """Area of the frame of whole rows and columns of the corner's value, 0..1, and that value.

    A frame has straight inner edges on all four sides; a picture whose background happens to be even has none,
    because the body's outline is round: so the inner edge must jump over most of its length.
    """
    value = int(pixels[0, 0])
    other = pixels != value
    rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
    if not len(rows):
        return 1.0, float(value)
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inner = other[top:bottom, left:right]
    edges = [inner[0], inner[-1], inner[:, 0], inner[:, -1]]
    trims = (top > 0, bottom < pixels.shape[0], left > 0, right < pixels.shape[1])
    straight = [edge.mean() > 0.6 for edge, trimmed in zip(edges, trims, strict=True) if trimmed]
    if len(straight) < 2 or not all(straight):
        return 0.0, float(value)
    return 1.0 - inner.size / pixels.size, float(value)


def count_glyphs(pixels: Pixels) -> int:
    """Count shapes like letters: bright, thin, alone on black, in a row of at least four near an edge.

    Args:
        pixels: (H, W) uint8.

    Returns:
        How many such shapes there are; 0 for a slice without burnt-in text. Letters of 5 to 40 px at 512 px are found;
        text over the body is not.
    """
    height, width = pixels.shape
    limit = max(128, int(0.75 * pixels.max()))
    count, _, stats, _ = cv2.connectedComponentsWithStats((pixels >= limit).astype(np.uint8), connectivity=8)
    if count < 5 or count > 4000:
        return 0
    left, top, wide, high, area = stats[1:].T
    scale = max(height, width) / 512
    near_edge = (top < 0.15 * height) | (top + high > 0.85 * height)
    near_edge |= (left < 0.2 * width) | (left + wide > 0.8 * width)
    letter = (
        (high >= max(4, 5 * scale))
        & (high <= 40 * scale)
        & (wide <= 1.6 * high)
        & (area <= 0.75 * wide * high)
    )
    boxes = [
        stats[1:][index][:4]
        for index in np.flatnonzero(near_edge & letter)
        if _stands_on_black(pixels, stats[1:][index])
    ]
    return _count_in_rows(np.array(boxes)) if len(boxes) >= _ROW_OF else 0


_ROW_OF = 4


def _stands_on_black(pixels: Pixels, box: npt.NDArray[np.int32]) -> bool:
    left, top, wide, high = (int(value) for value in box[:4])
    gap = 2
    around = pixels[max(0, top - gap) : top + high + gap, max(0, left - gap) : left + wide + gap]
    return bool(np.median(around) < 40 and around[0].mean() < 60 and around[-1].mean() < 60)


def _count_in_rows(boxes: npt.NDArray[np.int32]) -> int:
    """How many boxes stand in a row of at least four: same height and base line, close to each other."""
    found = 0
    base, high = boxes[:, 1] + boxes[:, 3], boxes[:, 3]
    left_over = set(range(len(boxes)))
    while left_over:
        first = min(left_over)
        same = [
            index
            for index in left_over
            if abs(int(base[index]) - int(base[first])) <= max(2, 0.25 * high[first])
            and abs(int(high[index]) - int(high[first])) <= max(2, 0.35 * high[first])
        ]
        same.sort(key=lambda index: int(boxes[index, 0]))
        gaps = np.diff(boxes[same, 0])
        if len(same) >= _ROW_OF and np.median(gaps) <= 3 * high[first]:
            found += len(same)
        left_over -= set(same)
    return found


# Anomalies: slices and properties of a set that a person should look at before any training.
#
# Works on a table of slices: a manifest's columns, `cspine.auditing.anomalies` and `family`, which copies share.


SATURATED_FRACTION = 0.3
BORDER_FRACTION = 0.05
RARE_FRACTION = 0.05
IMBALANCE = 4.0
SMALL_SPLIT = 0.05
LARGE_GROUP = 1 / 3
OUTLIER_SPREADS = 8.0
FAR_FROM_CENTRE = 6.2
INVERTED_FROM, INVERTED_GAIN = 3.0, 0.5

BLANK = (pl.col("std") < 2) | (pl.col("levels") <= 3)
"""Slices with next to no content; null where a slice could not be read."""

_REFERENCE_SLICES = 2000
_NEIGHBOURS = 5
_DESCRIBED_AT_ONCE = 4096  # thumbnails; the arrays in between take 30 kB for each
_MIN_FOR_OUTLIERS = 30
_SMALLEST_SPREAD, _LARGEST_SCORE = 0.03, 20.0


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
        (pl.col("top_fraction") > SATURATED_FRACTION) & (pl.col("levels") > 3),
        f"have more than {SATURATED_FRACTION:.0%} of their pixels at their largest value: what lay above it is lost",
    ),
    _Rule(
        "inverted",
        "warning",
        (pl.col("ring_median") > 200) & (pl.col("centre_mean") < pl.col("ring_median") - 40),
        "look inverted: bright edges around a darker middle, or a negative that is much more like the set",
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
    _Rule(
        "unlike-the-set",
        "warning",
        pl.lit(False),
        "look unlike all others: another modality, another part of the body, or a damaged picture",
    ),
)


def find_anomalies(table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8]) -> list[Finding]:
    """All anomalies of single slices and of the set.

    Args:
        table: The manifest's columns, the measures, `family`.
        thumbnails: (n, 32, 32) uint8, in the order of the rows.
    """
    found: list[Finding] = []
    strange = find_strange(table, thumbnails)
    for rule in _RULES:
        broken = rule.broken.fill_null(False)
        if rule.code in strange.columns:
            broken |= pl.lit(strange[rule.code])
        rows = table.filter(broken)
        if rows.height:
            found.append(_make_finding(rule.code, rule.severity, rule.text, rows, table))
    return [
        *found,
        *_find_rare_kinds(table),
        *find_label_conflicts(table),
        *_find_imbalance(table),
        *_find_size_imbalance(table),
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


def find_strange(table: pl.DataFrame, thumbnails: npt.NDArray[np.uint8]) -> pl.DataFrame:
    """(n, 2) of bool: "unlike-the-set" (another modality or part of the body, a damaged picture) and "inverted".

    Each slice is a histogram and a radial profile, which know neither turns nor flips. One is unlike the set by its
    distance to the fifth nearest of up to 2,000 other distinct slices, or, as alien slices may be many and vouch for
    each other, by its distance from the set's medians. It is inverted where its negative lies much nearer to these.
    Copies do not vouch for each other: one a family counts. Fewer than 30 distinct slices say nothing.
    """
    nothing = np.zeros(table.height, np.bool_)
    strange = {"unlike-the-set": nothing, "inverted": nothing.copy()}
    readable = table["unreadable"].is_null().to_numpy()
    families = table["family"].to_numpy()
    known = np.flatnonzero(readable)
    firsts = known[np.unique(families[known], return_index=True)[1]]
    if len(firsts) < _MIN_FOR_OUTLIERS:
        return pl.DataFrame(strange)
    features = _describe_thumbnails(thumbnails)
    reference = np.random.default_rng(0).permutation(firsts)[:_REFERENCE_SLICES]
    index = NearestNeighbors(n_neighbors=_NEIGHBOURS + 1).fit(features[reference])
    distances, places = index.kneighbors(features[known])
    own = families[reference[places]] == families[known][:, None]
    # Without its own family, the fifth of the others: the last but one, or the last where its own is among them.
    fifth = np.where(own.any(axis=1), distances[:, -1], distances[:, -2])
    logs = np.log(np.maximum(fifth, 1e-6))
    spread = 1.4826 * np.median(np.abs(logs - np.median(logs)))
    lonely = logs > np.median(logs) + OUTLIER_SPREADS * max(float(spread), 0.05)
    distance = _measure_from_centre(features[known], features[reference])
    negative = _measure_from_centre(_describe_thumbnails(255 - thumbnails[known]), features[reference])
    usual = np.quantile(_measure_from_centre(features[reference], features[reference]), 0.99)
    inverted = (distance > INVERTED_FROM) & (negative < np.minimum(INVERTED_GAIN * distance, usual))
    # The negative of a slice that is mostly white may pass for an ordinary one.
    inverted &= (table["top_fraction"].to_numpy() <= SATURATED_FRACTION)[known]
    strange["inverted"][known] = inverted
    strange["unlike-the-set"][known] = (lonely | (distance > FAR_FROM_CENTRE)) & ~inverted
    return pl.DataFrame(strange)


def _measure_from_centre(
    features: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(n,) root mean squares of robust z scores, each cut at 20, about the medians of the reference."""
    centre = np.median(reference, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(reference - centre), axis=0), _SMALLEST_SPREAD)
    scores = np.minimum(np.abs(features - centre) / spread, _LARGEST_SCORE)
    return np.asarray(np.sqrt((scores**2).mean(axis=1)), np.float32)


def _describe_thumbnails(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, 33): cumulative histogram of 16 bins, radial profile of 16 rings, and roughness, each of the order of 1."""
    starts = range(0, max(1, len(thumbnails)), _DESCRIBED_AT_ONCE)
    return np.concatenate([_describe_few(thumbnails[start : start + _DESCRIBED_AT_ONCE]) for start in starts])


def _describe_few(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
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
            text=f"{both.height:,} {'slice stands' if both.height == 1 else 'slices stand'} in the set as copies with "
            f"different labels ({rows.height:,} files): at least one label of each is wrong.",
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


def _find_size_imbalance(table: pl.DataFrame) -> list[Finding]:
    """Splits that are tiny beside the largest, and splits that are mostly one patient, series or slice."""
    found = []
    counts = dict(table["split"].drop_nulls().value_counts().iter_rows())
    largest = max(counts, key=lambda split: counts[split], default="")
    for split, count in sorted(counts.items()):
        if count < SMALL_SPLIT * counts[largest]:
            text = f"Split {split} has {count:,} slices, {largest} {counts[largest]:,}: little can be said on {split}."
            found.append(_note_size(text, split=split, slices=count, largest=counts[largest]))
        part = table.filter(pl.col("split") == split)
        column = next(
            name
            for name in ("patient_id", "series_uid", "family")
            if name == "family" or not part[name].null_count()
        )
        sizes = part[column].value_counts()["count"]
        share = float(sizes.max()) / count  # type: ignore[arg-type]
        if len(sizes) > 1 and share > max(LARGE_GROUP, 2 / len(sizes)):
            word = {"family": "distinct slice"}.get(column, GROUP_NAMES.get(column, column))
            text = f"One of the {len(sizes):,} {plural(word)} of {split} has {share:.0%} of its slices."
            found.append(_note_size(text, split=split, groups=len(sizes), share=round(share, 4)))
    return found


def _note_size(text: str, **evidence: str | int | float) -> Finding:
    return Finding(code="size-imbalance", severity="info", text=text, evidence=dict(evidence))
