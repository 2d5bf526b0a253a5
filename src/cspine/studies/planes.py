"""Axial, sagittal and coronal planes of a volume through one point, in patient directions, with values beside the HU.

Slices may be unevenly far apart, and stacked at a slant (a tilted gantry): every line is taken from where its slice
lies, so that planes are true to the patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cspine.studies.volume import PADDING_HU, Volume

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plane:
    """One plane, as it is looked at: head or front at the top; sagittal from the patient's left, front at the left.

    Attributes:
        name: "axial", "sagittal" or "coronal".
        hu: (H, W) float32 Hounsfield units.
        values: (H, W) float32: 0 where there are none.
        spacing_mm: (row, column).
        cross: (row, column) of the point.
        sides: What is at the left, right, top and bottom: R, L, A, P, H or F.
        between: (first, last) row between which there are values, for a plane across the slices.
    """

    name: str
    hu: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]
    spacing_mm: tuple[float, float]
    cross: tuple[float, float]
    sides: dict[str, str]
    between: tuple[float, float] | None = None


def cut_planes(
    volume: Volume, point: tuple[int, float, float], values: Mapping[int, npt.NDArray[Any]]
) -> tuple[Plane, Plane, Plane]:
    """Cut a volume at a point.

    Args:
        volume: In the readers' frame: slices to the head, rows to the back, columns to the left.
        point: (slice, row, column).
        values: Slice number to (H, W) values; slices that are missing have none.

    Returns:
        Axial, sagittal, coronal.
    """
    index, row, column = point
    _, row_mm, column_mm = volume.spacing_mm
    axial = Plane(
        name="axial",
        hu=volume.hu[index].astype(np.float32),
        values=np.asarray(values.get(index, np.zeros(volume.hu.shape[1:])), np.float32),
        spacing_mm=(row_mm, column_mm),
        cross=(row, column),
        sides={"left": "R", "right": "L", "top": "A", "bottom": "P"},
    )
    shifts = _find_shifts(volume, index)
    sagittal = _cut_upright(volume, values, point, shifts, across=1)
    coronal = _cut_upright(volume, values, point, shifts, across=0)
    return axial, sagittal, coronal


def _find_shifts(volume: Volume, index: int) -> Floats:
    """(slices, 2) How many rows and columns further a place of slice `index` lies in each slice."""
    moved = volume.origins_mm[index] - volume.origins_mm
    return np.stack(
        [
            moved @ np.asarray(volume.direction[1]) / volume.spacing_mm[1],
            moved @ np.asarray(volume.direction[2]) / volume.spacing_mm[2],
        ],
        axis=1,
    )


def _cut_upright(
    volume: Volume,
    values: Mapping[int, npt.NDArray[Any]],
    point: tuple[int, float, float],
    shifts: Floats,
    *,
    across: int,
) -> Plane:
    """Across the slices: along their rows' direction (`across` 1, sagittal) or their columns' (0, coronal)."""
    index, fixed, along = point[0], point[1 + across], 1 - across
    length = volume.hu.shape[1 + along]
    step_mm = volume.spacing_mm[1 + along]

    def stack(find: Callable[[int], npt.NDArray[Any] | None], outside: float) -> Floats:
        lines = np.full((len(volume), length), outside)
        for number in range(len(volume)):
            pixels = find(number)
            at = round(fixed + shifts[number, across])
            if pixels is not None and 0 <= at < pixels.shape[across]:
                line = pixels[:, at] if across == 1 else pixels[at]
                places = np.arange(length) + shifts[number, along]
                lines[number] = np.interp(places, np.arange(length), line, left=outside, right=outside)
        return _fill_height(lines, volume.positions_mm, step_mm)

    positions = volume.positions_mm
    height = (positions[-1] - positions) / step_mm
    known = [number for number in range(len(volume)) if number in values]
    plane = "sagittal" if across == 1 else "coronal"
    sides = {"left": "A", "right": "P"} if across == 1 else {"left": "R", "right": "L"}
    return Plane(
        name=plane,
        hu=stack(lambda number: volume.hu[number], PADDING_HU).astype(np.float32),
        values=stack(values.get, 0.0).astype(np.float32),
        spacing_mm=(step_mm, step_mm),
        cross=(float(height[index]), point[1 + along]),
        sides={**sides, "top": "H", "bottom": "F"},
        between=(float(height[known[-1]]), float(height[known[0]])) if known else None,
    )


def _fill_height(lines: Floats, positions_mm: Floats, step_mm: float) -> Floats:
    """Lines at positions from feet to head -> rows `step_mm` apart from head to feet, linearly between lines."""
    if len(lines) == 1:
        return lines
    count = max(2, round((positions_mm[-1] - positions_mm[0]) / step_mm) + 1)
    wanted = positions_mm[-1] - np.arange(count) * step_mm
    upper = np.clip(np.searchsorted(positions_mm, wanted), 1, len(lines) - 1)
    gap = positions_mm[upper] - positions_mm[upper - 1]
    share = np.clip((wanted - positions_mm[upper - 1]) / gap, 0, 1)[:, None]
    return np.asarray((1 - share) * lines[upper - 1] + share * lines[upper], np.float64)
