"""How one picture lies on another: turn, flip, zoom and shift.

Turn, flip and zoom come from the spectra of `signatures`: a correlation over the angle, for both flips and a few
shifts of the rings. Gauss-Newton steps on the pixels then refine all of it, with six parameters, so that a stretched
copy fits too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from cspine.audit.signatures import MAX_ZOOM_RINGS, RINGS, RINGS_PER_OCTAVE, compute_detail

_ANGLES = 512
_STEPS = 8
_SMALL_STEP_PX = 0.02
# Part of the pixels that takes part: those with the steepest detail hold nearly all that says where things are.
_STEEPEST = 0.15
_ROBUST = 0.5
# The disk that all pictures share whatever their turn; the rim of a round field of view lies outside it.
DISK_RADIUS = 0.93

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Transform:
    """What turns the first picture into the second, about the middle.

    Attributes:
        rotation_deg: -180..180, as seen, counter-clockwise.
        flipped: Mirrored left to right, before the turn.
        zoom: Above 1 where the second shows things larger.
        shift: (x, y) of the middle, in parts of the side.
    """

    rotation_deg: float
    flipped: bool
    zoom: float
    shift: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the pixels of the first picture lie in the second: `matrix` @ offset from the middle + `shift_px`.

    Attributes:
        matrix: (2, 2).
        shift_px: (2,).
    """

    matrix: npt.NDArray[np.float64]
    shift_px: npt.NDArray[np.float64]

    def describe(self, size_px: int) -> Transform:
        """In the words of a reader, for pictures of `size_px` a side."""
        determinant = float(np.linalg.det(self.matrix))
        flipped = determinant < 0
        turn = self.matrix @ np.diag([-1.0, 1.0]) if flipped else self.matrix
        # y points down, so a turn that is counter-clockwise as seen has a negative angle in these axes.
        angle = -np.degrees(np.arctan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1]))
        x, y = (float(value) / size_px for value in self.shift_px)
        return Transform(
            round(float(angle), 2), flipped, round(abs(determinant) ** 0.5, 4), (round(x, 4), round(y, 4))
        )


@dataclass(frozen=True)
class Guess:
    """A placement about the middle, from the spectra alone; `zoom_rings` 0 is the same scale."""

    angle_deg: float
    flipped: bool
    zoom_rings: int
    correlation: float

    @property
    def placement(self) -> Placement:
        """The guess as a placement without shift."""
        angle = np.radians(self.angle_deg)
        cos, sin = np.cos(angle), np.sin(angle)
        zoom = 2.0 ** (self.zoom_rings / RINGS_PER_OCTAVE)
        matrix = np.array([[cos, -sin], [sin, cos]]) * zoom
        return Placement(matrix @ np.diag([1.0, -1.0]) if self.flipped else matrix, np.zeros(2))


