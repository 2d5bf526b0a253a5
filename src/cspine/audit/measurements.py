"""One pass over the pixels of a set: a row of plain measures a slice, and a thumbnail of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from cspine.data.manifest import Manifest
from cspine.errors import ImageError
from cspine.machine import count_cpus

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
