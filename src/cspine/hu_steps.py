"""The steps of a recipe that work on Hounsfield units, before any window: which part of the body, and what beside it.

Pixels are (H, W) int16 here. What lies outside the picture is air.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Pixels = npt.NDArray[np.int16]

OUTSIDE_HU = -1024
_BODY_HU = -400
_TABLE_MM = 4.0
_LEAST_BODY_FRACTION = 0.01


class HuStep(BaseModel):
    """What all of them share."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CropBody(HuStep):
    """A square of fixed size in mm about the middle of the body; resized, all slices have one pixel size.

    Attributes:
        field_of_view_mm: The side of the square.
        grid_mm: The body is looked for in pixels about so far apart, and no farther.
    """

    kind: Literal["crop_body"] = "crop_body"
    field_of_view_mm: float = Field(default=180.0, ge=20, le=600)
    grid_mm: float = Field(default=1.0, gt=0, le=4)

    def __str__(self) -> str:
        return f"crop_body {self.field_of_view_mm:g} mm"


class Neighbours(HuStep):
    """The slices above and below as further channels, the middle one in the middle (2.5-D)."""

    kind: Literal["neighbours"] = "neighbours"
    count: Literal[3, 5, 7, 9] = 3
    distance_mm: float = Field(default=2.0, gt=0, le=20)

    @property
    def offsets_mm(self) -> tuple[float, ...]:
        """Where they lie from the slice, feet to head."""
        half = self.count // 2
        return tuple(self.distance_mm * step for step in range(-half, half + 1))

    def __str__(self) -> str:
        return f"neighbours {self.count} slices {self.distance_mm:g} mm apart"


def find_body_middle(
    hu: Pixels, spacing_mm: tuple[float, float], grid_mm: float = 1.0
) -> tuple[float, float]:
    """(row, column) of the middle of the box around the body, in pixels; of the picture where there is no body.

    The body is the largest connected part denser than fat and air mixed, after whatever is thinner than the table's
    shell was taken away. Only every so many rows and columns are looked at, `grid_mm` or less apart.
    """
    row_step, column_step = (max(1, int(grid_mm / step)) for step in spacing_mm)
    mask = (hu[::row_step, ::column_step] > _BODY_HU).astype(np.uint8)
    steps_mm = spacing_mm[0] * row_step, spacing_mm[1] * column_step
    size = tuple(max(1, 2 * round(_TABLE_MM / 2 / step) + 1) for step in steps_mm)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size[1], size[0]))
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel), np.uint8)
    left, top, width, height, area = _find_largest(mask)
    if area < _LEAST_BODY_FRACTION * mask.size:
        return (hu.shape[0] - 1) / 2, (hu.shape[1] - 1) / 2
    return row_step * (top + (height - 1) / 2), column_step * (left + (width - 1) / 2)


def _find_largest(mask: npt.NDArray[np.uint8]) -> tuple[int, int, int, int, int]:
    """(left, top, width, height, pixels) of the largest part of a mask of 0 and 1, connected by edges; all 0 for none.

    A part with more than half of the pixels, which a body is, is found from its middle, ten times as fast as by
    counting every part.
    """
    moments = cv2.moments(mask, binaryImage=True)
    total = int(moments["m00"])
    if total == 0:
        return 0, 0, 0, 0, 0
    middle = round(moments["m10"] / total), round(moments["m01"] / total)
    if mask[middle[1], middle[0]]:
        area, _, _, box = cv2.floodFill(mask, None, middle, 2)  # which leaves what is not 0 so
        if 2 * area > total:
            return int(box[0]), int(box[1]), int(box[2]), int(box[3]), int(area)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    left, top, width, height, area = (int(value) for value in stats[1 + int(stats[1:, -1].argmax())])
    return left, top, width, height, area


def place_square(
    middle: tuple[float, float], field_of_view_mm: float, spacing_mm: tuple[float, float]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first (row, column) of the square that `crop_square` cuts, which may lie outside, and its sides in pixels."""
    sides = [max(1, round(field_of_view_mm / step)) for step in spacing_mm]
    starts = [round(centre - (side - 1) / 2) for centre, side in zip(middle, sides, strict=True)]
    return (starts[0], starts[1]), (sides[0], sides[1])


def crop_square(
    hu: Pixels, middle: tuple[float, float], field_of_view_mm: float, spacing_mm: tuple[float, float]
) -> Pixels:
    """Cut a square of `field_of_view_mm` about `middle` (row, column), to whole pixels; outside is air.

    Returns:
        (rows, columns) int16 of the same pixel spacing; a view where nothing lies outside.
    """
    starts, sides = place_square(middle, field_of_view_mm, spacing_mm)
    ends = [start + side for start, side in zip(starts, sides, strict=True)]
    if min(starts) >= 0 and ends[0] <= hu.shape[0] and ends[1] <= hu.shape[1]:
        return hu[starts[0] : ends[0], starts[1] : ends[1]]
    cut = np.full(sides, OUTSIDE_HU, np.int16)
    inside = [
        slice(max(0, start), max(0, min(length, end)))
        for start, end, length in zip(starts, ends, hu.shape, strict=True)
    ]
    part = hu[inside[0], inside[1]]
    top, left = (max(0, -start) for start in starts)
    cut[top : top + part.shape[0], left : left + part.shape[1]] = part
    return cut
