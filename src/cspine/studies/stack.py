"""From sorted slices to the grid of a volume: reading direction, gantry tilt, gaps and uneven distances.

All of this is decided from headers alone. The plan that comes out says for every slice of the volume which source
slices it is made of and how, so that pixels are read once and in order, two slices at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cspine.studies.dicom_header import Frame
from cspine.studies.intake import Action, Findings, Reason
from cspine.studies.volume import PADDING_HU
from cspine.studies.volume_checks import check_extent

Direction = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
Pixels = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Turn:
    """How stored rows and columns become those of the canonical frame: swapped first, then reversed."""

    swapped: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def apply(self, pixels: Pixels) -> Pixels:
        """(H, W), a view."""
        pixels = pixels.T if self.swapped else pixels
        return pixels[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]

    def undo(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(H, W) as stored again, a view."""
        pixels = pixels[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]
        return pixels.T if self.swapped else pixels

    def __str__(self) -> str:
        parts = [
            ("rows and columns swapped", self.swapped),
            ("rows reversed", self.rows_reversed),
            ("columns reversed", self.columns_reversed),
        ]
        return ", ".join(text for text, is_so in parts if is_so)


@dataclass(frozen=True)
class Stack:
    """The plan of a volume.

    Attributes:
        frames: Source slices, in order.
        turn: Of every source slice.
        shifts_px: (slices, 2) By how much the turned slice is moved down and right; None where nothing moves.
        size_px: (rows, columns) of the volume.
        blend: For every slice of the volume (source slice, weight of the next one); None where they are the same.
        direction, spacing_mm, origins_mm: As in `Volume`.
        extent_mm: How much of the body axis the middles of the slices span.
    """

    frames: tuple[Frame, ...]
    turn: Turn
    shifts_px: npt.NDArray[np.float64] | None
    size_px: tuple[int, int]
    blend: tuple[tuple[int, float], ...] | None
    direction: Direction
    spacing_mm: tuple[float, float, float]
    origins_mm: npt.NDArray[np.float64]
    extent_mm: float

    def __len__(self) -> int:
        return len(self.origins_mm)

    def place(self, index: int, pixels: Pixels) -> Pixels:
        """Turn source slice `index`, and move it to where it lies in the volume; (rows, columns)."""
        turned = self.turn.apply(pixels)
        if self.shifts_px is None:
            return turned
        down, right = self.shifts_px[index]
        move = np.array([[1, 0, right], [0, 1, down]], np.float64)
        moved = cv2.warpAffine(
            np.ascontiguousarray(turned),
            move,
            (self.size_px[1], self.size_px[0]),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=PADDING_HU,
        )
        return np.asarray(moved, np.int16)

    def take_back(self, index: int, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The inverse of `place` for a picture of slice `index` of a volume whose slices are source slices.

        Args:
            index: Of the slice.
            values: (rows, columns) of the volume, such as a heat map; 0 stands where it says nothing.

        Returns:
            (rows, columns) of the source slice: every value at the place in the patient where it was.
        """
        if self.shifts_px is None:
            return self.turn.undo(values)
        frame, (down, right) = self.frames[index], self.shifts_px[index]
        rows, columns = (frame.columns, frame.rows) if self.turn.swapped else (frame.rows, frame.columns)
        move = np.array([[1, 0, -right], [0, 1, -down]], np.float64)
        moved = cv2.warpAffine(np.ascontiguousarray(values), move, (columns, rows), flags=cv2.INTER_LINEAR)
        return self.turn.undo(np.asarray(moved, np.float32))


def plan_stack(frames: Sequence[Frame], found: Findings) -> Stack:
    """Check how sorted, parallel frames are stacked, and plan the volume.

    Args:
        frames: As `check_frames` returns them, with spacing, at least one.
        found: Gets what is met; where it has refused, the plan is of use for its figures only.
    """
    turn, axes, spacing_mm, size_px, origins = _turn(frames, found)
    positions = origins @ axes[0]
    shifts_px, size_px, origins = _unshear(positions, axes, spacing_mm, size_px, origins, found)
    step_mm, grid_mm = _check_gaps(frames, positions, found)
    blend = None
    if grid_mm is not None:
        blend = tuple(_find_blend(positions, position) for position in grid_mm)
        origins = _interpolate_origins(positions, origins, grid_mm)
    extent_mm = check_extent(len(frames), positions, axes[0], found)
    return Stack(
        frames=tuple(frames),
        turn=turn,
        shifts_px=shifts_px,
        size_px=size_px,
        blend=blend,
        direction=_as_direction(axes),
        spacing_mm=(step_mm, *spacing_mm),
        origins_mm=origins,
        extent_mm=extent_mm,
    )


def _as_direction(axes: npt.NDArray[np.float64]) -> Direction:
    # Adding 0 turns -0 into 0.
    (a, b, c), (d, e, f), (g, h, i) = (tuple(float(value) + 0.0 for value in axis) for axis in axes)
    return (a, b, c), (d, e, f), (g, h, i)


def _turn(
    frames: Sequence[Frame], found: Findings
) -> tuple[Turn, npt.NDArray[np.float64], tuple[float, float], tuple[int, int], npt.NDArray[np.float64]]:
    """Bring rows to the back and columns to the left; the voxels stay where they are in the patient."""
    first = frames[0]
    assert first.orientation is not None
    assert first.pixel_spacing_mm is not None
    right, down = (np.array(axis) for axis in first.orientation)
    row_mm, column_mm = first.pixel_spacing_mm
    rows, columns = first.rows, first.columns
    origins = np.array([frame.position_mm for frame in frames], np.float64)
    swapped = bool(abs(right[0]) < abs(down[0]))
    if swapped:
        right, down = down, right
        row_mm, column_mm, rows, columns = column_mm, row_mm, columns, rows
    up, left = bool(down[1] < 0), bool(right[0] < 0)
    if up:
        origins = origins + down * row_mm * (rows - 1)
        down = -down
    if left:
        origins = origins + right * column_mm * (columns - 1)
        right = -right
    turn = Turn(swapped, up, left)
    if turn != Turn():
        found.meet(Reason.TURNED, str(turn))
    axes = np.stack([np.cross(right, down), down, right])
    return turn, axes, (row_mm, column_mm), (rows, columns), origins


def _unshear(
    positions: npt.NDArray[np.float64],
    axes: npt.NDArray[np.float64],
    spacing_mm: tuple[float, float],
    size_px: tuple[int, int],
    origins: npt.NDArray[np.float64],
    found: Findings,
) -> tuple[npt.NDArray[np.float64] | None, tuple[int, int], npt.NDArray[np.float64]]:
    """Find how slices move within their plane along the stack; plan to move them back where the policy says so."""
    within_mm = (origins - origins[0]) @ axes[1:].T
    along_mm = positions - positions[0]
    slope, stray_mm = _fit_tilt(along_mm, within_mm, max(spacing_mm))
    tilt_deg = float(np.degrees(np.arctan(np.hypot(*slope))))
    actions = []
    if tilt_deg > found.policy.tilt_deg:
        actions.append(found.meet(Reason.GANTRY_TILT, f"{tilt_deg:.1f} degrees"))
    if stray_mm > max(spacing_mm):
        actions.append(found.meet(Reason.SHIFTED_SLICES, f"by up to {stray_mm:.1f} mm"))
    if Action.CORRECT not in actions or found.refused:
        return None, size_px, origins
    moves_px = within_mm / np.array(spacing_mm)
    low = np.floor(moves_px.min(axis=0))
    grow = np.ceil(moves_px.max(axis=0) - low).astype(int)
    corner = origins[0] + (low * np.array(spacing_mm)) @ axes[1:]
    return (
        moves_px - low,
        (size_px[0] + int(grow[0]), size_px[1] + int(grow[1])),
        corner + along_mm[:, None] * axes[0],
    )


def _fit_tilt(
    along_mm: npt.NDArray[np.float64], within_mm: npt.NDArray[np.float64], allowed_mm: float
) -> tuple[npt.NDArray[np.float64], float]:
    """How far slices move within their plane for each mm along the stack, (2,), and the most that one strays from it.

    A line through all slices evens rounding out. Where they do not lie on one, a jump must not pass for a tilt: then
    the median of the steps counts.
    """
    span_mm = float(along_mm @ along_mm)
    slope = along_mm @ within_mm / span_mm if span_mm else np.zeros(2)
    stray_mm = float(np.abs(within_mm - along_mm[:, None] * slope).max())
    if stray_mm > allowed_mm:
        slope = np.median(np.diff(within_mm, axis=0) / np.diff(along_mm)[:, None], axis=0)
        stray_mm = float(np.abs(within_mm - along_mm[:, None] * slope).max())
    return np.asarray(slope, np.float64), stray_mm


def _check_gaps(
    frames: Sequence[Frame], positions: npt.NDArray[np.float64], found: Findings
) -> tuple[float, npt.NDArray[np.float64] | None]:
    """The slice distance; and the positions of an even grid where the policy asks for one."""
    if len(frames) == 1:
        thickness = frames[0].thickness_mm
        return (thickness if thickness and thickness > 0 else 1.0), None
    gaps = np.diff(positions)
    step = float(np.median(gaps))
    allowed = found.policy.spacing_tolerance * step
    times = np.rint(gaps / step)
    near = np.abs(gaps - times * step) <= allowed
    holes = near & (times >= 2)
    uneven = ~near | (times < 1)
    fillable = bool(gaps.max() <= found.policy.max_gap_mm)
    actions = []
    if holes.any():
        count = int((times[holes] - 1).sum())
        wide = f"{int(holes.sum())} gaps of up to {gaps[holes].max():.2f} mm"
        detail = f"{count} in {wide}; the distance is {step:.2f} mm"
        actions.append(found.meet(Reason.MISSING_SLICES, detail, correctable=fillable))
    if uneven.any():
        detail = f"distances from {gaps.min():.2f} to {gaps.max():.2f} mm, median {step:.2f} mm"
        actions.append(found.meet(Reason.UNEVEN_SPACING, detail, correctable=fillable))
    if Action.CORRECT not in actions or found.refused:
        return step, None
    count = round((positions[-1] - positions[0]) / step) + 1
    grid = np.linspace(positions[0], positions[-1], count)
    return float(grid[1] - grid[0]), grid


def _find_blend(positions: npt.NDArray[np.float64], position: float) -> tuple[int, float]:
    index = int(np.clip(np.searchsorted(positions, position, side="right") - 1, 0, len(positions) - 2))
    weight = float((position - positions[index]) / (positions[index + 1] - positions[index]))
    return index, float(np.clip(weight, 0.0, 1.0))


def _interpolate_origins(
    positions: npt.NDArray[np.float64], origins: npt.NDArray[np.float64], grid: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    return np.stack([np.interp(grid, positions, origins[:, axis]) for axis in range(3)], axis=1)
