"""A map of evidence over a slice: its colours, its scale, and the outline of what is known to be there.

One table of colours for every picture. It is see-through where there is no evidence, so that anatomy stays readable,
and its brightness rises with the evidence, so that it says the same in grey.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cspine.core.files import atomic_file

Grey = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

OUTLINE = "#3fd5ff"
"""Of what is known: far from every colour of the heat, for every kind of eye."""
_OUTLINE_RGB = (0x3F, 0xD5, 0xFF)
_DARKEST, _MOST = 0.35, 0.7


def _make_colours() -> ListedColormap:
    share = np.linspace(0, 1, 256)
    table = colormaps["inferno"](_DARKEST + (1 - _DARKEST) * share)
    # Nothing is drawn below a tenth: a tint everywhere would hide where the evidence is.
    table[:, 3] = _MOST * np.clip((share - 0.1) / 0.5, 0, 1)
    return ListedColormap(table, name="heat")


COLOURS = _make_colours()


def find_scale(heats: Iterable[Heat]) -> float:
    """The value that is drawn brightest: the largest of all maps that are shown together; 1 where there is none."""
    largest = max((float(heat.max()) for heat in heats), default=0.0)
    return largest if largest > 0 else 1.0


def draw_tile(
    pixels: Grey, heat: Heat | None, scale: float, region: Mask | None = None, *, side_px: int = 256
) -> npt.NDArray[np.uint8]:
    """A slice with its map over it, as colours.

    Args:
        pixels: (H, W) uint8.
        heat: (H, W), not below 0; None draws the slice alone.
        scale: See `find_scale`.
        region: (H, W) What is known to be there, drawn as an outline.
        side_px: Of the longer side of the result.

    Returns:
        (height, width, 3) uint8, red first.
    """
    height, width = pixels.shape
    factor = side_px / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    grey = np.asarray(cv2.resize(pixels, size, interpolation=interpolation), np.float64)
    shown = np.repeat(grey[..., None], 3, axis=2)
    if heat is not None:
        share = np.clip(cv2.resize(np.asarray(heat, np.float32), size, interpolation=interpolation), 0, None)
        colours = COLOURS(np.clip(share / scale, 0, 1))
        alpha = colours[..., 3:]
        shown = (1 - alpha) * shown + alpha * 255 * colours[..., :3]
    picture = np.ascontiguousarray(np.rint(shown), dtype=np.uint8)
    if region is not None and region.any():
        large = cv2.resize(region.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        lines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, lines, -1, _OUTLINE_RGB, 1, cv2.LINE_AA)
    return picture


def encode_png(picture: npt.NDArray[np.uint8]) -> str:
    """A picture, grey or with red first, as PNG in base64, for a page."""
    turned = picture[..., ::-1] if picture.ndim == 3 else picture
    _, png = cv2.imencode(".png", turned, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return base64.b64encode(png.tobytes()).decode()


def draw_legend(width_px: int = 160, height_px: int = 12) -> npt.NDArray[np.uint8]:
    """The colours from none to most over mid-grey tissue, for a page: (height, width, 3) uint8."""
    ramp = np.tile(np.linspace(0, 1, width_px, dtype=np.float32), (height_px, 1))
    return draw_tile(np.full((height_px, width_px), 90, np.uint8), ramp, 1.0, side_px=width_px)


# Pictures of explained slices and studies, as PNG: for a person who wants to see what a score rests on.
#
# Grounds are black and letters white, as where radiologists read. Planes are drawn in mm, so that nothing is
# stretched.
# No picture names a patient, a study or a file.


RESEARCH = "Research use only. Not for clinical use."
_DPI = 120
_PAPER, _INK, _MUTED = "#000000", "#f2f2f2", "#a6a6a6"
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "text.color": _INK,
    "figure.facecolor": _PAPER,
    "axes.facecolor": _PAPER,
}
AXIAL_SIDES = {"left": "R", "right": "L", "top": "A", "bottom": "P"}
"""Of a volume in the readers' frame: the patient's right is at the left of the picture."""


@dataclass(frozen=True)
class SliceView:
    """One slice to be shown.

    Attributes:
        pixels: (H, W) uint8, through its window.
        heat: (H, W), not below 0.
        caption: Under it.
        spacing_mm: (row, column); None where unknown: then no length is shown, and pixels are taken as square.
        region: (H, W) What is known to be there.
        scale: The value that is brightest: of the slice itself, see `choose_scales`.
        sides: Letters at the edges, such as `AXIAL_SIDES`; empty where nothing says which side is which.
    """

    pixels: Grey
    heat: Heat
    caption: str
    spacing_mm: tuple[float, float] | None = None
    region: Mask | None = None
    scale: float = 1.0
    sides: tuple[tuple[str, str], ...] = ()


def draw_slice_picture(view: SliceView, path: Path, *, method: str) -> Path:
    """Draw a slice as it is and beside it with its map, a scale of the colours and one of length, as PNG.

    Args:
        view: The slice.
        path: Written atomically.
        method: How the map was made, in words.

    Returns:
        `path`.
    """
    height, width = view.pixels.shape
    panel_in = 4.2
    shape = panel_in * height / width * _find_aspect(view.spacing_mm)
    with style.context(["default", _STYLE]):
        figure = Figure((2 * panel_in + 1.5, shape + 1.0), dpi=_DPI)
        for place, heat in enumerate((None, view.heat)):
            axes = _add_axes(figure, 0.2 + place * (panel_in + 0.15), 0.55, panel_in, shape)
            _show_slice(axes, view, heat)
        _draw_colour_bar(figure, 2 * panel_in + 0.55, 0.55, 0.14, shape)
        _write(figure, 0.2, shape + 0.68, view.caption, size=10)
        _write(figure, 0.2, 0.2, f"{RESEARCH} Heat: {method}.", colour=_MUTED)
        if view.region is not None:
            _draw_key(figure, 2 * panel_in + 0.2, shape + 0.68)
        return _save(figure, path)


def draw_slice_sheet(views: Sequence[SliceView], path: Path, *, method: str, title: str) -> Path:
    """Draw slices with their maps in rows, as PNG; arguments as of `draw_slice_picture`."""
    columns = min(4, len(views))
    rows = -(-len(views) // columns)
    tile_in = 2.6
    shape = tile_in * max(v.pixels.shape[0] / v.pixels.shape[1] * _find_aspect(v.spacing_mm) for v in views)
    step_in = shape + 0.42
    height_in = rows * step_in + 1.0
    width_in = max(columns * (tile_in + 0.12) + 1.2, 9.0)
    with style.context(["default", _STYLE]):
        figure = Figure((width_in, height_in), dpi=_DPI)
        for place, view in enumerate(views):
            row, column = divmod(place, columns)
            bottom = height_in - 0.55 - row * step_in - shape
            axes = _add_axes(figure, 0.15 + column * (tile_in + 0.12), bottom, tile_in, shape)
            _show_slice(axes, view, view.heat)
            _write(figure, 0.17 + column * (tile_in + 0.12), bottom - 0.18, view.caption, size=8)
        bar_in = min(shape, 2.4)
        left_in = columns * (tile_in + 0.12) + 0.3
        _draw_colour_bar(figure, left_in, height_in - 0.55 - bar_in, 0.14, bar_in)
        _write(figure, 0.15, height_in - 0.35, title, size=11)
        _write(figure, 0.15, 0.15, f"{RESEARCH} Heat: {method}.", colour=_MUTED)
        if any(view.region is not None for view in views):
            _draw_key(figure, width_in - 1.6, 0.15)
        return _save(figure, path)


@dataclass(frozen=True)
class PlaneView:
    """One plane through a finding.

    Attributes:
        name: Such as "axial".
        pixels, heat: (H, W) as they are shown: the head, or the front, at the top.
        spacing_mm: (row, column).
        cross: (row, column) of the finding; None where there is none.
        sides: Letters at the edges.
        between: (first, last) row between which heat was computed; None for all.
    """

    name: str
    pixels: Grey
    heat: Heat
    spacing_mm: tuple[float, float]
    cross: tuple[float, float] | None
    sides: tuple[tuple[str, str], ...]
    between: tuple[float, float] | None = None


def draw_planes(
    planes: Sequence[PlaneView],
    path: Path,
    *,
    scale: float,
    unit: str,
    method: str,
    title: str,
    lines: Sequence[str] = (),
) -> Path:
    """Draw planes beside each other at one scale in mm, the finding marked, as PNG.

    Args:
        planes: From left to right.
        path, method: See `draw_slice_picture`.
        scale: The value that is brightest in all planes, see `heat.find_scale`.
        unit: Of the map; "" has no numbers.
        title: What the study is called.
        lines: Further sentences under it.
    """
    sizes_mm = [
        (view.pixels.shape[0] * view.spacing_mm[0], view.pixels.shape[1] * view.spacing_mm[1])
        for view in planes
    ]
    per_mm = min(12.0 / sum(width for _, width in sizes_mm), 6.5 / max(height for height, _ in sizes_mm))
    tallest = max(height for height, _ in sizes_mm) * per_mm
    head_in = 0.75 + 0.22 * len(lines)
    gap = 0.3
    width_in = sum(width for _, width in sizes_mm) * per_mm + gap * len(planes) + 1.1
    with style.context(["default", _STYLE]):
        figure = Figure((max(width_in, 8.0), tallest + head_in + 0.6), dpi=_DPI)
        left = 0.2
        for view, (height_mm, width_mm) in zip(planes, sizes_mm, strict=True):
            size = width_mm * per_mm, height_mm * per_mm
            bottom = 0.5 + tallest - size[1]
            _show_plane(_add_axes(figure, left, bottom, *size), view, scale)
            left += size[0] + gap
        _draw_colour_bar(
            figure, left, 0.5 + tallest - min(tallest, 2.4), 0.14, min(tallest, 2.4), scale, unit
        )
        top = tallest + head_in + 0.6
        _write(figure, 0.2, top - 0.35, title, size=12)
        for number, line in enumerate(lines):
            _write(figure, 0.2, top - 0.62 - 0.22 * number, line)
        _write(figure, 0.2, 0.15, f"{RESEARCH} Heat: {method}.", colour=_MUTED)
        return _save(figure, path)


def choose_scales(heats: Sequence[Heat]) -> list[float]:
    """For each slice the value that is brightest: its own largest, but no less than a tenth of the largest of all.

    A network that is very sure loses little by any one patch, so that maps of one scale would be blank exactly where
    it is surest; and blank maps of a scale of their own would show noise.
    """
    largest = find_scale(heats)
    return [max(float(heat.max()), largest / 10) for heat in heats]


def _show_slice(axes: Axes, view: SliceView, heat: Heat | None) -> None:
    aspect = _find_aspect(view.spacing_mm)
    axes.imshow(view.pixels, cmap="gray", vmin=0, vmax=255, aspect=aspect, interpolation="bilinear")
    if heat is not None:
        axes.imshow(heat, cmap=COLOURS, vmin=0, vmax=view.scale, aspect=aspect, interpolation="bilinear")
        if view.region is not None and view.region.any():
            axes.contour(view.region.astype(float), levels=[0.5], colors=[OUTLINE], linewidths=1.1)
    _letter(axes, view.sides)
    if view.spacing_mm is not None:
        _draw_length(axes, view.pixels.shape, view.spacing_mm)


def _show_plane(axes: Axes, view: PlaneView, scale: float) -> None:
    aspect = view.spacing_mm[0] / view.spacing_mm[1]
    axes.imshow(view.pixels, cmap="gray", vmin=0, vmax=255, aspect=aspect, interpolation="bilinear")
    axes.imshow(view.heat, cmap=COLOURS, vmin=0, vmax=scale, aspect=aspect, interpolation="bilinear")
    height, width = view.pixels.shape
    if view.cross is not None:
        row, column = view.cross
        # The lines stop short of the finding, which they would hide.
        gaps = 9 / view.spacing_mm[0], 9 / view.spacing_mm[1]
        for xs, ys in (
            ((-0.5, column - gaps[1]), (row, row)),
            ((column + gaps[1], width - 0.5), (row, row)),
            ((column, column), (-0.5, row - gaps[0])),
            ((column, column), (row + gaps[0], height - 0.5)),
        ):
            if xs[0] <= xs[1] and ys[0] <= ys[1]:
                axes.plot(xs, ys, color=OUTLINE, linewidth=0.7, alpha=0.8)
    for row in view.between or ():
        for side in ((-0.5, 0.03 * width), (0.97 * width, width - 0.5)):
            axes.plot(side, (row, row), color=_INK, linewidth=1.2)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    _letter(axes, view.sides)
    _draw_length(axes, view.pixels.shape, view.spacing_mm)
    axes.text(0.0, 1.015, view.name, transform=axes.transAxes, fontsize=10)


_PLACES: dict[str, tuple[float, float, str, str]] = {
    "left": (0.015, 0.5, "left", "center"),
    "right": (0.985, 0.5, "right", "center"),
    "top": (0.5, 0.985, "center", "top"),
    "bottom": (0.5, 0.015, "center", "bottom"),
}


def _letter(axes: Axes, sides: tuple[tuple[str, str], ...]) -> None:
    for side, letter in sides:
        x, y, horizontal, vertical = _PLACES[side]
        words: dict[str, Any] = {"ha": horizontal, "va": vertical, "fontsize": 11, "fontweight": "bold"}
        axes.text(x, y, letter, transform=axes.transAxes, color=_INK, **words)


def _draw_length(axes: Axes, shape: tuple[int, ...], spacing_mm: tuple[float, float]) -> None:
    """A bar of 10, 20 or 50 mm at the lower left."""
    height, width = shape[:2]
    length_mm = next((step for step in (50, 20, 10) if step < 0.3 * width * spacing_mm[1]), 5)
    left, low = 0.04 * width, 0.96 * height
    axes.plot((left, left + length_mm / spacing_mm[1]), (low, low), color=_INK, linewidth=2)
    axes.text(left, low - 0.02 * height, f"{length_mm} mm", color=_INK, fontsize=7.5, va="bottom")


def _draw_colour_bar(
    figure: Figure,
    left: float,
    bottom: float,
    width: float,
    height: float,
    scale: float = 1.0,
    unit: str | None = None,
) -> None:
    """The scale of the colours: in numbers where a unit is given ("" is none), else that of each slice by itself."""
    axes = _add_axes(figure, left, bottom, width, height)
    axes.set_axis_on()
    axes.set_facecolor("#5a5a5a")  # the colours are see-through, and lie on tissue in the pictures
    bar = figure.colorbar(ScalarMappable(Normalize(0, scale), COLOURS), cax=axes)
    bar.solids.set_edgecolor("face")  # type: ignore[union-attr]
    bar.set_ticks([0, scale / 2, scale])
    bar.set_ticklabels([f"{v:.2g}" for v in (0, scale / 2, scale)] if unit else ["none", "", "most"])
    bar.ax.tick_params(colors=_INK, labelsize=7.5, length=2)
    words = f"evidence for fracture{f', {unit}' if unit else ''}{' in the slice' if unit is None else ''}"
    bar.set_label(words, color=_INK, fontsize=7.5)
    bar.outline.set_visible(False)


def _draw_key(figure: Figure, left: float, bottom: float) -> None:
    width, height = figure.get_size_inches()
    line = Line2D(
        (left / width, (left + 0.25) / width), ((bottom + 0.06) / height,) * 2, color=OUTLINE, linewidth=1.4
    )
    figure.add_artist(line)
    _write(figure, left + 0.32, bottom, "known fracture", size=7.5)


def _write(
    figure: Figure, left: float, bottom: float, text: str, *, size: float = 8, colour: str = _INK
) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, bottom / height, text, fontsize=size, color=colour, va="bottom")


def _add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    full_width, full_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height)
    )
    axes.set_axis_off()
    return axes


def _find_aspect(spacing_mm: tuple[float, float] | None) -> float:
    """Height of a pixel in widths."""
    return 1.0 if spacing_mm is None else spacing_mm[0] / spacing_mm[1]


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return Path(path)
