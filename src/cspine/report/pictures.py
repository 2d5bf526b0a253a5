"""Pictures of many slices for a person to look at: what preprocessing does, and which fractures were missed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from cspine.core.errors import InputError
from cspine.core.files import atomic_file
from cspine.models.header import LayerRow
from cspine.preprocess import Neighbours, Recipe, Resize, Window, Windows
from cspine.report.figures import add_axes, finish_figure, open_figure
from cspine.report.results import ComparisonResults

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


# Diagrams of the preprocessing way and the networks (paper figures 1 to 4), drawn from the real objects.


_WIDTH, _MARGIN = 6.2, 0.25
_LABEL = 0.32  # The strip left of the boxes that names their group.
_BOX, _PITCH = (3.5, 0.44), 0.66
_PILE = (0.08, 0.04, 0.0)
_OUTPUT, _LEARNED = _MARGIN + _LABEL + _BOX[0] + 0.28, _WIDTH - _MARGIN
_HEAD_ROOM, _FOOT_ROOM = 0.95, 0.15
_EDGE, _MUTED = "#5b6b82", "#595959"
_FILLS = {"pixels": "#e3ecf7", "backbone": "#f2f2f2", "head": "#fcecd3"}
_HEAD_LAYERS = ("linear", "dense", "output")


@dataclass(frozen=True, slots=True)
class _Box:
    """One step; what comes out of it and how much it learned stand beside. `group` chooses the colour."""

    name: str
    detail: str
    group: str
    output: str = ""
    learned: str = ""
    repeats: int = 1
    optional: bool = False


def draw_recipe(recipe: Recipe, path: Path) -> Path:
    """Draw a recipe's steps from the file to the network, the same bytes each time.

    Args:
        recipe: Its own steps and scale are drawn, with caching and augmentation where they happen.
        path: SVG or PNG by its suffix, written atomically.

    Raises:
        InputError: another suffix.
    """
    raw, detail = ("int16", "Hounsfield units") if recipe.domain == "hu" else ("uint8", "8-bit grey")
    height, width = recipe.size_px
    size, fixed = "H × W", f"{height} × {width}"
    scaled = f"{recipe.scale.channels} × {fixed}, float32"
    boxes = [_Box("CT slice", detail, "pixels", f"{size}, {raw}")]
    channels, kind = 1, raw
    for step in recipe.steps:
        if isinstance(step, Neighbours):
            channels *= step.count
        elif isinstance(step, Window | Windows):
            channels, kind = recipe.channels, "uint8"
        size = f"{step.height_px} × {step.width_px}" if isinstance(step, Resize) else size
        words = (
            str(step).removeprefix(step.kind).strip().replace("x", " × " if step.kind == "resize" else "x")
        )
        shape = size if channels == 1 else f"{channels} × {size}"
        boxes.append(_Box(step.kind, words, "pixels", f"{shape}, {kind}"))
    if recipe.channels > 1:
        fixed = f"{recipe.channels} × {fixed}"
    arithmetic, _, norm = str(recipe.scale).partition(", ")
    boxes += [
        _Box("cache", "kept on disk, read by every epoch", "pixels", f"{fixed}, uint8"),
        _Box("augment", "training only: rotation, flips, scale", "head", f"{fixed}, float32", optional=True),
        _Box("scale", arithmetic, "head", scaled),
    ]
    if norm:
        boxes.append(_Box("normalise", norm, "head", scaled))
    boxes.append(_Box("network", "logit of fracture", "head"))
    groups = {"pixels": "once a slice", "head": "on the device"}
    return _draw(boxes, groups, "Preprocessing", f"recipe {recipe.hash}", ("output", ""), path)


def draw_network(layers: Sequence[LayerRow], title: str, path: Path) -> Path:
    """Draw a network's layers from pixels to P(fracture), the same bytes each time.

    Args:
        layers: In the order of the flow, as `cspine.models.classifier.list_layers` gives them.
        title: Stands above.
        path: SVG or PNG by its suffix, written atomically.

    Raises:
        InputError: another suffix, or no layers.
    """
    if not layers:
        raise InputError("there are no layers to draw", where=title)
    boxes = [_Box("slice", "pixels 0 to 255", "pixels")]
    for layer in layers:
        group = "head" if layer.name in _HEAD_LAYERS else "pixels" if layer.name == "scale" else "backbone"
        kind = f"{layer.repeats} × {layer.kind}" if layer.repeats > 1 else layer.kind
        shape = " × ".join(str(size) for size in layer.output_shape)
        learned = f"{layer.parameters:,}" if layer.parameters else "–"
        boxes.append(_Box(layer.name, kind, group, shape, learned, layer.repeats))
    last = "softmax over normal, fracture" if layers[-1].name == "linear" else "sigmoid"
    boxes.append(_Box("P(fracture)", last, "head"))
    total = sum(layer.parameters for layer in layers)
    groups = {"pixels": "input", "backbone": "backbone", "head": "head"}
    return _draw(boxes, groups, title, f"{total:,} parameters", ("output", "parameters"), path)


def _draw(
    boxes: Sequence[_Box],
    groups: dict[str, str],
    title: str,
    subtitle: str,
    columns: tuple[str, str],
    path: Path,
) -> Path:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise InputError("a diagram is an SVG or a PNG", where=str(path), fix="end its name in .svg or .png")
    height = _HEAD_ROOM + len(boxes) * _PITCH - (_PITCH - _BOX[1]) + _FOOT_ROOM
    with open_figure(_WIDTH, height) as figure:
        axes = add_axes(figure, 0, 0, _WIDTH, height)
        axes.set_axis_off()
        axes.set(xlim=(0, _WIDTH), ylim=(height, 0))  # In inches, from the upper left.
        left = _MARGIN + _LABEL
        axes.text(left, 0.3, title, fontsize=13, weight="bold", va="center")
        axes.text(left, 0.56, subtitle, fontsize=8, va="center", color=_MUTED)
        for place, align, column in ((_OUTPUT, "left", columns[0]), (_LEARNED, "right", columns[1])):
            axes.text(place, 0.75, column, fontsize=8, weight="bold", va="center", ha=align)
        for place, box in enumerate(boxes):
            _draw_box(axes, box, _HEAD_ROOM + place * _PITCH)
            if place:
                _draw_arrow(axes, _HEAD_ROOM + place * _PITCH, _PILE[0] if box.repeats > 1 else 0.0)
        _draw_groups(axes, boxes, groups)
        return _save(figure, kind, title, boxes, path)


def _draw_box(axes: Axes, box: _Box, top: float) -> None:
    left, (width, height) = _MARGIN + _LABEL, _BOX
    # What is repeated looks like a pile.
    for shift in _PILE if box.repeats > 1 else (0.0,):
        axes.add_patch(
            FancyBboxPatch(
                (left + shift, top - shift), width, height,
                boxstyle="round,pad=0,rounding_size=0.08", facecolor=_FILLS[box.group], edgecolor=_EDGE,
                linewidth=0.9, linestyle="--" if box.optional else "-",
            )
        )  # fmt: skip
    middle = top + height / 2
    axes.text(left + width / 2, top + 0.14, box.name, ha="center", va="center", fontsize=9, weight="bold")
    axes.text(left + width / 2, top + 0.31, box.detail, ha="center", va="center", fontsize=7.5, color=_MUTED)
    axes.text(_OUTPUT, middle, box.output, va="center", fontsize=8)
    axes.text(_LEARNED, middle, box.learned, va="center", ha="right", fontsize=8)


def _draw_arrow(axes: Axes, top: float, pile: float) -> None:
    centre = _MARGIN + _LABEL + _BOX[0] / 2
    style = {"arrowstyle": "-|>", "color": _EDGE, "shrinkA": 0, "shrinkB": 0, "linewidth": 0.9}
    axes.annotate("", (centre, top - pile), (centre, top - (_PITCH - _BOX[1])), arrowprops=style)


def _draw_groups(axes: Axes, boxes: Sequence[_Box], groups: dict[str, str]) -> None:
    """A line with a name beside each run of boxes of one group."""
    for group, label in groups.items():
        places = [place for place, box in enumerate(boxes) if box.group == group]
        if places:
            top, bottom = (_HEAD_ROOM + place * _PITCH for place in (places[0], places[-1]))
            bottom += _BOX[1]
            axes.plot([_MARGIN + 0.2] * 2, [top, bottom], color=_EDGE, linewidth=1.2)
            middle = (top + bottom) / 2
            axes.text(_MARGIN + 0.07, middle, label, rotation=90, ha="center", va="center", color=_MUTED)


def _save(figure: Figure, kind: str, title: str, boxes: Sequence[_Box], path: Path) -> Path:
    with atomic_file(path) as temporary:
        if kind == "png":
            figure.savefig(temporary, format="png", dpi=150)
        else:
            steps = "; ".join(f"{box.name}: {box.detail}" for box in boxes)
            # Ids of its own, so that several may stand in one page.
            prefix = "diagram-" + "".join(letter if letter.isalnum() else "-" for letter in title.lower())
            drawing = finish_figure(figure, prefix, title, steps)
            temporary.write_text(drawing.svg + "\n", encoding="utf-8")
    return Path(path)
