"""Where the pixels of a recipe's result lie in the slice that they were made from.

A recipe crops and resizes along rows and columns and never turns a picture, so one line a direction says it all:

    slice pixel = start + step * recipe pixel          (the middles of pixels are whole numbers, from 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Placement:
    """The grid of a recipe's result on the grid of its slice.

    Attributes:
        size_px: (height, width) of the recipe's result.
        slice_size_px: (height, width) of the slice.
        start_px: (row, column) of the slice at which the recipe's first pixel has its middle.
        step_px: (row, column) Slice pixels from one of the recipe's pixels to the next.
    """

    size_px: tuple[int, int]
    slice_size_px: tuple[int, int]
    start_px: tuple[float, float]
    step_px: tuple[float, float]

    def find_in_slice(self, points: npt.ArrayLike) -> Floats:
        """(..., 2) rows and columns of the recipe's result -> those of the slice."""
        return np.asarray(points, np.float64) * self.step_px + self.start_px

    def find_in_recipe(self, points: npt.ArrayLike) -> Floats:
        """(..., 2) rows and columns of the slice -> those of the recipe's result."""
        return (np.asarray(points, np.float64) - self.start_px) / self.step_px

    def bring_back(self, heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A map on the recipe's grid, brought to the grid of the slice, linearly between pixels.

        Args:
            heat: (height, width) float32 of `size_px`.

        Returns:
            `slice_size_px` float32; 0 where the recipe's result does not reach.
        """
        if heat.shape != self.size_px:
            raise ValueError(f"the map is {heat.shape}, the recipe makes {self.size_px}")
        back = sample_grid(heat, self.start_px, self.step_px, self.slice_size_px)
        rows, columns = (
            (at >= -0.5) & (at <= length - 0.5)
            for at, length in zip(self._slice_axes(), self.size_px, strict=True)
        )
        return np.where(rows[:, None] & columns[None, :], back, np.float32(0))

    def _slice_axes(self) -> list[Floats]:
        """Of every row and of every column of the slice, where it lies on the recipe's grid."""
        return [
            np.asarray((np.arange(length) - start) / step, np.float64)
            for length, start, step in zip(self.slice_size_px, self.start_px, self.step_px, strict=True)
        ]


def sample_grid(
    values: npt.NDArray[Any],
    start_px: tuple[float, float],
    step_px: tuple[float, float],
    size_px: tuple[int, int],
) -> npt.NDArray[np.float32]:
    """Values on a coarse grid, taken linearly at the pixels of another; beyond the outermost they go on as they are.

    Args:
        values: (rows, columns).
        start_px, step_px: (row, column) of `size_px` at which the first value lies, and from one value to the next.
        size_px: (height, width) of the result.
    """
    matrix = np.array([[step_px[1], 0, start_px[1]], [0, step_px[0], start_px[0]]], np.float64)
    return np.asarray(
        cv2.warpAffine(
            np.ascontiguousarray(values, np.float32),
            cv2.invertAffineTransform(matrix),
            (size_px[1], size_px[0]),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        np.float32,
    )