def guess_placement(
    first: npt.NDArray[np.complex64], second: npt.NDArray[np.complex64], *, zoom: bool
) -> Guess:
    """The turn and flip (and zoom, up to MAX_ZOOM_RINGS either way) at which two spectra agree best."""
    shifts = range(-MAX_ZOOM_RINGS, MAX_ZOOM_RINGS + 1) if zoom else (0,)
    energies = [(spectrum.real**2 + spectrum.imag**2).sum(axis=1) for spectrum in (first, second)]
    products, scales = [], []
    for shift in shifts:
        rings = slice(max(0, -shift), RINGS - max(0, shift))
        others = slice(rings.start + shift, rings.stop + shift)
        products += [
            np.einsum("rf,rf->f", one, second[others]) for one in (first[rings].conj(), first[rings])
        ]
        scales += [energies[0][rings].sum() * energies[1][others].sum()] * 2
    # The coefficient 0 is 0, and each of the others stands for two: hence the half.
    curves = np.fft.irfft(np.stack(products), _ANGLES, axis=1)
    curves *= (_ANGLES / 2) / (np.sqrt(scales)[:, None] + 1e-9)
    row, peak = divmod(int(curves.argmax()), _ANGLES)
    angle_deg = _refine_peak(curves[row], peak) * 360 / _ANGLES
    return Guess(angle_deg, bool(row % 2), shifts[row // 2], float(curves[row, peak]))


def _refine_peak(curve: npt.NDArray[np.floating], peak: int) -> float:
    """The place of a peak between the samples of a periodic curve, by a parabola through three of them."""
    left, middle, right = (float(curve[(peak + step) % len(curve)]) for step in (-1, 0, 1))
    bend = left - 2 * middle + right
    return peak + ((left - right) / (2 * bend) if bend < 0 else 0.0)


class Template:
    """A picture that others are laid on: its steep pixels and how they change when it moves."""

    def __init__(self, picture: npt.NDArray[np.uint8]) -> None:
        size_px = picture.shape[0]
        self.picture = picture
        self._size_px = size_px
        detail = compute_detail(picture)
        slope_x = cv2.Sobel(detail, cv2.CV_32F, 1, 0, scale=1 / 8)
        slope_y = cv2.Sobel(detail, cv2.CV_32F, 0, 1, scale=1 / 8)
        steepness = (slope_x**2 + slope_y**2) * get_disk(size_px)
        # A sample tells where the steepest part begins, at a fraction of the time of a sort.
        limit = np.quantile(steepness[::3, ::3], 1 - _STEEPEST)
        chosen = np.flatnonzero(steepness > limit)
        y, x = np.divmod(chosen, size_px)
        middle, half = (size_px - 1) / 2, size_px / 2
        self._x, self._y = (x - middle).astype(np.float32), (y - middle).astype(np.float32)
        self._values = detail.ravel()[chosen]
        in_x, in_y = slope_x.ravel()[chosen], slope_y.ravel()[chosen]
        # In units of half the side, so that all six parameters are pixels at the rim.
        u, v = self._x / half, self._y / half
        self._slopes = np.stack([in_x * u, in_x * v, in_x, in_y * u, in_y * v, in_y], axis=1)

    def refine(self, other_detail: Pixels, start: Placement) -> Placement:
        """Move a placement to where the detail of another picture of the same size fits best."""
        matrix, shift = start.matrix, start.shift_px
        middle, half, limit = (self._size_px - 1) / 2, self._size_px / 2, self._size_px - 1
        for _ in range(_STEPS):
            x = (matrix[0, 0] * self._x + matrix[0, 1] * self._y + (shift[0] + middle)).astype(np.float32)
            y = (matrix[1, 0] * self._x + matrix[1, 1] * self._y + (shift[1] + middle)).astype(np.float32)
            seen = cv2.remap(other_detail, x[None], y[None], cv2.INTER_LINEAR)[0]
            inside = (x > 0) & (x < limit) & (y > 0) & (y < limit)
            residual = seen - self._values
            weights = inside / np.maximum(1, np.abs(residual) / _ROBUST)
            weighted = self._slopes * weights[:, None].astype(np.float32)
            step = np.linalg.solve(weighted.T @ self._slopes + 1e-3 * np.eye(6), weighted.T @ residual)
            inverse = np.linalg.inv(np.eye(2) + step[[0, 1, 3, 4]].reshape(2, 2) / half)
            matrix = matrix @ inverse
            shift = shift - matrix @ step[[2, 5]]
            if np.abs(step).max() < _SMALL_STEP_PX:
                break
        return Placement(matrix, shift)


def warp(picture: npt.NDArray[np.uint8], placement: Placement) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """A picture laid under the first one, and which of its pixels are inside the picture."""
    size_px = picture.shape[0]
    middle = np.full(2, (size_px - 1) / 2)
    offset = middle + placement.shift_px - placement.matrix @ middle
    matrix = np.column_stack([placement.matrix, offset])
    size = (size_px, size_px)
    flags = cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(picture.astype(np.float32), matrix, size, flags=flags | cv2.INTER_CUBIC)
    inside = cv2.warpAffine(np.ones(size, np.uint8), matrix, size, flags=flags | cv2.INTER_NEAREST)
    # What is near the edge has been mixed with the black outside.
    return np.asarray(moved, np.float32), cv2.erode(inside, np.ones((9, 9), np.uint8), borderValue=0) > 0


@lru_cache(maxsize=16)
def get_disk(size_px: int) -> npt.NDArray[np.bool_]:
    """The disk of `DISK_RADIUS` in a square."""
    offsets = np.arange(size_px) - (size_px - 1) / 2
    return np.asarray(np.hypot(offsets[:, None], offsets) < DISK_RADIUS * size_px / 2)
