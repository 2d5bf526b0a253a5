"""Pictures of many slices for a person to look at: what preprocessing does, and which fractures were missed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cspine.files import atomic_file
from cspine.reporting.results import ComparisonResults

TILE_PX = 160
_GAP_PX = 8
_TEXT_PX = 22
_INK, _PAPER = 30, 255

Pixels = npt.NDArray[np.uint8]


def draw_contact_sheet(
    before: Sequence[Pixels], after: Sequence[Sequence[Pixels]], captions: Sequence[str], path: Path
) -> Path:
    """Draw one row a slice: as it lies in the file, after the recipe, then augmented variants.

    Args:
        before: (H, W) uint8 slices; their sizes may differ.
        after: For each, the preprocessed slice and its variants, equally many for all.
        captions: One a slice, written under its row; its end is kept where it is too long.
        path: A PNG, written atomically.

    Returns:
        `path`.
    """
    variants = len(after[0]) - 1
    columns = ["file", "recipe", *(f"augmented {number + 1}" for number in range(variants))]
    width = len(columns) * (TILE_PX + _GAP_PX) + _GAP_PX
    rows = [_draw_header(columns, width)]
    for raw, versions, caption in zip(before, after, captions, strict=True):
        rows += [_draw_tiles([raw, *versions], width), _draw_text(caption[-width // 8 :], width)]
    return _write_png(np.vstack(rows), path)


def draw_strip(tiles: Sequence[Pixels]) -> Pixels:
    """One slice in several versions, (H, W) uint8 each, side by side."""
    return _draw_tiles(tiles, len(tiles) * (TILE_PX + _GAP_PX) + _GAP_PX)


def draw_corruption_sheet(rows: Sequence[tuple[str, Sequence[Pixels], Sequence[str]]], path: Path) -> Path:
    """Draw one row a corruption: its name, a slice at severities 0 to 5, and its strength under each.

    Args:
        rows: Of each its name, (H, W) uint8 versions of one slice, and as many captions.
        path: A PNG, written atomically.

    Returns:
        `path`.
    """
    width = len(rows[0][1]) * (TILE_PX + _GAP_PX) + _GAP_PX
    parts: list[Pixels] = []
    for name, tiles, captions in rows:
        parts += [_draw_text(name, width), draw_strip(tiles), _draw_header(captions, width)]
    return _write_png(np.vstack(parts), path)


def draw_missed(results: ComparisonResults, path: Path) -> Path | None:
    """Draw the fractures that each model missed most clearly, a row a model, as the network saw them.

    Args:
        results: What a comparison found; its samples are shown.
        path: A PNG, written atomically.

    Returns:
        `path`; None where no sample is a missed fracture, and nothing is written.
    """
    rows: list[Pixels] = []
    missed = [sample for sample in results.samples if sample.outcome == "fn"]
    count = max((sum(other.model == sample.model for other in missed) for sample in missed), default=0)
    width = count * (TILE_PX + _GAP_PX) + _GAP_PX
    for model in dict.fromkeys(sample.model for sample in missed):
        shown = [sample for sample in missed if sample.model == model]
        tiles = [_read_png(sample.pixels_png) for sample in shown]
        captions = [f"p = {sample.prob:.3f}" for sample in shown]
        rows += [_draw_text(model, width), _draw_tiles(tiles, width), _draw_header(captions, width)]
    return _write_png(np.vstack(rows), path) if rows else None


def _read_png(text: str) -> Pixels:
    content = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE), np.uint8)


def _write_png(pixels: Pixels, path: Path) -> Path:
    _, png = cv2.imencode(".png", pixels)
    with atomic_file(path) as temporary:
        temporary.write_bytes(png.tobytes())
    return Path(path)


def _draw_header(columns: Sequence[str], width: int) -> Pixels:
    row = np.full((_TEXT_PX + _GAP_PX, width), _PAPER, np.uint8)
    for place, name in enumerate(columns):
        _write(row, name, _GAP_PX + place * (TILE_PX + _GAP_PX), 0.45)
    return row


def _draw_tiles(tiles: Sequence[Pixels], width: int) -> Pixels:
    row = np.full((TILE_PX, width), _PAPER, np.uint8)
    for place, pixels in enumerate(tiles):
        left = _GAP_PX + place * (TILE_PX + _GAP_PX)
        row[:, left : left + TILE_PX] = _fit(pixels)
    return row


def _fit(pixels: Pixels) -> Pixels:
    """Scale to the tile with its shape kept; what is left over is black."""
    height, width = pixels.shape
    scale = TILE_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    tile = np.zeros((TILE_PX, TILE_PX), np.uint8)
    top, left = (TILE_PX - small.shape[0]) // 2, (TILE_PX - small.shape[1]) // 2
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile


def _draw_text(text: str, width: int) -> Pixels:
    row = np.full((_TEXT_PX, width), _PAPER, np.uint8)
    _write(row, text, _GAP_PX, 0.38)
    return row


def _write(row: Pixels, text: str, left_px: int, size: float) -> None:
    printable = text.encode("ascii", "replace").decode()  # OpenCV's built-in font has no other letters
    cv2.putText(row, printable, (left_px, 15), cv2.FONT_HERSHEY_SIMPLEX, size, (_INK,), 1, cv2.LINE_AA)
