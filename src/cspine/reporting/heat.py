"""A map of evidence over a slice: its colours, its scale, and the outline of what is known to be there.

One table of colours for every picture. It is see-through where there is no evidence, so that anatomy stays readable,
and its brightness rises with the evidence, so that it says the same in grey.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import ListedColormap

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
